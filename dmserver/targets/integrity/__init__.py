"""The target integrity."""
