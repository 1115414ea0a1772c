"""How minor numbers are handed out: Linux takes the lowest free one, NetBSD the next one, for ever."""

from __future__ import annotations

import heapq
from typing import Protocol

__all__ = ["EverGrowing", "LowestFree", "Minors"]


class Minors(Protocol):
    def take(self) -> int:
        """A minor that nobody has."""

    def reserve(self, minor: int) -> bool:
        """Take this very one; False when it is taken."""

    def free(self, minor: int) -> None:
        """Give one back."""


class LowestFree:
    """Linux's `idr_alloc`: the lowest free number, in O(log n)."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._freed: list[int] = []
        self._next = 0

    def take(self) -> int:
        while self._freed:
            minor = heapq.heappop(self._freed)
            if minor not in self._taken:
                self._taken.add(minor)
                return minor
        while self._next in self._taken:
            self._next += 1
        self._taken.add(self._next)
        self._next += 1
        return self._next - 1

    def reserve(self, minor: int) -> bool:
        if minor in self._taken:
            return False
        self._taken.add(minor)
        return True

    def free(self, minor: int) -> None:
        self._taken.remove(minor)
        if minor < self._next:
            heapq.heappush(self._freed, minor)


class EverGrowing:
    """NetBSD's: from 1 up, never used again."""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> int:
        self._next += 1
        return self._next

    def reserve(self, minor: int) -> bool:
        if minor <= self._next:
            return False
        self._next = minor
        return True

    def free(self, minor: int) -> None:
        pass
