"""One epoll loop on raw file descriptors: descriptors, timers, signals, and calls from other threads.

Callbacks run one after another in the thread that called `run`, so nothing that they alone touch needs a lock.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Loop"]

Callback = Callable[[], None]

_BATCH = 64  #: descriptors handed out at once; room for more costs time at each wake-up


class Loop:
    """`EPOLL*` bits are those of `select`; a descriptor is level-triggered unless it asks for EPOLLET."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._soon: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Callback]] = []
        self._timer_ids = itertools.count()
        self._pending: set[int] = set()  # timers that are neither due nor cancelled
        self._signals: dict[int, Callback] = {}
        self._wakeup_pipe: tuple[int, int] | None = None
        self._running = False
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.add(self._eventfd, select.EPOLLIN, self._woken)

    # -- descriptors ------------------------------------------------------------------------------------

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` whenever `fd` is ready. It must put up with a call for nothing: a descriptor may be
        closed and its number used again while events of one wait are handed out."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of `fd`; 0 leaves EPOLLHUP and EPOLLERR."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget `fd`, before it is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    # -- calls ------------------------------------------------------------------------------------------

    def call_soon_threadsafe(self, callback: Callback) -> None:
        """Run `callback` in the loop's thread, in order. May be called from any thread."""
        self._soon.append(callback)
        os.eventfd_write(self._eventfd, 1)

    def call_later(self, seconds: float, callback: Callback) -> Callback:
        """Run `callback` once `seconds` have passed; returns the function that cancels it."""
        key = next(self._timer_ids)
        heapq.heappush(self._timers, (time.monotonic() + seconds, key, callback))
        self._pending.add(key)
        return lambda: self._pending.discard(key)

    def on_signal(self, number: int, callback: Callback) -> None:
        """Run `callback` in the loop when the signal comes. Main thread only; `close` restores the default action."""
        if self._wakeup_pipe is None:
            self._wakeup_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(self._wakeup_pipe[1], warn_on_full_buffer=False)
            self.add(self._wakeup_pipe[0], select.EPOLLIN, self._signalled)
        self._signals[number] = callback
        signal.signal(number, lambda number, frame: None)

    # -- running ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`."""
        self._running = True
        poll, callbacks = self._epoll.poll, self._callbacks
        while self._running:
            for fd, events in poll(self._timeout() if self._timers else -1, _BATCH):
                callback = callbacks.get(fd)
                if callback is not None:
                    callback(events)
            if self._timers:
                self._run_timers()

    def stop(self) -> None:
        """Let `run` return once the callbacks at hand have run. In the loop's thread."""
        self._running = False

    def close(self) -> None:
        """Free what the loop itself holds; descriptors added to it stay open."""
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
        if self._wakeup_pipe is not None:
            signal.set_wakeup_fd(-1)
            for fd in self._wakeup_pipe:
                os.close(fd)
        os.close(self._eventfd)
        self._epoll.close()

    def _timeout(self) -> float:
        while self._timers and self._timers[0][1] not in self._pending:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, key, callback = heapq.heappop(self._timers)
            if key in self._pending:
                self._pending.discard(key)
                _run(callback)

    def _woken(self, events: int) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return
        for _ in range(len(self._soon)):
            _run(self._soon.popleft())

    def _signalled(self, events: int) -> None:
        assert self._wakeup_pipe is not None
        try:
            numbers = os.read(self._wakeup_pipe[0], 512)
        except BlockingIOError:
            return
        for number in numbers:
            if callback := self._signals.get(number):
                callback()


def _run(callback: Callback) -> None:
    """A call that somebody left here: its failure is told, and is no reason to stop serving the others."""
    try:
        callback()
    except Exception:
        import logging

        logging.getLogger("dmserver").exception("a call in the loop failed")
