"""The targets thin and thin-pool."""
