"""The legs of a mirror: what went wrong on each, and which of them is read (Linux `drivers/md/dm-raid1.c`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...model.dm_target import DmPdev

__all__ = ["Leg", "Legs"]


@dataclass(slots=True, eq=False)
class Leg:
    """`struct mirror`. `errors`: the letters of what went wrong (Flush, write = D, Sync, Read)."""

    dev: DmPdev
    offset: int
    errors: set[str] = field(default_factory=set)

    @property
    def health(self) -> str:
        return next((letter for letter in "FDSR" if letter in self.errors), "A")


class Legs(list[Leg]):
    """All legs, at least one. `default` has what is not in sync on the others, and is read first."""

    def __init__(self, legs: Iterable[Leg]) -> None:
        super().__init__(legs)
        self.default = self[0]

    def choose(self) -> Leg | None:
        """A leg without errors, the default one first, then backwards (`choose_mirror`)."""
        first = self.index(self.default)
        return next((leg for back in range(len(self)) if not (leg := self[first - back]).errors), None)

    def valid(self) -> Leg | None:
        """The first leg without errors (`get_valid_mirror`)."""
        return next((leg for leg in self if not leg.errors), None)
