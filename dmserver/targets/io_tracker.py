"""Since when nothing has been under way (Linux `drivers/md/dm-io-tracker.h`)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

__all__ = ["IoTracker"]


class IoTracker:
    """Counts bios under way. `now` is a clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._in_flight = 0
        self._idle_since = -math.inf

    def begin(self) -> None:
        with self._lock:
            self._in_flight += 1

    def end(self) -> None:
        with self._lock:
            self._in_flight -= 1
            self._idle_since = self._now()

    @property
    def idle_time(self) -> float:
        """In seconds; infinite when there never was a bio."""
        with self._lock:
            return 0.0 if self._in_flight else self._now() - self._idle_since
