"""The kernels' rules: each command's order of checks, errno, flags and quirks, one module per kernel."""
