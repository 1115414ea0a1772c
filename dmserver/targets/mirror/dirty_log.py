"""Which regions of a mirror are in sync, and which may differ (Linux `drivers/md/dm-log.c`, types core and disk).

The disk log keeps the clean bits on a device, so that after a crash only dirty regions are copied again::

    struct log_header_disk {
        __le32 magic;           /* "MiRr" */
        __le32 version;         /* 2 */
        __le64 nr_regions;
    };                          /* sector 0; the bits begin at sector 2, lowest bit first, in words of 64 bits */

A log is not thread-safe: its owner calls it under a lock of its own, except for `write` and `resume`, which do I/O.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence
from typing import ClassVar

from ...model.dm_target import SECTOR_SIZE, Op, StatusType, Target, TargetError, do_io, parse_u32, submit
from ..steps import Done

__all__ = ["CoreLog", "DiskLog", "create"]

PREFIX = "dirty region log"
MAGIC = 0x4D695272
VERSION = 2
_HEADER = struct.Struct("<IIQ")
BITS_AT = 2 * SECTOR_SIZE
UINT_MAX = 0xFFFFFFFF


class CoreLog:
    """A log in memory. Arguments: REGION_SIZE [sync|nosync]. Regions count from 0; `region_size` in sectors."""

    name: ClassVar[str] = "core"

    def __init__(self, target: Target, argv: Sequence[str]) -> None:
        self.target = target
        if not 1 <= len(argv) <= 2:
            raise self._refuse("wrong number of arguments to dirty region log")
        self.sync = argv[1] if len(argv) > 1 else ""
        if self.sync not in ("", "sync", "nosync"):
            raise self._refuse(f"unrecognised sync argument to dirty region log: {self.sync}")
        try:
            size = parse_u32(argv[0])
            if size < 2 or size > target.len or size & size - 1:
                raise ValueError(f"{size}: expected a power of two from 2 to {target.len}")
        except ValueError:
            raise self._refuse(f"invalid region size {argv[0]}") from None
        self.region_size = size
        self.region_count = -(-target.len // size)
        if self.region_count > UINT_MAX:
            raise self._refuse(f"region count exceeds limit of {UINT_MAX}")
        nosync = self.sync == "nosync"
        self.synced = bytearray([nosync]) * self.region_count
        self.sync_count = self.region_count if nosync else 0
        self.recovering: set[int] = set()
        self._search = 0

    def _refuse(self, text: str) -> TargetError:
        self.target.log(text, PREFIX)
        return TargetError(errno.EINVAL)

    def in_sync(self, region: int) -> bool:
        """All legs hold the same there."""
        return bool(self.synced[region])

    def set_region_sync(self, region: int, in_sync: bool) -> None:
        """A region's recovery ended, or a leg missed a write."""
        self.recovering.discard(region)
        self.sync_count += in_sync - self.synced[region]
        self.synced[region] = in_sync

    def get_resync_work(self) -> int | None:
        """The next region to be copied; it counts as recovering until `set_region_sync`."""
        while self._search < self.region_count:
            region = self.synced.find(0, self._search)
            self._search = region + 1 if region >= 0 else self.region_count
            if region >= 0 and region not in self.recovering:
                self.recovering.add(region)
                return region
        return None

    def mark_region(self, region: int) -> None:
        """A write is about to begin there."""

    def clear_region(self, region: int) -> None:
        """No write is under way there, and the legs are equal."""

    def begin_flush(self) -> Callable[[Done], None] | None:
        """What brings the marks so far to the disk: a function that calls back with an errno. None: nothing to do."""
        return None

    def resume(self) -> int:
        """Search for work from the start again. Returns an errno."""
        self._search = 0
        return 0

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.INFO:
            return f"1 {self.name}"
        return " ".join([self.name, str(1 + bool(self.sync)), str(self.region_size), *filter(None, [self.sync])])


class DiskLog(CoreLog):
    """A log on a device. Arguments: DEVICE REGION_SIZE [sync|nosync]. `flush_legs` is called before regions are
    declared clean on the disk."""

    name = "disk"

    def __init__(self, target: Target, argv: Sequence[str], flush_legs: Callable[[Done], None]) -> None:
        self.target = target
        if not 2 <= len(argv) <= 3:
            raise self._refuse("wrong number of arguments to disk dirty region log")
        self.dev = target.get_device(argv[0])
        super().__init__(target, argv[1:])
        self.flush_legs = flush_legs
        self.bits = bytearray(b"\xff") * (-(-self.region_count // 64) * 8)
        block = self.dev.bdev.limits.logical_block_size
        self._size = -(-(BITS_AT + len(self.bits)) // block) * block
        if self._size > self.dev.bdev.bytes:
            raise self._refuse(f"log device {self.dev.number} too small: need {self._size} bytes")
        self.dev_failed = self.dev_flush_failed = self.flush_failed = False
        self._dirtied = self._cleaned = False

    def mark_region(self, region: int) -> None:
        self._dirtied = True
        self.bits[region >> 3] &= ~(1 << (region & 7))

    def clear_region(self, region: int) -> None:
        if not self.flush_failed:
            self._cleaned = True
            self.bits[region >> 3] |= 1 << (region & 7)

    def begin_flush(self) -> Callable[[Done], None] | None:
        dirtied, cleaned = self._dirtied, self._cleaned
        if not dirtied and not cleaned:
            return None
        self._dirtied = self._cleaned = False

        def write(done: Done) -> None:
            image = memoryview(self._image())
            submit(Op.WRITE, self.dev.bdev, 0, image, lambda error: self._written(error, dirtied, done))

        def legs_flushed(error: int, done: Done) -> None:
            if error:  # which regions are clean cannot be told any more
                self.flush_failed = True
                self.bits[:] = bytes(len(self.bits))
            write(done)

        if cleaned:
            return lambda done: self.flush_legs(lambda error: legs_flushed(error, done))
        return write

    def _written(self, error: int, dirtied: bool, done: Done) -> None:
        """Marks of writes that are about to begin have to be stable; those of regions that became clean have time."""
        if error:
            self._fail_device()
        elif dirtied:
            submit(Op.FLUSH, self.dev.bdev, 0, None, lambda error: done(self._flushed(error)))
            return
        done(error)

    def _flushed(self, error: int) -> int:
        if error:
            self.dev_flush_failed = True
            self._fail_device()
        return error

    def _fail_device(self) -> None:
        if not self.dev_failed:
            self.dev_failed = True
            self.target.event()

    def _image(self) -> bytearray:
        image = bytearray(self._size)
        _HEADER.pack_into(image, 0, MAGIC, VERSION, self.region_count)
        image[BITS_AT : BITS_AT + len(self.bits)] = self.bits
        return image

    def resume(self) -> int:
        known = self._read()
        keep = (1 << min(known, self.region_count)) - 1
        bits = int.from_bytes(self.bits, "little") & keep
        if self.sync == "nosync":
            bits |= ((1 << self.region_count) - 1) & ~keep
        self.bits[:] = bits.to_bytes(len(self.bits), "little")
        self.synced = bytearray(bits >> region & 1 for region in range(self.region_count))
        self.sync_count = sum(self.synced)
        self._search = 0
        error = do_io(Op.WRITE, self.dev.bdev, 0, memoryview(self._image()))
        error = error or self._flushed(do_io(Op.FLUSH, self.dev.bdev, 0, None))
        if error:
            self.target.log(f"{self.dev.number}: Failed to write header on dirty region log device", PREFIX)
            self._fail_device()
        return error

    def _read(self) -> int:
        """Read the log; returns how many of its regions count."""
        image = bytearray(self._size)
        if do_io(Op.READ, self.dev.bdev, 0, memoryview(image)):
            self.target.log(f"{self.dev.number}: Failed to read header on dirty region log device", PREFIX)
            self._fail_device()
            return 0
        magic, version, regions = _HEADER.unpack_from(image)
        if self.sync or magic != MAGIC:
            return 0
        if version not in (1, VERSION):
            self.target.log("incompatible disk log version", PREFIX)
            self._fail_device()
            return 0
        self.bits[:] = image[BITS_AT : BITS_AT + len(self.bits)]
        return int(regions)

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.INFO:
            health = "F" if self.dev_flush_failed else "D" if self.dev_failed else "A"
            return f"3 {self.name} {self.dev.number} {health}"
        words = [self.name, str(2 + bool(self.sync)), self.dev.number, str(self.region_size), self.sync]
        return " ".join(filter(None, words))


def create(target: Target, kind: str, argv: Sequence[str], flush_legs: Callable[[Done], None]) -> CoreLog:
    """`dm_dirty_log_create`. TargetError when the log refuses; why is in the kernel log then."""
    if kind == CoreLog.name:
        return CoreLog(target, argv)
    if kind == DiskLog.name:
        return DiskLog(target, argv, flush_legs)
    target.log(f'Module for logging type "{kind}" not found.', PREFIX)
    raise TargetError(errno.EINVAL)
