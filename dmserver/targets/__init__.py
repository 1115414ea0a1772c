"""Target types, one file each. `registry` finds them, and those of others, by the entry point `dmserver.targets`."""
