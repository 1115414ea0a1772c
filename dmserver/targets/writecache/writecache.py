"""writecache: writes go to a fast device first, and to the slow one later (Linux `drivers/md/dm-writecache.c`).

Arguments: s ORIGIN CACHE_DEVICE BLOCK_SIZE NUM [OPTION...]; BLOCK_SIZE in bytes. A cache device whose super block has
neither magic nor version is formatted when it is loaded. Reads of what is not cached go to the origin and stay there.

What the kernel can do and this cannot is refused: `p`, a cache in persistent memory. A FUA write is committed when it
ends; the kernel leaves that to the next flush.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from functools import partial

from ...model.dm_target import (
    SECTOR_SIZE,
    Arguments,
    Bio,
    DmPdev,
    MapResult,
    Op,
    QueueLimits,
    StatusType,
    Target,
    TargetError,
    is_suspended,
    parse_sector,
    parse_u32,
)
from ..serial import Job, SerialQueue
from ..steps import Done
from .bios import Bios, Carried, Stats
from .cache import Cache
from .io import MAX_AGE_DIV, WritecacheIo
from .layout import MAGIC, VERSION, Metadata, Superblock, fit, metadata_size

__all__ = ["Writecache"]

MAX_OPTIONS = 18
PAGE_SIZE = 4096
HIGH_WATERMARK, LOW_WATERMARK = 50, 45
AUTOCOMMIT_BLOCKS = 65536
#: Milliseconds.
AUTOCOMMIT_TIME = 1000
PAUSE_WRITEBACK = 3000

#: Options with a number, the most that it may be, in the order of the table line.
NUMBERS = {
    "start_sector": (1 << 64) - 1,
    "high_watermark": 100,
    "low_watermark": 100,
    "writeback_jobs": (1 << 32) - 1,
    "autocommit_blocks": (1 << 32) - 1,
    "autocommit_time": 3600000,
    "max_age": 86400000,
    "cleaner": None,
    "metadata_only": None,
    "pause_writeback": 60000,
}

#: Seconds between two looks at what is old, or idle, are no fewer than a tick and no more than this.
TICK, LONGEST_PAUSE = 0.004, 1.0
U64 = 1 << 64


class Writecache(Target):
    name = "writecache"
    version = (1, 6, 0)
    per_bio_data = Carried
    num_flush_bios = 2
    num_discard_bios = 1
    flush_supported = True

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        args = Arguments(argv)
        mode = self._shift(args).lower()
        if mode == "p":
            raise self.refuse("Persistent memory or DAX not supported on this system", errno.EOPNOTSUPP)
        if mode != "s":
            raise self.refuse("Bad arguments")
        self.dev = self.get_device(self._shift(args), "Origin data device lookup failed")
        self.ssd_dev = self.get_device(self._shift(args), "Cache data device lookup failed")
        self.block_size = self._parse_block_size(self._shift(args))
        self.options: dict[str, int] = {}
        self._parse_options(args)
        self.suspended, self.flush_on_suspend = True, False
        self._timer_runs = self._woken = False
        self._age_timer: object | None = None
        self._open()
        self.bios.metadata_only = "metadata_only" in self.options
        if "cleaner" in self.options:
            self._activate_cleaner()

    def _shift(self, args: Arguments) -> str:
        if not args:
            raise self.refuse("Bad arguments")
        return args.shift()

    def _parse_block_size(self, text: str) -> int:
        try:
            size = parse_u32(text)
        except ValueError:
            size = 0
        if not SECTOR_SIZE <= size <= PAGE_SIZE or size & size - 1:
            raise self.refuse("Invalid block size")
        if size < max(dev.bdev.limits.logical_block_size for dev in (self.dev, self.ssd_dev)):
            raise self.refuse("Block size is smaller than device logical block size")
        return size

    def _parse_options(self, args: Arguments) -> None:
        try:
            options = Arguments(args.take(args.group(0, MAX_OPTIONS)))
        except ValueError:
            raise self.refuse("Invalid number of feature args") from None
        try:
            while options:
                self._parse_option(options)
        except (KeyError, ValueError):
            raise self.refuse("Invalid optional argument") from None
        if self._option("high_watermark", HIGH_WATERMARK) < self._option("low_watermark", LOW_WATERMARK):
            raise self.refuse("High watermark must be greater than or equal to low watermark")

    def _parse_option(self, options: Arguments) -> None:
        name = options.shift().lower()
        most = NUMBERS[name]
        if most is None:
            self.options[name] = 1
            return
        value = (parse_sector if name == "start_sector" else parse_u32)(options.shift())
        if value > most or (name == "start_sector" and value >= self.ssd_dev.bdev.size):
            raise ValueError(f"{name} {value}: expected less")
        self.options[name] = value

    def _option(self, name: str, default: int) -> int:
        return self.options.get(name, default)

    # -- the cache --------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Look at the super block, or make one."""
        start = self._option("start_sector", 0)
        size = (self.ssd_dev.bdev.size - start) * SECTOR_SIZE
        n_blocks = fit(size, self.block_size)
        if not n_blocks:
            raise self.refuse("Invalid device size", errno.ENOSPC)
        first = bytearray(self.block_size)
        error = errno.EAGAIN if is_suspended(self.ssd_dev.bdev) else 0
        if error := error or self.do_io(Op.READ, self.ssd_dev.bdev, start, memoryview(first)):
            raise self.refuse("Unable to read first block of metadata", error)
        found = Superblock(first)
        is_new = not found.magic and not found.version
        if not is_new:
            self._check(found, size)
            n_blocks = found.n_blocks
        self._make(Metadata(n_blocks, self.block_size), start)
        if is_new:
            self._run(self.io.turns, self.io.format())

    def _check(self, found: Superblock, size: int) -> None:
        if found.magic != MAGIC:
            raise self.refuse("Invalid magic in the superblock")
        if found.version != VERSION:
            raise self.refuse("Invalid version in the superblock")
        if found.block_size != self.block_size:
            raise self.refuse("Block size does not match superblock")
        needed = metadata_size(found.n_blocks, self.block_size) + found.n_blocks * self.block_size
        if needed >= U64:
            raise self.refuse("Overflow in size calculation")
        if needed > size:
            raise self.refuse("Memory area is too small")

    def _make(self, metadata: Metadata, start: int) -> None:
        origin, device = self.dev.bdev, self.ssd_dev.bdev
        self.io = WritecacheIo(Cache(metadata), origin, device, start, now=self.now, report=self.log)
        self.bios = Bios(
            self.io,
            origin,
            device,
            now=self.now,
            commit=partial(self.queue_work, self._commit),
            written=self._schedule_commit,
            wake=self._wake,
        )
        high = self._option("high_watermark", HIGH_WATERMARK)
        low = self._option("low_watermark", LOW_WATERMARK)
        self.bios.high_watermark = (metadata.n_blocks * (100 - high) + 50) // 100
        self.io.low_watermark = (metadata.n_blocks * (100 - low) + 50) // 100
        self.bios.autocommit_blocks = self._option("autocommit_blocks", AUTOCOMMIT_BLOCKS)
        self.io.jobs = self._option("writeback_jobs", 0)
        if "max_age" in self.options:
            self.io.max_age = self.options["max_age"] / 1000

    def _activate_cleaner(self) -> None:
        """Write everything back, and put nothing new into the cache."""
        self.flush_on_suspend = self.bios.cleaner = True
        self.bios.high_watermark = self.io.low_watermark = self.io.cache.metadata.n_blocks

    # -- bios -------------------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        if bio.op is Op.FLUSH:
            return self._map_flush(bio)
        bio.sector = self.offset(bio.sector)
        if (bio.sector | bio.nr_sectors) & self.block_size // SECTOR_SIZE - 1:
            size = bio.nr_sectors * SECTOR_SIZE
            self.log(f"I/O is not aligned, sector {bio.sector}, size {size}, block size {self.block_size}")
            return MapResult.KILL
        if bio.op is not Op.DISCARD:
            return self.bios.map(bio)
        self.bios.stats.discards += bio.nr_sectors * SECTOR_SIZE // self.block_size
        if self.io.failed:
            return MapResult.KILL
        self.io.turns.start(self.io.discard(bio.sector, bio.nr_sectors), lambda error: self._discarded(bio, error))
        return MapResult.SUBMITTED

    def _map_flush(self, bio: Bio) -> MapResult:
        """The first copy commits, the second flushes the origin."""
        if self.io.failed:
            return MapResult.KILL
        if bio.target_bio_nr:
            bio.bdev = self.dev.bdev
            return MapResult.REMAPPED
        self.bios.stats.flushes += 1
        self.io.turns.start(self.io.flush(), bio.endio)
        return MapResult.SUBMITTED

    def _discarded(self, bio: Bio, error: int) -> None:
        if error:
            bio.endio(error)
            return
        bio.bdev = self.dev.bdev
        bio.bdev.submit_bio(bio)

    def end_io(self, bio: Bio, error: int) -> int:
        """What is written while a suspension has begun is committed before it is over."""
        self.bios.end_io(bio)
        if self.io.stopped and bio.op is Op.WRITE:
            self._drain()
        return error

    # -- timers -----------------------------------------------------------------------------------------

    def _schedule_commit(self) -> None:
        if not self._timer_runs:
            self._timer_runs = True
            self.call_later(self._option("autocommit_time", AUTOCOMMIT_TIME) / 1000, self._timed_commit)

    def _timed_commit(self) -> None:
        self._timer_runs = False
        self._commit()

    def _commit(self) -> None:
        if not self.suspended and not self.io.failed:
            self._run_in_background(self.io.turns.start, self.io.flush())

    def _run_in_background(self, start: Callable[[Job, Done], None], job: Job) -> None:
        """A suspension waits for it."""
        self.hold()
        start(job, lambda error: self.release())

    def _run(self, queue: SerialQueue, job: Job) -> int:
        """For commands, which wait for it."""
        return queue.run(job, self.dev.bdev, self.ssd_dev.bdev)

    def _wake(self) -> None:
        """There may be something to write back."""
        if not self._woken:
            self._woken = True
            self.queue_work(self._write_back)

    def _write_back(self) -> None:
        """Write back, once no write has gone to the origin for a while."""
        if self.suspended:
            self._woken = False
            return
        pause = self._option("pause_writeback", PAUSE_WRITEBACK) / 1000
        idle = self.bios.around.idle_time
        if idle < pause and not self.bios.cleaner:
            self.call_later(max(TICK, min(pause - idle, LONGEST_PAUSE)), self._write_back)
            return
        self._woken = False
        self._run_in_background(self.io.writebacks.start, self.io.write_back())

    def _start_age_timer(self, timer: object) -> None:
        self._age_timer = timer
        self.call_later(max(self.io.max_age / MAX_AGE_DIV, TICK), lambda: self._look_for_old(timer))

    def _look_for_old(self, timer: object) -> None:
        if timer is self._age_timer and not self.io.failed:
            self._wake()
            self._start_age_timer(timer)

    # -- suspend and resume -----------------------------------------------------------------------------

    def presuspend(self) -> None:
        self.io.stopped = True
        self._drain()

    def _drain(self) -> None:
        self._run_in_background(self.io.writebacks.start, self.io.drain(everything=self.flush_on_suspend))

    def presuspend_undo(self) -> None:
        self.io.stopped = False
        self._wake()

    def postsuspend(self) -> None:
        """A removal does not wait for what is under way."""
        self.suspended = True
        self._age_timer = None
        if not is_suspended(self.ssd_dev.bdev) and not is_suspended(self.dev.bdev):
            self._run(self.io.writebacks, self.io.drain(everything=self.flush_on_suspend))
            self.flush_on_suspend = False

    def preresume(self) -> None:
        """The cache is read while this device is still suspended."""
        if is_suspended(self.ssd_dev.bdev):
            raise TargetError(errno.EAGAIN)

    def resume(self) -> None:
        self._run(self.io.turns, self.io.load())
        self.suspended = self.io.stopped = False
        if self.io.cache.free <= self.bios.high_watermark:
            self._wake()
        if "max_age" in self.options:
            self._start_age_timer(object())

    # -- what it tells ----------------------------------------------------------------------------------

    def message(self, argv: Sequence[str]) -> str | None:
        actions = {
            "flush": self._flush,
            "flush_on_suspend": self._flush_on_suspend,
            "cleaner": self._clean,
            "clear_stats": self._clear_stats,
        }
        action = actions.get(argv[0].lower())
        if action is None:
            self.log(f"unrecognised message received: {argv[0]}")
            raise TargetError(errno.EINVAL)
        if len(argv) != 1:
            raise TargetError(errno.EINVAL)
        action()
        return None

    def _flush(self) -> None:
        if self.suspended:
            raise TargetError(errno.EBUSY)
        if is_suspended(self.ssd_dev.bdev) or is_suspended(self.dev.bdev):
            raise TargetError(errno.EAGAIN)
        if self.io.failed or self._run(self.io.writebacks, self.io.drain(everything=True)):
            raise TargetError(errno.EIO)

    def _flush_on_suspend(self) -> None:
        self.flush_on_suspend = True

    def _clean(self) -> None:
        self._activate_cleaner()
        if not self.suspended:
            self._wake()

    def _clear_stats(self) -> None:
        self.bios.stats = Stats()

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.INFO:
            cache = self.io.cache
            blocks = (cache.metadata.n_blocks, cache.free, cache.writing)
            return " ".join(map(str, (-self.io.failed, *blocks, *astuple(self.bios.stats))))
        options: list[object] = []
        for name, most in NUMBERS.items():
            if name in self.options:
                options += [name] if most is None else [name, self.options[name]]
        words = ["s", self.dev.number, self.ssd_dev.number, self.block_size, len(options), *options]
        return " ".join(map(str, words))

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.dev, 0, self.len

    def io_hints(self, limits: QueueLimits) -> None:
        limits.logical_block_size = max(limits.logical_block_size, self.block_size)
        limits.physical_block_size = max(limits.physical_block_size, self.block_size)
        limits.io_min = max(limits.io_min, self.block_size)
