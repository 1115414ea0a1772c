"""Disks: block devices backed by a file, a real block device, or memory.

Memory is an anonymous file (memfd), so every disk is a descriptor while it is open.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from dmproto.records import SECTOR_SIZE, Dev

from .bio import Bio, Op
from .blockdev import BlockDevice

__all__ = ["Disk", "parse_size"]

_SUFFIXES = {"": 1, "s": SECTOR_SIZE, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of `64M`, `512k`, `2048s` (sectors) or a plain count. ValueError tells what was expected."""
    digits = text.rstrip("sSkKmMgGtT")
    suffix = text[len(digits) :].lower()
    if not digits.isdecimal() or suffix not in _SUFFIXES:
        raise ValueError(f"size {text!r}: expected a number with an optional suffix s, k, M, G or T")
    return int(digits) * _SUFFIXES[suffix]


class Disk(BlockDevice):
    """`backing` is a path, or `ram:SIZE`. The file is open while the disk has openers; memory lives as long as
    the disk. OSError when the file cannot be opened, ValueError for a malformed size."""

    def __init__(self, path: str, dev: Dev, backing: str, *, read_only: bool = False) -> None:
        super().__init__(path, dev)
        self.backing = backing
        self.read_only = read_only
        self.limits.discard = self.limits.write_zeroes = True
        self.limits.discard_granularity = 4096
        self._ram = -1
        self.fd = -1
        if backing.startswith("ram:"):
            size = parse_size(backing[4:])
            self._ram = self.fd = os.memfd_create(path)
            os.ftruncate(self._ram, size)
            self._size = size // SECTOR_SIZE
        else:
            self._size = self._measure()

    def _measure(self) -> int:
        found = os.stat(self.backing)
        if stat.S_ISREG(found.st_mode):
            return found.st_size // SECTOR_SIZE
        if not stat.S_ISBLK(found.st_mode):
            raise OSError(errno.ENOTBLK, "neither a file nor a block device", self.backing)
        fd = os.open(self.backing, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.lseek(fd, 0, os.SEEK_END) // SECTOR_SIZE
        finally:
            os.close(fd)

    @property
    def size(self) -> int:
        return self._size

    def first_open(self) -> None:
        if self._ram < 0:
            mode = os.O_RDONLY if self.read_only else os.O_RDWR
            self.fd = os.open(self.backing, mode | os.O_CLOEXEC)
            self._size = self._measure()

    def last_close(self) -> None:
        if self._ram < 0:
            os.close(self.fd)
            self.fd = -1

    def submit_bio(self, bio: Bio) -> None:
        try:
            error = self._perform(bio)
        except OSError as failure:
            error = failure.errno or errno.EIO
        bio.endio(error)

    def _perform(self, bio: Bio) -> int:
        offset, length = bio.sector * SECTOR_SIZE, bio.nr_sectors * SECTOR_SIZE
        if bio.sector + bio.nr_sectors > self._size:
            return errno.EIO
        if bio.op is Op.READ:
            assert bio.data is not None
            return 0 if os.preadv(self.fd, [bio.data], offset) == length else errno.EIO
        if bio.op is Op.FLUSH:
            os.fdatasync(self.fd)
            return 0
        if self.read_only:
            return errno.EPERM
        if bio.op is Op.WRITE:
            assert bio.data is not None
            written = os.pwrite(self.fd, bio.data, offset)
        else:
            written = self._zero(offset, length)
        if bio.fua:
            os.fdatasync(self.fd)
        return 0 if written == length else errno.EIO

    def _zero(self, offset: int, length: int) -> int:
        zeroes = bytes(min(length, 1 << 20))
        for at in range(offset, offset + length, len(zeroes) or 1):
            os.pwrite(self.fd, zeroes[: offset + length - at], at)
        return length

    @classmethod
    def for_path(cls, path: str, dev: Dev) -> Disk:
        """A disk for an existing file or block device that a table names by its own path."""
        return cls(path, dev, str(Path(path)))
