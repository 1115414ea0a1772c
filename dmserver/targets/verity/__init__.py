"""The target verity."""
