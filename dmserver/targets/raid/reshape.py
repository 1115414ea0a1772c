"""Reshape: an array that changes its layout, its chunk or its devices while it is used (`reshape_request` of Linux
drivers/md/raid5.c and raid10.c).

What lies before `position` (behind it, when it goes backwards) is in the new shape, the rest in the old. A window is
read in the old shape and written in the new one where nothing is that the old shape still needs: the data begin
elsewhere on the devices, and the space between has room for a window. Then the superblocks tell the new position. So
whenever it is cut, all data are where the superblocks say; what was written after them is written again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...model.dm_target import SECTOR_SIZE, Bio, MapResult, Op
from ..steps import Step, gather
from .personality import Layout, Personality
from .ranges import Claim

if TYPE_CHECKING:
    from .array import Member

__all__ = ["Reshape"]

#: Sectors of each device that a window has at most, unless a stripe has more.
WINDOW = 2048


class Reshape(Personality):
    """`position` in sectors of the array; sync space is that of the new shape, the offset still the old one."""

    def __init__(self, old: Layout, new: Layout, position: int | None, *, backwards: bool) -> None:
        self.size = min(old.size, new.size)
        #: Where it comes to its end: parity is made behind the data, too.
        self.limit = new.size if new.shape.level in (5, 6) else self.size
        start = self.limit if backwards else 0
        sync_max = new.dev_sectors if new.shape.level in (5, 6) else self.size
        super().__init__(new.array, new.shape, new.dev_sectors, old.offset, self.size, sync_max)
        self.old = old
        self.new = new
        self.backwards = backwards
        self.position = start if position is None else position

    @property
    def name(self) -> str:
        return self.new.name

    @property
    def finished(self) -> bool:
        return self.position == 0 if self.backwards else self.position >= self.limit

    @property
    def progress(self) -> int:
        """In sync space."""
        if self.finished:
            return self.sync_max
        done = self.limit - self.position if self.backwards else self.position
        return done * self.sync_max // self.limit

    # -- the way of a bio -------------------------------------------------------------------------------

    def _at(self, sector: int) -> Layout:
        """Who has it; its range is locked."""
        return self.new if (sector >= self.position) == self.backwards else self.old

    def read(self, bio: Bio) -> MapResult:
        at, data = bio.per_bio.at, bio.data
        assert data is not None
        self._pass(bio, lambda done: self._at(at).fetch(at, data)(done))
        return MapResult.SUBMITTED

    def write(self, bio: Bio) -> None:
        at, data = bio.per_bio.at, bio.data if bio.op is Op.WRITE else bio.nr_sectors
        self._pass(bio, lambda done: self._at(at).store(bio.op, at, data, fua=bio.fua)(done))

    def _pass(self, bio: Bio, step: Step) -> None:
        """With the range locked."""

        def locked(claim: Claim) -> None:
            step(lambda error: ended(claim, error))

        def ended(claim: Claim, error: int) -> None:
            self.ranges.unlock(claim)
            bio.endio(error)

        at = bio.per_bio.at
        self.ranges.lock(at, at + bio.nr_sectors, locked, exclusive=False)

    # -- the windows ------------------------------------------------------------------------------------

    @property
    def _unit(self) -> int:
        """Positions are multiples of it: whole stripes of the new shape, whole chunks of both."""
        chunk = self.new.shape.chunk
        return self.new.stripe * max(self.old.shape.chunk, chunk) // chunk

    @property
    def on_boundary(self) -> bool:
        """There is an array, and its position is one that a window has reached."""
        return 0 < self.limit >= self.position and (
            self.finished or self.position % self._unit in (0, self.limit % self._unit)
        )

    @property
    def ahead(self) -> int:
        """What the next window does, in sync space."""
        start, end = self.window() or (0, 0)
        return (end - start) * self.sync_max // self.limit

    def window(self) -> tuple[int, int] | None:
        """From where to where the next one goes; None: there is no room for it."""
        unit = self._unit
        for count in range(max(1, WINDOW * self.limit // (self.sync_max * unit)), 0, -1):
            if self.backwards:
                start, end = max(self.position - count * unit, 0), self.position
                safe = self.new.offset + self.new.first(start) >= self.old.offset + self.old.last(end)
            else:
                start, end = self.position, min(self.position + count * unit, self.limit)
                safe = start >= self.old.size or (
                    self.new.offset + self.new.last(end) <= self.old.offset + self.old.first(start)
                )
            if safe:
                return start, end
        return None

    def advance(self, done: Callable[[], None]) -> None:
        """One window; `array.unreadable` when it cannot be done."""
        found = None if self.finished else self.window()
        if found is None:
            self.array.unreadable = not self.finished
            done()
            return
        start, end = found
        self.ranges.lock(start, end, lambda claim: self._move(claim, done), exclusive=True)

    def _move(self, claim: Claim, done: Callable[[], None]) -> None:
        data = memoryview(bytearray((claim.end - claim.start) * SECTOR_SIZE))

        def read(errors: list[int]) -> None:
            if any(errors):
                stop()
            else:
                self.new.lay(claim.start, data)(laid)

        def laid(error: int) -> None:
            if error:
                stop()
            else:
                self.position = claim.start if self.backwards else claim.end
                self.array.write_superblocks(finish)

        def stop() -> None:
            self.array.unreadable = True
            finish()

        def finish() -> None:
            self.ranges.unlock(claim)
            done()

        chunk, end = self.old.shape.chunk, min(claim.end, self.old.size)
        starts = range(claim.start - claim.start % chunk, end, chunk)
        pieces = [(max(at, claim.start), min(at + chunk, end)) for at in starts]
        base = claim.start
        gather(
            [self.old.fetch(at, data[(at - base) * SECTOR_SIZE : (upto - base) * SECTOR_SIZE]) for at, upto in pieces],
            read,
        )

    def enough(self, without: Member | None = None) -> bool:
        return self.old.enough(without) and self.new.enough(without)

    def spare(self, member: Member) -> bool:
        return self.old.spare(member) and self.new.spare(member)
