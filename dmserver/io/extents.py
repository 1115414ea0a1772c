"""A table of remapping targets, and all such tables underneath, flattened to extents of disks.

A `Route` is built once per change of any table of the stack; then a request costs one bisection, however deep the
stack is. Rules:

1. Only what ends at a disk goes by a route. Any other stretch (a target that does more than remap, a suspended
   device or a read-only one in between, a gap) takes the ordinary way, device by device.
2. A request enters the route and leaves it, which counts it as under way on every mapped device of the stack at
   once. A device that is blocked, unblocked or gets another table retires the routes through it, and waits for those
   who are still inside. They only wait for disks, so that ends.
3. A target with more than `PIECES` extents (striped) stays a formula: its `remap` is asked for each request.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from .blockdev import BlockDevice
from .disk import Disk

if TYPE_CHECKING:
    from ..model.dm_target import Extent, Target
    from .mapped import MappedIo

__all__ = ["DEPTH", "PIECES", "Piece", "Route", "allocation", "remap", "topology"]

#: Extents of one target that are laid out; and in all of one device.
PIECES, ALL_PIECES = 1024, 65536

#: Mapped devices, one on the other, that a route leads through: building it goes deeper with each.
DEPTH = 64

#: Held while routes are built and retired, and while a device is blocked.
topology = threading.Lock()


#: A disk, a sector of it, and a number of sectors.
Piece = tuple[Disk, int, int]


class _Segment(NamedTuple):
    """Up to the sector `end`: what lies `delta` sectors further on, on a disk or on the device of a target that is
    asked; neither: the ordinary way."""

    end: int
    delta: int
    disk: Disk | None = None
    target: Target | None = None


class _Flat:
    """The segments of one device, in order and without gaps."""

    __slots__ = ("ends", "segments")

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.segments: list[_Segment] = []

    def append(self, segment: _Segment) -> None:
        if self.segments and self.segments[-1][1:] == segment[1:]:
            self.segments[-1], self.ends[-1] = segment, segment.end
        else:
            self.segments.append(segment)
            self.ends.append(segment.end)

    def between(self, start: int, end: int) -> Iterator[_Segment]:
        """The segments of a range, the last one cut; what lies past the device's end goes the ordinary way."""
        index = bisect_right(self.ends, start)
        while start < end:
            if index == len(self.segments):
                yield _Segment(end, 0)
                return
            segment = self.segments[index]
            start = min(end, segment.end)
            yield segment._replace(end=start)
            index += 1


class Route:
    """The flattened tables of a mapped device and of all those below."""

    def __init__(self, io: MappedIo) -> None:
        self.valid = True
        self._lock = threading.Lock()
        #: An entry for each request inside; a deque, because its `append` and `pop` need no lock.
        self._inside: deque[None] = deque()
        self._held = False
        self._flats: dict[MappedIo, _Flat | None] = {}
        self._depth = 0
        with topology:
            self._top = self._flatten(io)
            for member in self._flats:
                member.routes.add(self)
            self._block_mask = io.device.limits.logical_block_size - 1
        top = self._top or _Flat()
        self._ends = top.ends
        #: The segments as plain tuples, which are unpacked faster, and what lies past the last.
        self._segments = [(*segment,) for segment in (*top.segments, _Segment(0, 0))]
        #: Whether any sector can go this way.
        self.leads = any(disk or target for _, _, disk, target in self._segments)

    # -- requests ---------------------------------------------------------------------------------------

    def enter(self) -> bool:
        """Count a request as under way; False when the route is out of date."""
        self._inside.append(None)  # before the look at `valid`: `retire` looks the other way round
        if self.valid:
            return True
        self.leave()
        return False

    def leave(self) -> None:
        """Undo one `enter`."""
        self._inside.pop()
        if not self.valid:
            self._release()

    def place(self, offset: int, length: int) -> tuple[Disk, int] | None:
        """The disk and the byte of it where bytes of the device lie, if they are whole blocks and in one piece of a
        plain disk: what nearly all requests are. None: see `pieces`."""
        if (offset | length) & self._block_mask or not length:
            return None
        piece = self.find(offset >> 9)
        if piece is None:
            return None
        disk, sector, count = piece
        if count << 9 < length or type(disk) is not Disk:
            return None
        return disk, sector << 9

    def find(self, sector: int) -> Piece | None:
        """Where a sector lies, and how many follow it there; None: the ordinary way."""
        end, delta, disk, target = self._segments[bisect_right(self._ends, sector)]
        if disk is not None:
            return disk, sector + delta, end - sector
        return None if target is None else self._ask(sector)

    def _ask(self, sector: int) -> Piece | None:
        """`find` where a formula has to be asked."""
        flat = self._top
        left = 1 << 63
        while flat is not None:
            index = bisect_right(flat.ends, sector)
            if index == len(flat.ends):
                return None
            end, delta, disk, target = flat.segments[index]
            if end - sector < left:
                left = end - sector
            if disk is not None:
                return disk, sector + delta, left
            if target is None:
                return None
            extent = remap(target, sector + delta)
            if extent is None:
                return None
            device, sector, length = extent
            left = min(left, length)
            if isinstance(device, Disk):
                return (device, sector, left) if device.is_whole else None
            io = device.mapped_io
            flat = self._flats.get(io) if io is not None else None
        return None

    def pieces(self, sector: int, nr_sectors: int) -> list[Piece] | None:
        """A whole request; None: the ordinary way."""
        pieces = []
        while nr_sectors:
            piece = self.find(sector)
            if piece is None:
                return None
            disk, at, length = piece
            length = min(length, nr_sectors)
            pieces.append((disk, at, length))
            sector += length
            nr_sectors -= length
        return pieces

    # -- building and retiring, with `topology` held ----------------------------------------------------

    def retire(self) -> None:
        """Let no request in any more; the mapped devices wait for those inside."""
        for member in self._flats:
            member.routes.discard(self)
        with self._lock:
            self.valid = False
            self._held = bool(self._inside)
            if self._held:
                for member in self._flats:
                    member.hold()

    def _release(self) -> None:
        """Undo the `hold` of `retire` once nobody is inside."""
        with self._lock:
            if self._inside or not self._held:
                return
            self._held = False
        for member in self._flats:
            member.release()

    def _flatten(self, io: MappedIo) -> _Flat | None:
        self._flats[io] = None  # what a device that is below itself finds
        table = io.device.live
        if table is None or not io.flattens or self._depth == DEPTH:
            return None
        self._depth += 1
        flat = self._flats[io] = self._flatten_targets(io, table.targets)
        self._depth -= 1
        return flat

    def _flatten_targets(self, io: MappedIo, targets: list[Target]) -> _Flat | None:
        flat = _Flat()
        for target in targets:
            if target.begin != (flat.ends[-1] if flat.ends else 0):
                return None
            for segment in self._lay_out(io, target, ALL_PIECES - len(flat.ends)):
                flat.append(segment)
        return flat

    def _lay_out(self, io: MappedIo, target: Target, room: int) -> list[_Segment]:
        segments: list[_Segment] = []
        sector, end = target.begin, target.begin + target.len
        for _ in range(PIECES):
            if sector == end:
                return segments
            extent = remap(target, sector)
            if extent is None:
                return [_Segment(end, 0)]
            stop = extent.sector + min(extent.length, end - sector)
            segments += self._below(io, extent.device, extent.sector, stop, sector - extent.sector)
            if len(segments) > room:
                break
            sector += stop - extent.sector
        if sector == end:
            return segments
        for pdev, _, _ in target.iterate_devices():
            self._flat_of(io, pdev.bdev)
        return [_Segment(end, 0, target=target)]

    def _below(self, io: MappedIo, below: BlockDevice, start: int, stop: int, shift: int) -> list[_Segment]:
        """A range of the device underneath, seen `shift` sectors further on."""
        if isinstance(below, Disk):
            return [_Segment(stop + shift, -shift, below) if below.is_whole else _Segment(stop + shift, 0)]
        flat = self._flat_of(io, below)
        if flat is None:
            return [_Segment(stop + shift, 0)]
        return [
            _Segment(segment.end + shift, segment.delta - shift, segment.disk, segment.target)
            if segment.disk or segment.target
            else _Segment(segment.end + shift, 0)
            for segment in flat.between(start, stop)
        ]

    def _flat_of(self, io: MappedIo, below: BlockDevice) -> _Flat | None:
        lower = below.mapped_io
        if lower is None or (below.read_only and not io.device.read_only):
            return None
        if lower not in self._flats:
            self._flatten(lower)
        return self._flats[lower]


def allocation(pieces: list[Piece], most: int) -> list[tuple[int, bool]]:
    """At most so many runs of (bytes, whether it is a hole), from the first piece on."""
    runs: list[tuple[int, bool]] = []
    for disk, sector, count in pieces:
        for size, hole in disk.allocation(sector, count):
            if runs and runs[-1][1] == hole:
                runs[-1] = runs[-1][0] + size, hole
            elif len(runs) == most:
                return runs
            else:
                runs.append((size, hole))
    return runs


def remap(target: Target, sector: int) -> Extent | None:
    """`target.remap`; None, too, when that fails or makes no sense: then `map` has to."""
    try:
        extent = target.remap(sector)
    except Exception:
        return None
    return extent if extent is not None and extent.length > 0 else None
