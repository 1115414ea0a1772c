"""The way of a bio through a mapped device: hold it while suspended, split it, map each part, gather the results
(Linux `dm_submit_bio` and what follows in `dm.c`).

Rules:

1. A bio that arrives while the device is blocked waits in `_deferred`, in order, and runs after `unblock`.
2. A part crosses neither a target's end nor a multiple of its `max_io_len`. Each part that is mapped carries its own
   `per_bio_data`; `end_io` sees each part once.
3. FLUSH, DISCARD and WRITE_ZEROES go to a target as often as its `num_*_bios` say; never: EOPNOTSUPP (FLUSH: fine).
4. The bio completes once, after its last part, with the first error.
5. REQUEUE holds the whole bio until the next resume if a suspension without flush is under way; else it is EIO.
6. `block` is done when no part is under way; parts that a target holds count as under way.
7. A target that raises fails that bio with EIO; the log tells.

Reads and writes of what only remaps skip all of this by a `Route`. One that fails is done again the ordinary way, so
that every target on it sees the error.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dmproto.wire import SECTOR_SIZE

from ..model.dm_target import EndIo, MapResult, Target
from .bio import Bio, Op
from .extents import Piece, Route, remap, topology
from .submit import run_flat

if TYPE_CHECKING:
    from ..model.dm_dev import DmDev
    from ..model.dm_table import DmTable

__all__ = ["MAX_DEPTH", "MappedIo"]

#: Mapped devices that a bio may come through; a device that is mapped onto itself ends here.
MAX_DEPTH = 64

_WRITES = frozenset((Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES))


class MappedIo:
    """The bios of one mapped device. Thread-safe."""

    def __init__(self, device: DmDev) -> None:
        self.device = device
        self.in_flight = 0
        self.blocked = False
        self.noflush = False
        #: The routes that lead through this device; `topology` guards them.
        self.routes: set[Route] = set()
        self._route: Route | None = None
        self._deferred: deque[Bio] = deque()
        self._lock = threading.Lock()
        self._drained: list[Callable[[], None]] = []

    def submit(self, bio: Bio) -> None:
        """Take a bio; it is held while the device is blocked."""
        if bio.op is Op.READ or (bio.op is Op.WRITE and not self.device.read_only):
            route = self.enter()
            if route is not None:
                pieces = route.pieces(bio.sector, bio.nr_sectors)
                if pieces:
                    self._send(bio, pieces, route)
                    return
                route.leave()
        run_flat(self._arrive, bio)

    def enter(self) -> Route | None:
        """The way straight to the disks, for reads and (unless the device is read-only) writes; to be left with
        `leave` once they are done. None while there is no such way."""
        while True:
            route = self._route
            if route is None or not route.valid:
                route = self._route = Route(self)
            if not route.leads:
                return None
            if route.enter():
                return route

    @property
    def flattens(self) -> bool:
        """Whether bios may pass this device by: nobody holds or counts them."""
        return not (self.blocked or self.device.stats)

    def block(self, drained: Callable[[], None], *, noflush: bool = False) -> bool:
        """Hold new bios from now on. True when none is under way; else `drained` is called once that is so, in
        whatever thread finished the last one."""
        with topology:
            with self._lock:
                self.blocked = True
                self.noflush = noflush
            self._retire_routes()
        with self._lock:
            if self.in_flight:
                self._drained.append(drained)
                return False
        return True

    def unblock(self) -> None:
        """Let bios run again, those that waited first."""
        with topology:
            self._retire_routes()
            with self._lock:
                self.blocked = self.noflush = False
                waiting, self._deferred = self._deferred, deque()
                self.in_flight += len(waiting)
        for bio in waiting:
            run_flat(self._start, bio)

    def table_changed(self) -> None:
        """Another table is live and nothing is under way, or bios are counted from now on."""
        with topology:
            self._retire_routes()

    def hold(self) -> None:
        """Something is under way that no bio of this device is: `block` waits for as many `release`s, too."""
        with self._lock:
            self.in_flight += 1

    def release(self) -> None:
        """Undo one `hold`."""
        self._finished()

    def _retire_routes(self) -> None:
        for route in tuple(self.routes):
            route.retire()

    def _send(self, bio: Bio, pieces: list[Piece], route: Route) -> None:
        """The parts of a bio straight to their disks."""
        lock = threading.Lock()
        left = len(pieces)
        failed = False

        def ended(part: Bio) -> None:
            nonlocal left, failed
            with lock:
                failed = failed or part.error != 0
                left -= 1
                if left:
                    return
            if failed:
                run_flat(self._arrive, bio)
            else:
                bio.endio()
            route.leave()

        start = 0
        for disk, sector, length in pieces:
            stop = start + length * SECTOR_SIZE
            data = bio.data[start:stop] if bio.data is not None else None
            disk.submit_bio(Bio(bio.op, sector, length, data, ended, fua=bio.fua, bdev=disk))
            start = stop

    def _arrive(self, bio: Bio) -> None:
        with self._lock:
            if self.blocked:
                self._deferred.append(bio)
                return
            self.in_flight += 1
        self._start(bio)

    def _start(self, bio: Bio) -> None:
        table = self.device.live
        if table is None or bio.sector + bio.nr_sectors > table.size or bio.depth >= MAX_DEPTH:
            self._complete(bio, errno.EIO)
        elif bio.op in _WRITES and self.device.read_only:
            self._complete(bio, errno.EPERM)
        elif bio.op is Op.DISCARD and not self.device.limits.discard:
            self._complete(bio, errno.EOPNOTSUPP)
        else:
            if self.device.stats:
                self.device.stats.watch(bio)
            _Split(self, table, bio).run()

    def _complete(self, bio: Bio, error: int) -> None:
        bio.endio(error)
        self._finished()

    def _requeue(self, bio: Bio) -> None:
        with self._lock:
            held = self.noflush
            if held:
                self._deferred.appendleft(bio)
        if not held:
            bio.endio(errno.EIO)
        self._finished()

    def _finished(self) -> None:
        with self._lock:
            self.in_flight -= 1
            if self.in_flight or not self._drained:
                return
            drained, self._drained = self._drained, []
        for call in drained:
            call()


class _Split:
    """One bio under way: its parts, and the first error among them (`struct dm_io`)."""

    __slots__ = ("bio", "error", "io", "left", "lock", "requeue", "table")

    def __init__(self, io: MappedIo, table: DmTable, bio: Bio) -> None:
        self.io = io
        self.table = table
        self.bio = bio
        self.error = 0
        self.requeue = False
        self.left = 1
        self.lock = threading.Lock()

    def run(self) -> None:
        op = self.bio.op
        if op is Op.FLUSH:
            for target in self.table.targets:
                for number in range(target.num_flush_bios):
                    self._map(target, 0, 0, number)
        else:
            sector, end = self.bio.sector, self.bio.sector + self.bio.nr_sectors
            while sector < end:
                found = self.table.find_target(sector)
                if found is None:
                    self.error = self.error or errno.EIO
                    break
                length = min(end, found.begin + found.len) - sector
                if type(found).map is Target.map and (extent := remap(found, sector)):
                    length = min(length, extent.length)
                if op is Op.DISCARD:
                    self._copies(found, sector, length, found.num_discard_bios)
                elif op is Op.WRITE_ZEROES:
                    self._copies(found, sector, length, found.num_write_zeroes_bios)
                else:
                    if found.max_io_len and (op is not Op.READ or found.splits_reads):
                        length = min(length, found.max_io_len - found.offset(sector) % found.max_io_len)
                    self._map(found, sector, length, 0)
                sector += length
        self._part_done(0)

    def _copies(self, target: Target, sector: int, length: int, copies: int) -> None:
        if not copies:
            self.error = self.error or errno.EOPNOTSUPP
        for number in range(copies):
            self._map(target, sector, length, number)

    def _map(self, target: Target, sector: int, length: int, number: int) -> None:
        bio = self.bio
        start = (sector - bio.sector) * SECTOR_SIZE
        data = bio.data[start : start + length * SECTOR_SIZE] if bio.data is not None else None
        part = Bio(bio.op, sector, length, data, lambda part: self._end_part(target, part), fua=bio.fua)
        if bio.tags is not None:
            first, last = (
                len(bio.tags) * at // bio.nr_sectors for at in (sector - bio.sector, sector - bio.sector + length)
            )
            part.tags = bio.tags[first:last]
        part.depth = bio.depth + 1
        part.target_bio_nr = number
        with self.lock:
            self.left += 1
        try:
            if target.per_bio_data is not None:
                part.per_bio = target.per_bio_data()
            result = target.map(part)
        except Exception:
            self._raised(target, "map", part)
            result = MapResult.KILL
        if result is MapResult.REMAPPED:
            if part.bdev is None:
                target.log("map returned REMAPPED and set no device")
                self._part_done(errno.EIO)
            else:
                part.bdev.submit_bio(part)
        elif result is MapResult.KILL:
            self._part_done(errno.EIO)
        elif result is MapResult.REQUEUE:
            self.requeue = True
            self._part_done(0)

    def _end_part(self, target: Target, part: Bio) -> None:
        try:
            result = target.end_io(part, part.error)
        except Exception:
            self._raised(target, "end_io", part)
            result = errno.EIO
        if result is EndIo.REQUEUE:
            self.requeue = True
            result = 0
        if not isinstance(result, EndIo):
            self._part_done(result)

    def _raised(self, target: Target, method: str, part: Bio) -> None:
        import logging

        device = self.io.device
        logging.getLogger(__name__).exception(
            "%s: %s of target %s raised for %r", device.name, method, target.name, part
        )
        target.log(f"{method} raised an exception")

    def _part_done(self, error: int) -> None:
        with self.lock:
            self.error = self.error or error
            self.left -= 1
            if self.left:
                return
        if self.requeue and not self.error:
            self.io._requeue(self.bio)
        else:
            self.io._complete(self.bio, self.error)
