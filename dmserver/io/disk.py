"""Disks: block devices backed by a file, a real block device, or memory.

Memory is an anonymous file (memfd), so every disk is a descriptor while it is open.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import cast
from weakref import finalize

from dmproto.wire import SECTOR_SIZE, Dev

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


_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_PAGE = 4096


def _libc_fallocate() -> Callable[[int, int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).fallocate64
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return cast(Callable[[int, int, int, int], int], function)


_fallocate = _libc_fallocate()


class Disk(BlockDevice):
    """`backing` is a path, or `ram:SIZE`. The file is open while the disk has openers; memory lives as long as
    the disk. OSError when the file cannot be opened, ValueError for a malformed size.

    It begins at the byte `offset` of its backing and has at most `limit` bytes of it (0: all).

    Like Linux's, a ram disk cannot discard; a file or device discards by punching holes, as the loop driver does.
    """

    offset = limit = 0
    #: Of a loop device: it loses its backing with the last close; it was asked to have partitions.
    autoclear = partscan = False

    def __init__(self, path: str, dev: Dev, backing: str, *, read_only: bool = False) -> None:
        super().__init__(path, dev)
        self.backing = backing
        self.read_only = read_only
        self._ram = -1
        #: The backing is a block device.
        self.is_device = False
        self.fd = -1
        if backing.startswith("ram:"):
            size = parse_size(backing[4:])
            self._ram = self.fd = os.memfd_create(path)
            self._close_ram = finalize(self, os.close, self._ram)
            os.ftruncate(self._ram, size)
            self._size = size // SECTOR_SIZE
            self.limits.physical_block_size = self.limits.io_min = _PAGE
        else:
            self.backing = os.path.abspath(backing)
            self._size = self._measure()
            self.limits.discard = self.limits.write_zeroes = True
            self.limits.discard_granularity = _PAGE
            self.request_based = True

    def _measure(self) -> int:
        found = os.stat(self.backing)
        if stat.S_ISREG(found.st_mode):
            return self._part(found.st_size)
        if not stat.S_ISBLK(found.st_mode):
            raise OSError(errno.ENOTBLK, "neither a file nor a block device", self.backing)
        self.is_device = True
        fd = os.open(self.backing, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._part(os.lseek(fd, 0, os.SEEK_END))
        finally:
            os.close(fd)

    def _part(self, size: int) -> int:
        """Sectors, if the backing has `size` bytes."""
        size = max(0, size - self.offset)
        return (min(size, self.limit) if self.limit else size) // SECTOR_SIZE

    @property
    def bound(self) -> bool:
        """It has a backing; a loop device may have none."""
        return True

    @property
    def is_whole(self) -> bool:
        """The bytes of the disk are those of its backing, from the first to the last."""
        return not (self.offset or self.limit)

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

    def free(self) -> None:
        """Give the memory of a `ram:` disk back. Nothing is read or written any more."""
        if self._ram >= 0:
            self._close_ram()
            self._ram = self.fd = -1

    def submit_bio(self, bio: Bio) -> None:
        try:
            error = self._perform(bio)
        except OSError as failure:
            error = failure.errno or errno.EIO
        bio.endio(error)

    def _perform(self, bio: Bio) -> int:
        offset, length = self.offset + bio.sector * SECTOR_SIZE, bio.nr_sectors * SECTOR_SIZE
        if bio.sector < 0 or bio.sector + bio.nr_sectors > self._size:
            return errno.EIO
        op, data = bio.op, bio.data
        if op is Op.READ:
            return self.read_into(data, offset) if data is not None else errno.EINVAL
        if op is Op.FLUSH:
            os.fdatasync(self.fd)
            return 0
        if self.read_only:
            return errno.EPERM
        if op is Op.WRITE:
            error = self.write_from(data, offset) if data is not None else errno.EINVAL
        elif op is Op.DISCARD and not self.limits.discard:
            error = errno.EOPNOTSUPP
        else:
            error = self._zero(offset, length)
        if bio.fua and not error:
            os.fdatasync(self.fd)
        return error

    def read_into(self, data: memoryview, offset: int) -> int:
        """Fill `data` from the byte `offset`; an errno or 0. EIO where the file ends too early. May raise OSError."""
        while data:
            count = os.preadv(self.fd, [data], offset)
            if count == len(data):
                return 0
            if not count:
                return errno.EIO
            data, offset = data[count:], offset + count
        return 0

    def write_from(self, data: memoryview, offset: int) -> int:
        """Write all of `data` at the byte `offset`; an errno or 0. May raise OSError."""
        while data:
            count = os.pwrite(self.fd, data, offset)
            if count == len(data):
                return 0
            if not count:
                return errno.EIO
            data, offset = data[count:], offset + count
        return 0

    def holds(self, sector: int, nr_sectors: int) -> bool:
        """Whether the backing is long enough for these sectors right now; a file may have shrunk."""
        return os.fstat(self.fd).st_size >= (sector + nr_sectors) * SECTOR_SIZE or self.is_device

    def allocation(self, sector: int, nr_sectors: int) -> Iterator[tuple[int, bool]]:
        """The sectors as runs of (bytes, whether it is a hole), as far as the backing can tell."""
        at, end = sector * SECTOR_SIZE, (sector + nr_sectors) * SECTOR_SIZE
        while at < end:
            stop = end
            hole = False
            try:
                data = os.lseek(self.fd, at, os.SEEK_DATA)
                hole = data > at
                stop = min(end, data if hole else os.lseek(self.fd, at, os.SEEK_HOLE))
            except OSError as failure:
                hole = failure.errno == errno.ENXIO  # no data from here on
            stop -= stop % SECTOR_SIZE if stop < end else 0
            if stop <= at:
                stop, hole = min(end, at + SECTOR_SIZE), False
            yield stop - at, hole
            at = stop

    def _zero(self, offset: int, length: int) -> int:
        if not length or not _fallocate(self.fd, _PUNCH_HOLE_KEEP_SIZE, offset, length):
            return 0
        if ctypes.get_errno() not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
            return ctypes.get_errno()
        zeroes = memoryview(bytes(min(length, 1 << 20)))
        for at in range(offset, offset + length, len(zeroes)):
            if error := self.write_from(zeroes[: offset + length - at], at):
                return error
        return 0
