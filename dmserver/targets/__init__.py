"""Target types, a file or a package each. `registry` finds them, and those of others, by the entry point
`dmserver.targets`."""
