"""The way of a bio through a mapped device: hold it while suspended, split it, map each part, gather the results
(Linux `dm_submit_bio` and what follows in `dm.c`).

Rules:

1. A bio that arrives while the device is blocked waits in `_deferred`, in order, and runs after `unblock`.
2. A part crosses neither a target's end nor a multiple of its `max_io_len`. Each part that is mapped carries its own
   `per_bio_data`; `end_io` sees each part once.
3. The bio completes once, after its last part, with the first error.
4. `block` is done when no part is under way; parts that a target holds count as under way.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dmproto.records import SECTOR_SIZE

from ..model.dm_target import EndIo, MapResult, Target
from .bio import Bio, Op

if TYPE_CHECKING:
    from ..model.dm_dev import DmDev
    from ..model.dm_table import DmTable

__all__ = ["MappedIo"]


class MappedIo:
    """The bios of one mapped device. Thread-safe."""

    def __init__(self, device: DmDev) -> None:
        self.device = device
        self.in_flight = 0
        self.blocked = False
        self.noflush = False
        self._deferred: deque[Bio] = deque()
        self._lock = threading.Lock()
        self._drained: list[Callable[[], None]] = []

    def submit(self, bio: Bio) -> None:
        """Take a bio; it is held while the device is blocked."""
        with self._lock:
            if self.blocked:
                self._deferred.append(bio)
                return
            self.in_flight += 1
        self._start(bio)

    def block(self, drained: Callable[[], None], *, noflush: bool = False) -> bool:
        """Hold new bios from now on. True when none is under way; else `drained` is called once that is so, in
        whatever thread finished the last one."""
        with self._lock:
            self.blocked = True
            self.noflush = noflush
            if self.in_flight:
                self._drained.append(drained)
                return False
        return True

    def unblock(self) -> None:
        """Let bios run again, those that waited first."""
        with self._lock:
            self.blocked = self.noflush = False
            waiting, self._deferred = self._deferred, deque()
            self.in_flight += len(waiting)
        for bio in waiting:
            self._start(bio)

    def table_changed(self) -> None:
        """Another table is live; nothing is under way."""

    def requeue(self, bio: Bio) -> None:
        """A target wants the bio held until the next resume."""
        with self._lock:
            self._deferred.append(bio)
        self._finished()

    def hold(self) -> None:
        """A target does I/O of its own: `block` waits for as many `release`s, too."""
        with self._lock:
            self.in_flight += 1

    def release(self) -> None:
        """Undo one `hold`."""
        self._finished()

    def _start(self, bio: Bio) -> None:
        table = self.device.live
        if table is None or bio.sector + bio.nr_sectors > table.size:
            self._complete(bio, errno.EIO)
            return
        _Split(self, table, bio).run()

    def _complete(self, bio: Bio, error: int) -> None:
        bio.endio(error)
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
        target: Target | None
        if self.bio.op is Op.FLUSH:
            for target in self.table.targets:
                for number in range(target.num_flush_bios):
                    self._map(target, 0, 0, number)
        else:
            sector, end = self.bio.sector, self.bio.sector + self.bio.nr_sectors
            while sector < end:
                target = self.table.find_target(sector)
                if target is None:
                    self.error = self.error or errno.EIO
                    break
                length = min(end, target.begin + target.len) - sector
                if target.max_io_len:
                    length = min(length, target.max_io_len - target.offset(sector) % target.max_io_len)
                self._map(target, sector, length, 0)
                sector += length
        self._part_done(0)

    def _map(self, target: Target, sector: int, length: int, number: int) -> None:
        bio = self.bio
        start = (sector - bio.sector) * SECTOR_SIZE
        data = bio.data[start : start + length * SECTOR_SIZE] if bio.data is not None else None
        part = Bio(bio.op, sector, length, data, None, fua=bio.fua)
        part.done = lambda part: self._end_part(target, part)
        if target.per_bio_data is not None:
            part.per_bio = target.per_bio_data()
        with self.lock:
            self.left += 1
        result = target.map(part)
        if result is MapResult.REMAPPED:
            assert part.bdev is not None
            part.bdev.submit_bio(part)
        elif result is MapResult.KILL:
            self._part_done(errno.EIO)
        elif result is MapResult.REQUEUE:
            self.requeue = True
            self._part_done(0)

    def _end_part(self, target: Target, part: Bio) -> None:
        result = target.end_io(part, part.error)
        if result is EndIo.REQUEUE:
            self.requeue = True
            result = 0
        if result is not EndIo.INCOMPLETE:
            assert isinstance(result, int)
            self._part_done(result)

    def _part_done(self, error: int) -> None:
        with self.lock:
            self.error = self.error or error
            self.left -= 1
            if self.left:
                return
        if self.requeue and not self.error:
            self.io.requeue(self.bio)
        else:
            self.io._complete(self.bio, self.error)
