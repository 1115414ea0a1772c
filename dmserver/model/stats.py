"""I/O statistics of regions of a device (Linux `drivers/md/dm-stats.c`).

A region is cut into areas of `step` sectors, each with its counters. A bio counts in every area that it touches, from
when it is mapped until it ends.
"""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from ..io.bio import Bio, Op

__all__ = ["Area", "Region", "Stats"]


class _Way(IntEnum):
    READ = 0
    WRITE = 1


@dataclass(slots=True)
class Area:
    """Counters of [read, write]; times in nanoseconds. `histogram[i]` counts bios by how long they took."""

    histogram: list[int]
    ios: list[int] = field(default_factory=lambda: [0, 0])
    merges: list[int] = field(default_factory=lambda: [0, 0])
    sectors: list[int] = field(default_factory=lambda: [0, 0])
    ticks: list[int] = field(default_factory=lambda: [0, 0])
    io_ticks: list[int] = field(default_factory=lambda: [0, 0])
    io_ticks_total: int = 0
    time_in_queue: int = 0
    in_flight: list[int] = field(default_factory=lambda: [0, 0])
    stamp: int = 0

    def round(self, now: int) -> None:
        """Bring the times up to `now` (`dm_stat_round`)."""
        passed, self.stamp = now - self.stamp, now
        under_way = sum(self.in_flight)
        if under_way:
            self.io_ticks_total += passed
            self.time_in_queue += under_way * passed
        for way in _Way:
            if self.in_flight[way]:
                self.io_ticks[way] += passed


@dataclass(slots=True)
class Region:
    """Sectors from `start` to before `end`. `boundaries` of the histogram are in nanoseconds if `precise`, else in
    milliseconds. Areas come into being when they are first touched."""

    id: int
    start: int
    end: int
    step: int
    precise: bool
    boundaries: tuple[int, ...]
    program_id: str
    aux_data: str
    areas: dict[int, Area] = field(default_factory=dict)

    @property
    def n_areas(self) -> int:
        return -(-(self.end - self.start) // self.step)

    def area(self, index: int) -> Area:
        area = self.areas.get(index)
        if area is None:
            area = self.areas[index] = Area([0] * (len(self.boundaries) + 1))
        return area

    def fragments(self, sector: int, end: int) -> list[tuple[Area, int]]:
        """The areas that sectors up to before `end` touch, and how many sectors of each."""
        found = []
        at, end = max(sector, self.start), min(end, self.end)
        while at < end:
            index, within = divmod(at - self.start, self.step)
            length = min(end - at, self.step - within)
            found.append((self.area(index), length))
            at += length
        return found

    def clear(self, first: int, last: int) -> None:
        """Forget what was counted in areas `first` to before `last`; what is under way still is."""
        for index, area in list(self.areas.items()):
            if first <= index < last:
                self.areas[index] = Area([0] * len(area.histogram), in_flight=area.in_flight, stamp=area.stamp)


class Stats:
    """The regions of one device, true when there are any. Thread-safe. `now` is a clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.lock = threading.Lock()
        self._now = now
        self._regions: dict[int, Region] = {}
        self._ids: list[int] = []
        self._last: tuple[int, _Way | None] = (-1, None)

    def __bool__(self) -> bool:
        return bool(self._regions)

    def create(
        self,
        start: int,
        end: int,
        step: int,
        *,
        precise: bool = False,
        boundaries: tuple[int, ...] = (),
        program_id: str = "-",
        aux_data: str = "-",
    ) -> Region:
        """A new region under the lowest free id."""
        with self.lock:
            free = next((at for at, taken in enumerate(self._ids) if at != taken), len(self._ids))
            region = Region(free, start, end, step, precise, boundaries, program_id, aux_data)
            self._regions[free] = region
            insort(self._ids, free)
        return region

    def find(self, region_id: int) -> Region | None:
        return self._regions.get(region_id)

    def delete(self, region: Region) -> None:
        with self.lock:
            del self._regions[region.id]
            self._ids.remove(region.id)

    def regions(self) -> list[Region]:
        """All of them, by id."""
        return [self._regions[region_id] for region_id in self._ids]

    def round(self, area: Area) -> None:
        """Bring an area's times up to now."""
        area.round(self._nanoseconds())

    def _nanoseconds(self) -> int:
        return int(self._now() * 1_000_000_000)

    def _is_merge(self, sector: int, way: _Way) -> bool:
        """Meant to tell whether the bio goes on where the last one ended; but the kernel's parentheses compare the
        sector to the truth of the rest, and so does everyone who reads its numbers."""
        last_end, last_way = self._last
        same_way = (way is _Way.WRITE) == (last_way is _Way.WRITE)
        return sector == int(last_end != 0 and same_way)

    def watch(self, bio: Bio) -> None:
        """Count a bio that is about to be mapped, until its `done`."""
        if not bio.nr_sectors:
            return
        way = _Way.READ if bio.op is Op.READ else _Way.WRITE
        end = bio.sector + bio.nr_sectors
        begun = self._nanoseconds()
        with self.lock:
            merged = self._is_merge(bio.sector, way)
            self._last = (end, way)
            touched = [(region, region.fragments(bio.sector, end)) for region in self._regions.values()]
            for _, fragments in touched:
                for area, _ in fragments:
                    area.round(begun)
                    area.in_flight[way] += 1
        done = bio.done

        def ended(bio: Bio) -> None:
            now = self._nanoseconds()
            with self.lock:
                for region, fragments in touched:
                    for area, length in fragments:
                        _count(region, area, way, length, merged, now, now - begun)
            bio.done = done
            if done is not None:
                done(bio)

        bio.done = ended


def _count(region: Region, area: Area, way: _Way, length: int, merged: bool, now: int, took: int) -> None:
    area.round(now)
    area.in_flight[way] -= 1
    area.sectors[way] += length
    area.ios[way] += 1
    area.merges[way] += merged
    area.ticks[way] += took
    duration = took if region.precise else took // 1_000_000
    area.histogram[bisect_right(region.boundaries, duration)] += 1
