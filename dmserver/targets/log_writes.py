"""log-writes: a device whose writes are also written to a log, to replay a crash from (`drivers/md/dm-log-writes.c`).

Arguments: DEVICE LOG_DEVICE. What a flush made durable is logged when the flush ends, a FUA write at once; `mark NAME`
logs a name that `replay-log` can stop at. The log: a super block, then entries, all in logical blocks of DEVICE::

    struct log_write_super { __le64 magic, version, nr_entries; __le32 sectorsize; };
    struct log_write_entry { __le64 sector, nr_sectors, flags, data_len; };

The name of a mark follows its entry in the same block, data begin in the next one.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..model.dm_target import (
    SECTOR_SIZE,
    Bio,
    DmPdev,
    MapResult,
    Op,
    QueueLimits,
    StatusType,
    Target,
    TargetError,
)

__all__ = ["LogWrites"]

MAGIC = 0x6A736677736872
VERSION = 1
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
BLK_STS_IOERR = 10


@dataclass(slots=True)
class _Block:
    """An entry to be: `sector` and `nr_sectors` in logical blocks. `before`: what a flush makes durable."""

    sector: int
    nr_sectors: int
    flags: int
    data: bytes = b""
    before: list[_Block] = field(default_factory=list)


class _Carried:
    block: _Block | None = None


class LogWrites(Target):
    name = "log-writes"
    version = (1, 1, 0)
    per_bio_data = _Carried
    num_flush_bios = num_discard_bios = 1
    flush_supported = discards_supported = True

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) < 2:
            raise self.refuse("Invalid argument count")
        self.dev = self.get_device(argv[0])
        self.log_dev = self.get_device(argv[1], "Log device lookup failed")
        self.block_size = self.dev.bdev.limits.logical_block_size
        self.scale = self.block_size // SECTOR_SIZE
        self.next_sector = self.scale
        self.logged_entries = 0
        self.logging = True
        self._unflushed: list[_Block] = []
        self._waiting: deque[_Block] = deque()
        self._busy = False
        self._changed = threading.Condition(threading.RLock())

    def dtr(self) -> None:
        """All that was written gets into the log, and a last mark."""
        with self._changed:
            self._waiting += self._unflushed
            self._changed.wait_for(lambda: not self._busy)
            self._busy = True
        self._mark("dm-log-writes-end")
        while writes := self._take():
            for sector, data in writes:
                if self.logging and (error := self.do_io(Op.WRITE, self.log_dev.bdev, sector, data)):
                    self._fail(error)

    # -- bios -------------------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        bio.bdev = self.dev.bdev
        if not self.logging or bio.op is Op.READ or not (bio.nr_sectors or bio.op is Op.FLUSH):
            return MapResult.REMAPPED
        flags = {Op.FLUSH: FLUSH, Op.DISCARD: DISCARD}.get(bio.op, 0) | (FUA if bio.fua else 0)
        block = _Block(bio.sector // self.scale, bio.nr_sectors // self.scale, flags, bytes(bio.data or b""))
        bio.per_bio.block = block
        if bio.op is Op.FLUSH:
            with self._changed:
                block.before, self._unflushed = self._unflushed, []
        if bio.op is Op.DISCARD and not self.dev.bdev.limits.discard:
            bio.endio()
            return MapResult.SUBMITTED
        return MapResult.REMAPPED

    def end_io(self, bio: Bio, error: int) -> int:
        block: _Block | None = bio.per_bio.block
        if block is None:
            return error
        with self._changed:
            if not block.flags & (FLUSH | FUA):
                self._unflushed.append(block)
                return error
            self._waiting += [*block.before, block]
            block.before = []
        self.queue_work(self._work)
        return error

    # -- the log ----------------------------------------------------------------------------------------

    def _mark(self, name: str) -> None:
        most = self.block_size - ENTRY.size - 1
        data = name.encode("utf-8", "surrogateescape")[:most]
        with self._changed:
            self._waiting.append(_Block(0, 0, MARK, data))

    def _take(self) -> list[tuple[int, memoryview]]:
        """What to write for the next entry: (sector, data), the super block last; nothing if none is waiting."""
        with self._changed:
            if not self._waiting or not self.logging:
                self._waiting.clear()
                return []
            block = self._waiting.popleft()
            sector = self.next_sector
            self.next_sector += self.scale * (1 if block.flags & DISCARD else 1 + block.nr_sectors)
            if self.next_sector >= self.log_dev.bdev.size:
                self.log("Ran out of space on the logdev")
                self.logging = False
                self._waiting.clear()
                return []
            self.logged_entries += 1
            is_mark = bool(block.flags & MARK)
            entry = ENTRY.pack(block.sector, block.nr_sectors, block.flags, len(block.data) if is_mark else 0)
            head = (entry + block.data if is_mark else entry).ljust(self.block_size, b"\0")
            writes = [(sector, memoryview(head if is_mark else head + block.data))]
            if block.flags & (FUA | MARK):
                super_block = SUPER.pack(MAGIC, VERSION, self.logged_entries, self.block_size)
                writes.append((0, memoryview(super_block.ljust(self.block_size, b"\0"))))
            return writes

    def _work(self) -> None:
        with self._changed:
            if self._busy:
                return
            writes = self._take()
            self._busy = bool(writes)
        if writes:
            self._write(writes)

    def _write(self, writes: list[tuple[int, memoryview]]) -> None:
        """Write one thing after the other, then look for the next entry."""
        (sector, data), *rest = writes

        def done(error: int) -> None:
            if error:
                self._fail(error)
            if rest and not error:
                self._write(rest)
                return
            with self._changed:
                self._busy = False
                more = bool(self._waiting)
                self._changed.notify_all()
            if more:
                self.queue_work(self._work)

        self.submit(Op.WRITE, self.log_dev.bdev, sector, data, done)

    def _fail(self, error: int) -> None:
        self.log(f"Error writing log block, error={BLK_STS_IOERR}.")
        self.logging = False

    # -- what it tells ----------------------------------------------------------------------------------

    def message(self, argv: Sequence[str]) -> str | None:
        if len(argv) != 2:
            self.log(f"Invalid log-writes message arguments, expect 2 arguments, got {len(argv)}")
            raise TargetError(errno.EINVAL)
        if argv[0].lower() != "mark":
            self.log(f"Unrecognised log writes target message received: {argv[0]}")
            raise TargetError(errno.EINVAL)
        self._mark(argv[1])
        self.queue_work(self._work)
        return None

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.TABLE:
            return f"{self.dev.number} {self.log_dev.number}"
        disabled = "" if self.logging else " logging_disabled"
        return f"{self.logged_entries} {self.next_sector - 1}{disabled}"

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.dev, 0, self.len

    def io_hints(self, limits: QueueLimits) -> None:
        below = self.dev.bdev.limits
        if not below.discard:
            limits.discard_granularity = self.block_size
        limits.logical_block_size = below.logical_block_size
        limits.physical_block_size = limits.io_min = below.physical_block_size
