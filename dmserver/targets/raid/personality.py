"""What a level of raid is to the array (`struct md_personality`).

Positions in *sync space*, in which a resync walks, are sectors of the array where there are copies, sectors of each
device where there is parity. A bio lies in one chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ...model.dm_target import Bio, MapResult, Op
from ..steps import Request, Step
from .ranges import Ranges

if TYPE_CHECKING:
    from .array import Array, Member

__all__ = ["Layout", "Personality", "Shape"]


class Shape(NamedTuple):
    """`layout`: md's number of it; `chunk` in sectors, 0: all is one."""

    level: int
    layout: int
    chunk: int
    devices: int


class Personality(ABC):
    """`members`: those that data of this shape are on; `dev_sectors`: what is used of each; `offset`: where that
    begins. `size`: the sectors of the array; `sync_max`: the size of sync space."""

    def __init__(self, array: Array, shape: Shape, dev_sectors: int, offset: int, size: int, sync_max: int) -> None:
        self.array = array
        self.shape = shape
        self.members: list[Member] = array.members[: shape.devices]
        self.dev_sectors = dev_sectors
        self.offset = offset
        self.size = size
        self.sync_max = sync_max
        self.ranges = Ranges()

    @property
    def name(self) -> str:
        """As the kernel's log tells it."""
        return f"raid{self.shape.level}"

    @abstractmethod
    def read(self, bio: Bio) -> MapResult:
        """`bio.per_bio.at` says where; sets `bio.per_bio.member` when it remaps."""

    @abstractmethod
    def write(self, bio: Bio) -> None:
        """WRITE or DISCARD."""

    @abstractmethod
    def enough(self, without: Member | None = None) -> bool:
        """All data can be told, even without that member."""

    def spare(self, member: Member) -> bool:
        """It may be declared faulty."""
        return self.enough(member)


class Layout(Personality):
    """One place for all data. `stripe`: sectors of the array that are written together."""

    stripe: int

    def write(self, bio: Bio) -> None:
        data = bio.data if bio.op is Op.WRITE else bio.nr_sectors
        self.store(bio.op, bio.per_bio.at, data, fua=bio.fua)(bio.endio)

    @abstractmethod
    def retry(self, bio: Bio, member: Member) -> None:
        """A read from `member` failed: get the data elsewhere, write them back there, and end the bio."""

    @abstractmethod
    def fetch(self, at: int, data: memoryview) -> Step:
        """Read what lies in one chunk."""

    @abstractmethod
    def store(self, op: Op, at: int, data: memoryview | int | None, *, fua: bool = False) -> Step:
        """WRITE or DISCARD in one chunk."""

    @abstractmethod
    def lay(self, at: int, data: memoryview) -> Step:
        """Write whole stripes for good; nobody else uses them, whatever they held before."""

    @abstractmethod
    def first(self, at: int) -> int:
        """The first sector of devices, from `offset` on, that has to do with the array from `at` on."""

    @abstractmethod
    def last(self, at: int) -> int:
        """The sector behind all that have to do with the array up to `at`, likewise."""

    @abstractmethod
    def sync(self, start: int, end: int, action: str, done: Callable[[int], None]) -> None:
        """Make sync space equal, or compare; `done` gets the sectors that were not. The range is locked."""

    def job(self, op: Op, member: Member, sector: int, data: memoryview | int | None, *, fua: bool = False) -> Step:
        """A bio to a member."""
        return Request(op, member.dev.bdev, self.offset + sector, data, fua)
