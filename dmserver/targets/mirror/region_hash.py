"""The regions of a mirror with something going on (Linux `drivers/md/dm-region-hash.c`). A region is

    CLEAN       in sync, no write under way
    DIRTY       in sync, writes under way; the log knows before the first of them begins
    RECOVERING  being copied from the default leg to the others, or about to be: writes wait
    NOSYNC      legs may differ: reads and writes use the default leg alone

For regions that are not kept here, the log decides between CLEAN and NOSYNC. All methods are called under the owner's
lock; none does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from ...model.dm_target import Bio
from .dirty_log import CoreLog

__all__ = ["Region", "RegionHash", "State"]


class State(Enum):
    """`enum dm_rh_region_states`."""

    CLEAN = auto()
    DIRTY = auto()
    NOSYNC = auto()
    RECOVERING = auto()


@dataclass(slots=True, eq=False)
class Region:
    """`pending`: writes under way; `delayed`: writes that wait for the recovery to end."""

    key: int
    state: State
    pending: int = 0
    delayed: list[Bio] = field(default_factory=list)


class RegionHash:
    """`recovering` is the region whose turn it is, one at a time; `flush_failure`: a flush failed, so nothing is sure
    to be in sync any more once it was written to."""

    def __init__(self, log: CoreLog) -> None:
        self.log = log
        self.flush_failure = False
        self.recovering: Region | None = None
        self._copying = False
        self._regions: dict[int, Region] = {}
        self._cleaned: set[Region] = set()

    def _find(self, key: int) -> Region:
        region = self._regions.get(key)
        if region is None:
            region = self._regions[key] = Region(key, State.CLEAN if self.log.in_sync(key) else State.NOSYNC)
        return region

    def _forget(self, region: Region) -> None:
        if self._regions.get(region.key) is region:
            del self._regions[region.key]

    def enter(self, key: int, bio: Bio) -> Region | None:
        """A write begins (`dm_rh_inc`). None: it is delayed until the recovery of its region ends."""
        region = self._find(key)
        if region.state is State.RECOVERING:
            region.delayed.append(bio)
            return None
        region.pending += 1
        if region.state is State.CLEAN:
            region.state = State.DIRTY
            self._cleaned.discard(region)
            self.log.mark_region(key)
        return region

    def leave(self, region: Region) -> None:
        """A write ended (`dm_rh_dec`)."""
        region.pending -= 1
        if region.pending:
            return
        if self.flush_failure:
            region.state = State.NOSYNC
        elif region.state is State.DIRTY:
            region.state = State.CLEAN
            self._cleaned.add(region)
        elif region.state is State.NOSYNC:
            self._forget(region)

    def mark_nosync(self, region: Region) -> bool:
        """A leg missed a write (`dm_rh_mark_nosync`). True when the region's recovery is over by that."""
        recovering = region.state is State.RECOVERING
        region.state = State.NOSYNC
        self.log.set_region_sync(region.key, False)
        return recovering

    def clean(self) -> None:
        """Tell the log of the regions that were written to and are quiet now (`dm_rh_update_states`)."""
        for region in self._cleaned:
            self.log.clear_region(region.key)
            self._forget(region)
        self._cleaned.clear()

    def prepare_recovery(self) -> bool:
        """Pick the next region out of sync. False when there is none, or one is picked already."""
        if self.recovering is not None:
            return False
        key = self.log.get_resync_work()
        if key is None:
            return False
        self.recovering = self._find(key)
        self.recovering.state = State.RECOVERING
        return True

    def start_recovery(self) -> Region | None:
        """The region that was picked, once, when no write is under way there any more."""
        if self.recovering is None or self.recovering.pending or self._copying:
            return None
        self._copying = True
        return self.recovering

    def end_recovery(self, region: Region, in_sync: bool) -> list[Bio]:
        """The writes that waited. A region that is given up while writes are under way is kept until they end."""
        self.log.set_region_sync(region.key, in_sync)
        if not region.pending:
            self._forget(region)
        self.recovering = None
        self._copying = False
        delayed, region.delayed = region.delayed, []
        return delayed
