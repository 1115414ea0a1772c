"""Where the bios of a writecache go: to its cache device, to the origin, or piece by piece to both (`writecache_map` of
Linux `drivers/md/dm-writecache.c`)."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from ...model.dm_target import SECTOR_SIZE, Bio, BlockDevice, MapResult, Op
from ..io_tracker import IoTracker
from .cache import Entry
from .io import InFlight, WritecacheIo

__all__ = ["Bios", "Carried", "Stats"]


@dataclass(slots=True)
class Stats:
    """What INFO tells, in its order; all but flushes in blocks or attempts."""

    reads: int = 0
    read_hits: int = 0
    writes: int = 0
    write_hits_uncommitted: int = 0
    write_hits_committed: int = 0
    writes_around: int = 0
    writes_allocate: int = 0
    writes_blocked_on_freelist: int = 0
    flushes: int = 0
    discards: int = 0


class _Wait(Enum):
    """Why a bio does not go on now."""

    FOR_WRITES = auto()  #: the block to be read is not written yet
    FOR_BLOCK = auto()  #: no block is free for what is being copied to the origin
    FAILED = auto()


@dataclass(slots=True)
class _Piece:
    """Goes to `sector` of `bdev`, counted in `in_flight`, and fills the blocks `fresh`."""

    bdev: BlockDevice
    sector: int
    nr_sectors: int
    in_flight: InFlight | IoTracker | None = None
    fresh: list[Entry] | None = None

    def end(self) -> None:
        for entry in self.fresh or ():
            entry.filled = True
        if self.in_flight is not None:
            self.in_flight.end()


class Carried:
    """What a bio brings along. `whole`: the only piece; else of several `mapped` sectors are on their way, and `left`
    pieces are still out."""

    __slots__ = ("error", "left", "lock", "mapped", "whole")

    def __init__(self) -> None:
        self.whole: _Piece | None = None
        self.mapped = self.error = 0
        self.left = 1
        self.lock = threading.Lock()


class Bios:
    """`cleaner` and `metadata_only`: no write gets a block, for none is known to be of metadata. `commit` is called
    when `autocommit_blocks` are not committed, else `written`; `wake` when no more than `high_watermark` are free."""

    def __init__(
        self,
        io: WritecacheIo,
        origin: BlockDevice,
        device: BlockDevice,
        *,
        now: Callable[[], float],
        commit: Callable[[], None],
        written: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self._io = io
        self._cache = io.cache
        self._origin = origin
        self._device = device
        self._now = now
        self._commit = commit
        self._written = written
        self._wake = wake
        self.stats = Stats()
        self.around = IoTracker(now)
        self.cleaner = self.metadata_only = False
        self.autocommit_blocks = self.high_watermark = 0

    # -- sending ----------------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        """A READ or WRITE; its sector is counted from the start of the target."""
        carried: Carried = bio.per_bio
        while carried.mapped < bio.nr_sectors:
            piece = self._io.turns.between(lambda: self._next(bio), lambda: self._go_on(bio))
            if piece is None or piece is _Wait.FOR_BLOCK:
                return MapResult.SUBMITTED
            if piece is _Wait.FOR_WRITES:
                self._io.turns.start(self._io.wait_for_writes(), lambda error: self._go_on(bio))
                return MapResult.SUBMITTED
            if piece is _Wait.FAILED:
                carried.error = errno.EIO
                break
            if piece.nr_sectors == bio.nr_sectors and not bio.fua:
                carried.whole = piece
                bio.bdev, bio.sector = piece.bdev, piece.sector
                return MapResult.REMAPPED
            self._submit(bio, piece)
        self._ended(bio, 0)
        return MapResult.SUBMITTED

    def _go_on(self, bio: Bio) -> None:
        """Map what is left of a bio that had to wait."""
        if self.map(bio) is MapResult.REMAPPED:
            assert bio.bdev is not None
            bio.bdev.submit_bio(bio)

    def end_io(self, bio: Bio) -> None:
        """A bio comes back."""
        carried: Carried = bio.per_bio
        if carried.whole:
            carried.whole.end()

    def _submit(self, bio: Bio, piece: _Piece) -> None:
        carried: Carried = bio.per_bio
        assert bio.data is not None
        begin, end = carried.mapped * SECTOR_SIZE, (carried.mapped + piece.nr_sectors) * SECTOR_SIZE
        carried.mapped += piece.nr_sectors
        with carried.lock:
            carried.left += 1

        def ended(part: Bio) -> None:
            piece.end()
            self._ended(bio, part.error)

        part = Bio(bio.op, piece.sector, piece.nr_sectors, bio.data[begin:end], ended, fua=bio.fua, bdev=piece.bdev)
        part.depth = bio.depth
        piece.bdev.submit_bio(part)

    def _ended(self, bio: Bio, error: int) -> None:
        """One piece less is out. A FUA write ends when it is committed."""
        carried: Carried = bio.per_bio
        with carried.lock:
            carried.error = carried.error or error
            carried.left -= 1
            if carried.left:
                return
        if bio.fua and bio.op is Op.WRITE and not carried.error:
            self._io.turns.start(self._io.flush(), bio.endio)
        else:
            bio.endio(carried.error)

    # -- mapping, while no job runs ---------------------------------------------------------------------

    def _next(self, bio: Bio) -> _Piece | _Wait:
        """What comes of the sectors that are not mapped yet: of as many of them as go the same way."""
        carried: Carried = bio.per_bio
        sector, end = bio.sector + carried.mapped, bio.sector + bio.nr_sectors
        if bio.op is Op.READ:
            return self._read(sector, end)
        found = self._write(sector, end)
        if found is _Wait.FOR_BLOCK:
            self._io.blocked.append(lambda: self._go_on(bio))
        return found

    def _blocks(self, sectors: int) -> int:
        return sectors // self._cache.block_sectors

    def _read(self, sector: int, end: int) -> _Piece | _Wait:
        entry = self._cache.find(sector)
        if entry is None:
            count = self._cache.uncached(sector, end) - sector
            self.stats.reads += self._blocks(count)
            return _Piece(self._origin, sector, count)
        if not entry.filled:
            return _Wait.FOR_WRITES
        self.stats.reads += 1
        self.stats.read_hits += 1
        self._io.reads.begin()
        return _Piece(self._device, self._io.block_sector(entry), self._cache.block_sectors, self._io.reads)

    def _write(self, sector: int, end: int) -> _Piece | _Wait:
        cache, stats = self._cache, self.stats
        if self._io.failed:
            stats.writes += self._blocks(end - sector)
            return _Wait.FAILED
        entry = cache.find(sector)
        if entry is None and (self.cleaner or self.metadata_only):
            return self._write_around(sector, end)
        if entry is not None:
            if not cache.is_committed(entry):
                stats.write_hits_uncommitted += 1
                return self._write_used(entry, end)
            stats.write_hits_committed += 1
            if not entry.writing:
                return self._write_used(entry, end)
        new = cache.allocate(sector, self._now())
        if new is not None:
            return self._write_new(new, end)
        if entry is None:
            return self._write_around(sector, end)
        stats.writes_blocked_on_freelist += 1
        return _Wait.FOR_BLOCK

    def _write_around(self, sector: int, end: int) -> _Piece:
        count = self._cache.uncached(sector, end) - sector
        self.stats.writes += self._blocks(count)
        self.stats.writes_around += self._blocks(count)
        self.around.begin()
        return _Piece(self._origin, sector, count, self.around)

    def _write_used(self, entry: Entry, end: int) -> _Piece:
        """Over blocks that follow each other on both devices."""
        cache = self._cache
        last: Entry | None = entry
        count = 0
        while last is not None:
            cache.overwrote |= cache.is_committed(last)
            count += cache.block_sectors
            following = cache.find(last.sector + cache.block_sectors) if entry.sector + count < end else None
            if following is None or following.index != last.index + 1 or following.writing:
                break
            last = following
        return self._to_cache(entry, count, [])

    def _write_new(self, entry: Entry, end: int) -> _Piece:
        """Into blocks that follow each other, as long as they are free."""
        cache = self._cache
        fresh = [entry]
        while (sector := fresh[-1].sector + cache.block_sectors) < end:
            new = cache.allocate(sector, entry.age, fresh[-1].index + 1)
            if new is None:
                break
            fresh.append(new)
        self.stats.writes_allocate += 1
        if cache.free + cache.writing <= self.high_watermark:
            self._wake()
        return self._to_cache(entry, len(fresh) * cache.block_sectors, fresh)

    def _to_cache(self, entry: Entry, count: int, fresh: list[Entry]) -> _Piece:
        blocks = self._blocks(count)
        self.stats.writes += blocks
        self.stats.writes_allocate += blocks - 1
        if self._cache.uncommitted >= self.autocommit_blocks:
            self._cache.uncommitted = 0
            self._commit()
        else:
            self._written()
        self._io.writes.begin()
        return _Piece(self._device, self._io.block_sector(entry), count, self._io.writes, fresh)
