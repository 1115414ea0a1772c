"""The target cache."""
