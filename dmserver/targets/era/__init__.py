"""The target era."""
