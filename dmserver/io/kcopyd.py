"""Copying between block devices in the background, with back-pressure (Linux `drivers/md/dm-kcopyd.c`).

A copy is cut into pieces. A piece owns its buffer from its read to its last write, and no more than `buffers` bytes
are owned at a time: further pieces wait in order. Nothing blocks; completions run in whatever thread finished them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from dmproto.wire import SECTOR_SIZE

from .bio import Bio, Op
from .blockdev import BlockDevice

__all__ = ["Kcopyd"]

#: Sectors of one piece (the kernel's default `sub_job_size` of 512 KiB).
PIECE = 1024

#: `done(read_failed, numbers of the destinations that could not be written)`
CopyDone = Callable[[bool, frozenset[int]], None]


class _Job:
    """One copy: what is left to report, and the pieces still out."""

    def __init__(
        self, source: tuple[BlockDevice, int], destinations: Sequence[tuple[BlockDevice, int]], done: CopyDone
    ) -> None:
        self.source = source
        self.destinations = destinations
        self.done = done
        self.left = 0
        self.read_failed = False
        self.write_failed: set[int] = set()


class Kcopyd:
    """Copies of one client. `buffers`: the most bytes of buffer in use."""

    def __init__(self, buffers: int = 4 << 20) -> None:
        self._room = max(buffers // SECTOR_SIZE, PIECE)
        self._waiting: deque[tuple[_Job, int, int]] = deque()
        self._lock = threading.Lock()
        self._pumping = False

    def copy(
        self,
        source: tuple[BlockDevice, int],
        destinations: Sequence[tuple[BlockDevice, int]],
        sectors: int,
        done: CopyDone,
    ) -> None:
        """Copy `sectors` from `source` (device, sector) to each of `destinations`; `done` reports, once."""
        job = _Job(source, destinations, done)
        pieces = [(job, at, min(PIECE, sectors - at)) for at in range(0, sectors, PIECE)]
        if not pieces:
            done(False, frozenset())
            return
        job.left = len(pieces)
        with self._lock:
            self._waiting.extend(pieces)
        self._pump()

    def _pump(self) -> None:
        with self._lock:
            if self._pumping:
                return
            self._pumping = True
        while piece := self._take():
            self._read(*piece)

    def _take(self) -> tuple[_Job, int, int] | None:
        """The next piece for which there is room. Ends the pumping in the same breath when there is none."""
        with self._lock:
            if self._waiting and self._waiting[0][2] <= self._room:
                piece = self._waiting.popleft()
                self._room -= piece[2]
                return piece
            self._pumping = False
            return None

    def _read(self, job: _Job, at: int, sectors: int) -> None:
        buffer = memoryview(bytearray(sectors * SECTOR_SIZE))
        bdev, sector = job.source

        def read_done(bio: Bio) -> None:
            if bio.error:
                job.read_failed = True
                self._piece_done(job, sectors)
            else:
                self._write(job, at, sectors, buffer)

        bdev.submit_bio(Bio(Op.READ, sector + at, sectors, buffer, read_done, bdev=bdev))

    def _write(self, job: _Job, at: int, sectors: int, buffer: memoryview) -> None:
        left = len(job.destinations)

        def write_done(number: int, error: int) -> None:
            nonlocal left
            with self._lock:
                if error:
                    job.write_failed.add(number)
                left -= 1
                finished = not left
            if finished:
                self._piece_done(job, sectors)

        for number, (bdev, sector) in enumerate(job.destinations):
            done = _numbered(write_done, number)
            bdev.submit_bio(Bio(Op.WRITE, sector + at, sectors, buffer, done, bdev=bdev))

    def _piece_done(self, job: _Job, sectors: int) -> None:
        with self._lock:
            self._room += sectors
            job.left -= 1
            finished = not job.left
        if finished:
            job.done(job.read_failed, frozenset(job.write_failed))
        self._pump()


def _numbered(done: Callable[[int, int], None], number: int) -> Callable[[Bio], None]:
    return lambda bio: done(number, bio.error)
