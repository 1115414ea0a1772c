"""Worker threads for targets: work soon, work later (Linux workqueues and timers)."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["ThreadWork", "Work"]


class Work(Protocol):
    """What targets get: `queue` runs work soon, `later` after so many seconds; neither in the caller's stack. `now` is
    a clock in seconds that never goes back."""

    def now(self) -> float: ...

    def queue(self, work: Callable[[], None]) -> None: ...

    def later(self, seconds: float, work: Callable[[], None]) -> None: ...


class ThreadWork:
    """One worker thread, started when first needed, for all targets. Work must not block for long."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def now(self) -> float:
        return time.monotonic()

    def queue(self, work: Callable[[], None]) -> None:
        self.later(0, work)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        with self._wake:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._count), work))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dm-work", daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self) -> None:
        """Stop the thread; work that is not due yet is dropped."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _next(self) -> Callable[[], None] | None:
        with self._wake:
            while not self._stopped:
                if not self._due:
                    self._wake.wait()
                elif (wait := self._due[0][0] - time.monotonic()) > 0:
                    self._wake.wait(wait)
                else:
                    return heapq.heappop(self._due)[2]
        return None

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:
                import logging

                logging.getLogger(__name__).exception("%r raised; the work after it goes on", work)
