"""The targets snapshot, snapshot-origin and snapshot-merge."""
