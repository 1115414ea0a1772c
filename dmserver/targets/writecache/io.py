"""How a writecache commits, discards and writes back (Linux `drivers/md/dm-writecache.c`), as jobs of two queues.

`turns` is the kernel's mutex: a job of it has the cache to itself, and bios are mapped while none runs. `writebacks` is
the kernel's work queue: a job of it takes blocks, copies them to the origin, and sets them free, in turns of its own.

A commit writes the entries of all blocks that came into use, waits for their data, flushes, and writes a super block
with a higher `seq_count`; then they count. A block comes free once its copy is flushed; its entry is written before
anything else may use the block, so that a crash finds the old data or the new at every sector, never another's.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial

from ...model.dm_target import BlockDevice, Kcopyd, Op
from ..serial import Job, SerialQueue
from ..steps import Done, Request, Step
from .cache import Cache, Entry

__all__ = ["InFlight", "WritecacheIo"]

#: How many blocks a writeback takes at a time, unless it is to take all (`WRITEBACK_LATENCY`).
WRITEBACK_LATENCY = 64

#: A block is written back when its age comes as close to the limit as a part in so many (`MAX_AGE_DIV`).
MAX_AGE_DIV = 16

Steps = Generator[Step, int, None]
Run = list[Entry]


class InFlight:
    """Counts bios under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._then: Done | None = None
        self.count = 0

    def begin(self) -> None:
        with self._lock:
            self.count += 1

    def end(self) -> None:
        with self._lock:
            self.count -= 1
            if self.count or self._then is None:
                return
            then, self._then = self._then, None
        then(0)

    def idle(self, done: Done) -> None:
        """A `Step`: wait until none is under way. Only one may wait."""
        with self._lock:
            if self.count:
                self._then = done
                return
        done(0)


class _Copies:
    """Runs of blocks on their way to the origin, no more than `limit` blocks at once; `done(errno)` at the end."""

    def __init__(self, runs: list[Run], limit: int, copy: Callable[[Run, Done], None], done: Done) -> None:
        self._waiting: Iterator[Run] = iter(runs)
        self._runs_left = len(runs)
        self._limit = limit
        self._copy = copy
        self._done = done
        self._blocks = 0
        self._error = 0
        self._lock = threading.Lock()
        self._pumping = False

    def pump(self) -> None:
        """Start what may start."""
        with self._lock:
            if self._pumping:
                return
            self._pumping = True
        while run := self._take():
            self._copy(run, partial(self._ended, run))

    def _take(self) -> Run | None:
        with self._lock:
            has_room = not self._limit or self._blocks < self._limit
            run = next(self._waiting, None) if has_room else None
            self._pumping = run is not None
            self._blocks += len(run or ())
            return run

    def _ended(self, run: Run, error: int) -> None:
        with self._lock:
            self._error = self._error or error
            self._blocks -= len(run)
            self._runs_left -= 1
            finished = not self._runs_left
        if finished:
            self._done(self._error)
        else:
            self.pump()


class WritecacheIo:
    """`start`: where the cache begins on `device`, in sectors. `low_watermark`: blocks are written back until more than
    so many are free; `max_age`: or until none is as old as that, in seconds; `jobs`: so many are copied at once (0: no
    limit). `report` takes a line of the log. `failed`: an errno that ended it all. `stopped`: nothing is written back
    but what `drain` is asked for."""

    def __init__(
        self,
        cache: Cache,
        origin: BlockDevice,
        device: BlockDevice,
        start: int,
        *,
        now: Callable[[], float],
        report: Callable[[str], None],
    ) -> None:
        self.cache = cache
        self._origin = origin
        self._device = device
        self._start = start
        self._now = now
        self._report = report
        self.low_watermark = 0
        self.max_age = float("inf")
        self.jobs = 0
        self.failed = 0
        self.stopped = True
        #: Called once, when blocks have come free.
        self.blocked: list[Callable[[], None]] = []
        self.turns = SerialQueue()
        self.writebacks = SerialQueue()
        self.reads = InFlight()
        self.writes = InFlight()
        self._kcopyd = Kcopyd()

    def block_sector(self, entry: Entry) -> int:
        """Where a block lies on the cache device."""
        return self._start + self.cache.metadata.sectors + entry.index * self.cache.block_sectors

    def fail(self, error: int, text: str) -> None:
        """`writecache_error`: the first is told, and all writes fail from then on."""
        if not self.failed:
            self.failed = error
            self._report(text)

    def _result(self) -> int:
        """What a bio gets that had to wait for a job."""
        return errno.EIO if self.failed else 0

    # -- metadata ---------------------------------------------------------------------------------------

    def _flush_device(self, device: BlockDevice) -> Steps:
        error = yield Request(Op.FLUSH, device, 0, None)
        if error:
            self.fail(error, f"error flushing metadata: {-error}")

    def _write_metadata(self, *, wait_for_data: bool = False) -> Steps:
        """`ssd_commit_flushed`."""
        for sector, data in self.cache.metadata.take_changed():
            error = yield Request(Op.WRITE, self._device, self._start + sector, data)
            if error:
                self.fail(errno.EIO, "error writing metadata")
        if wait_for_data:
            yield self.writes.idle
        yield from self._flush_device(self._device)

    def format(self) -> Job:
        """Make an empty cache; the super block becomes valid last."""
        self.cache.metadata.format()
        yield from self._write_metadata()
        self.cache.metadata.set_magic()
        yield from self._write_metadata()
        return 0

    def load(self) -> Job:
        """Take up the cache on the device (`writecache_resume`)."""
        metadata = self.cache.metadata
        error = yield Request(Op.READ, self._device, self._start, memoryview(metadata.image))
        if error:
            self.fail(error, f"unable to read metadata: {-error}")
        if self.failed:
            metadata.forget()
        if self.cache.load(self._now(), partial(self.fail, errno.EINVAL)):
            metadata.mark_all()
            yield from self._write_metadata()
        return 0

    def flush(self) -> Job:
        """Commit (`writecache_flush`)."""
        yield from self._flush()
        return self._result()

    def _flush(self) -> Steps:
        cache = self.cache
        cache.uncommitted = 0
        if entries := cache.prepare_commit():
            yield self.reads.idle
            yield from self._write_metadata(wait_for_data=True)
            cache.commit()
            error = yield Request(Op.WRITE, self._device, self._start, cache.metadata.superblock(), fua=True)
            if error:
                self.fail(error, "error writing superblock")
            if cache.release_older(entries):
                yield from self._write_metadata()
        elif cache.overwrote:
            yield self.writes.idle
            yield from self._flush_device(self._device)
        cache.overwrote = False

    def discard(self, sector: int, count: int) -> Job:
        """Forget what the cache has of these sectors (`writecache_discard`)."""
        cache = self.cache
        if entries := [entry for entry in cache.cached(sector, sector + count) if not entry.writing]:
            yield self.reads.idle
            yield self.writes.idle
            for entry in entries:
                cache.uncommitted -= not cache.is_committed(entry)
                cache.release(entry)
            yield from self._write_metadata()
        return self._result()

    def wait_for_writes(self) -> Job:
        yield self.writes.idle
        return 0

    # -- writeback --------------------------------------------------------------------------------------

    def write_back(self, *, everything: bool = False) -> Job:
        """A job of `writebacks`: copy blocks to the origin until enough are free, or once all that there are."""
        while True:
            runs: list[Run] = []
            yield partial(self.turns.start, self._choose(runs, everything=everything))
            if runs:
                error = yield partial(self._copy_all, runs)
                yield partial(self.turns.start, self._finish(runs, error))
                blocked, self.blocked = self.blocked, []
                for go_on in blocked:
                    go_on()
            if everything or not runs:
                return self._result()

    def drain(self, *, everything: bool) -> Job:
        """A job of `writebacks`: commit, and write back `everything` or nothing."""
        yield partial(self.turns.start, self.flush())
        if everything:
            yield from self.write_back(everything=True)
        return self._result()

    def _choose(self, runs: list[Run], *, everything: bool) -> Job:
        """Take blocks out of use for writes, and add them to `runs`."""
        cache = self.cache
        if cache.overwrote:
            yield self.writes.idle
        if everything:
            yield from self._flush()
            for entry in sorted(cache.lru.values(), key=lambda entry: entry.sector):
                if not (entry.writing or entry.older or self.failed):
                    runs.append(cache.take_run(entry))
            return 0
        taken = 0
        while taken < WRITEBACK_LATENCY and not (self.failed or self.stopped):
            oldest = cache.oldest
            if oldest is None or not self._is_due(oldest):
                break
            if cache.is_committed(oldest):
                runs.append(cache.take_run(oldest))
                taken += len(runs[-1])
            else:
                yield from self._flush()
        return 0

    def _is_due(self, oldest: Entry) -> bool:
        if self.cache.free + self.cache.writing <= self.low_watermark:
            return True
        return self._now() - oldest.age >= self.max_age - self.max_age / MAX_AGE_DIV

    def _copy_all(self, runs: list[Run], done: Done) -> None:
        _Copies(runs, self.jobs, self._copy, done).pump()

    def _copy(self, run: Run, done: Done) -> None:
        sector = run[0].sector
        count = min(len(run) * self.cache.block_sectors, self._origin.size - sector)
        source, destination = (self._device, self.block_sector(run[0])), (self._origin, sector)
        self._kcopyd.copy(
            source,
            [destination],
            max(count, 0),
            lambda read_failed, write_failed: done(errno.EIO if read_failed or write_failed else 0),
        )

    def _finish(self, runs: list[Run], error: int) -> Job:
        """The copies are done: set their blocks free."""
        yield from self._flush_device(self._origin)
        if error:
            self.fail(error, "copy error")
        for run in runs:
            self.cache.copied(run, keep=bool(self.failed))
        yield self.reads.idle
        yield from self._write_metadata()
        return 0
