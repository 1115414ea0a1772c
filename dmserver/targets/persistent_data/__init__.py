"""Metadata that survive every crash: what the targets thin-pool, cache and era keep theirs in (Linux
`drivers/md/persistent-data`)."""
