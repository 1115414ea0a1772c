"""The target raid."""
