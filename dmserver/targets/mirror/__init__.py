"""The target mirror, with its dirty region logs."""
