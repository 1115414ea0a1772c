"""What read, write, fsync and fallocate do on the node of a block device (Linux `block/fops.c`), at any byte offset.

Each call waits for its bios, so it blocks while the device is suspended. Errors are OSError.
"""

from __future__ import annotations

import errno
import os
import threading

from dmproto.wire import SECTOR_SIZE

from .bio import Op
from .blockdev import BlockDevice
from .submit import submit_and_wait
from .zeroout import issue_zeroout

__all__ = ["fallocate", "fsync", "read", "write"]

#: FALLOC_FL_*
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10


def read(bdev: BlockDevice, offset: int, length: int) -> memoryview:
    """At most `length` bytes: cut short at the end of the device, nothing past it."""
    length = min(length, bdev.bytes - offset)
    if length <= 0:
        return memoryview(b"")
    data, skip = _read_sectors(bdev, offset, length)
    return data[skip : skip + length]


def write(bdev: BlockDevice, offset: int, data: memoryview) -> int:
    """How many bytes were written: cut short at the end of the device; past it ENOSPC. A logical block that is not
    written as a whole is read first."""
    if bdev.read_only:
        raise _error(errno.EPERM, bdev)
    if not data:
        return 0
    room = bdev.bytes - offset
    if room <= 0:
        raise _error(errno.ENOSPC, bdev)
    data = data[:room]
    if (offset | len(data)) % bdev.limits.logical_block_size:
        with bdev.read_modify_write:
            whole, skip = _read_sectors(bdev, offset, len(data))
            whole[skip : skip + len(data)] = data
            _submit(bdev, Op.WRITE, offset - skip, whole)
    else:
        _submit(bdev, Op.WRITE, offset, data)
    return len(data)


def fsync(bdev: BlockDevice) -> None:
    """All that was written is on stable storage."""
    _check(submit_and_wait(bdev, Op.FLUSH), bdev)


def fallocate(bdev: BlockDevice, mode: int, offset: int, length: int) -> None:
    """Zero a range (`blkdev_fallocate`): ZERO_RANGE, or PUNCH_HOLE with KEEP_SIZE where the device can."""
    if mode not in (ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE):
        raise _error(errno.EOPNOTSUPP, bdev)
    if offset >= bdev.bytes:
        raise _error(errno.EINVAL, bdev)
    if offset + length > bdev.bytes and not mode & KEEP_SIZE:
        raise _error(errno.EINVAL, bdev)
    length = min(length, bdev.bytes - offset)
    if (offset | length) % bdev.limits.logical_block_size:
        raise _error(errno.EINVAL, bdev)
    if bdev.read_only:
        raise _error(errno.EPERM, bdev)
    if mode & PUNCH_HOLE and not bdev.limits.write_zeroes:
        raise _error(errno.EOPNOTSUPP, bdev)
    errors: list[int] = []
    ended = threading.Event()

    def done(error: int) -> None:
        errors.append(error)
        ended.set()

    unmap = bool(mode & PUNCH_HOLE)
    issue_zeroout(bdev, offset // SECTOR_SIZE, length // SECTOR_SIZE, done, unmap=unmap)
    ended.wait()
    _check(errors[0], bdev)


def _read_sectors(bdev: BlockDevice, offset: int, length: int) -> tuple[memoryview, int]:
    """The logical blocks that hold a range, and where in them it begins."""
    block = bdev.limits.logical_block_size
    skip = offset % block
    data = memoryview(bytearray(-(-(skip + length) // block) * block))
    _submit(bdev, Op.READ, offset - skip, data)
    return data, skip


def _submit(bdev: BlockDevice, op: Op, offset: int, data: memoryview) -> None:
    _check(submit_and_wait(bdev, op, offset // SECTOR_SIZE, len(data) // SECTOR_SIZE, data), bdev)


def _check(error: int, bdev: BlockDevice) -> None:
    if error:
        raise _error(error, bdev)


def _error(number: int, bdev: BlockDevice) -> OSError:
    return OSError(number, os.strerror(number), bdev.path)
