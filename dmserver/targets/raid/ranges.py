"""Locks on ranges of sectors."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Claim", "Ranges"]


@dataclass(slots=True, eq=False)
class Claim:
    """A range that is locked."""

    start: int
    end: int
    exclusive: bool
    run: Callable[[Claim], None]

    def bars(self, other: Claim) -> bool:
        return self.start < other.end and other.start < self.end and (self.exclusive or other.exclusive)


class Ranges:
    """Locks on ranges, shared or exclusive, in the order of asking."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[Claim] = []
        self._waiting: list[Claim] = []
        self._ready: deque[Claim] = deque()
        self._starting = False

    def lock(self, start: int, end: int, run: Callable[[Claim], None], *, exclusive: bool) -> None:
        """Call `run(claim)` once the range is free."""
        with self._lock:
            self._waiting.append(Claim(start, end, exclusive, run))
        self._start()

    def unlock(self, claim: Claim) -> None:
        with self._lock:
            self._held.remove(claim)
        self._start()

    def _start(self) -> None:
        """Run what may; one thread at a time does, so that nobody's stack grows."""
        with self._lock:
            still: list[Claim] = []
            for claim in self._waiting:
                if any(other.bars(claim) for other in (*self._held, *still)):
                    still.append(claim)
                else:
                    self._held.append(claim)
                    self._ready.append(claim)
            self._waiting = still
            if self._starting:
                return
            self._starting = True
        while ready := self._next():
            ready.run(ready)

    def _next(self) -> Claim | None:
        with self._lock:
            if self._ready:
                return self._ready.popleft()
            self._starting = False
            return None
