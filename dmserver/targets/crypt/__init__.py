"""The target crypt."""
