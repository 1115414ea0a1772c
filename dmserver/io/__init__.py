"""The data path: bios, extents, the disks underneath, and the doors for data (NBD, FUSE)."""
