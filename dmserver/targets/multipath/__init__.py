"""The target multipath, with its path selectors."""
