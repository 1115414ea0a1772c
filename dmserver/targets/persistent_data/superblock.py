"""What the superblocks of all metadata have in common (`sb_check` of Linux `drivers/md/dm-*-metadata.c`)."""

from __future__ import annotations

import errno
import struct

from .block import Corrupt, checksum

__all__ = ["BadSuperblock", "check_superblock"]

_BEGIN = struct.Struct("<IIQ16sQ")  # csum, flags, blocknr, uuid, magic


class BadSuperblock(Corrupt):
    """The superblock is none; `errno` is what the kernel gives for that."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number


def check_superblock(image: bytes, block: int, magic: int, salt: int) -> None:
    """BadSuperblock when number, magic or checksum are not what they should be, in this order."""
    csum, _, number, _, found = _BEGIN.unpack_from(image)
    if number != block:
        raise BadSuperblock(errno.ENOTBLK, f"sb_check failed: blocknr {number}: wanted {block}")
    if found != magic:
        raise BadSuperblock(errno.EILSEQ, f"sb_check failed: magic {found}: wanted {magic}")
    if csum != (expected := checksum(image[4:], salt)):
        raise BadSuperblock(errno.EILSEQ, f"sb_check failed: csum {expected}: wanted {csum}")
