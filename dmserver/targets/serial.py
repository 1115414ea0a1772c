"""Jobs that do I/O, one after the other, without blocking a thread.

A job is a generator: it yields each `Step`, most often a `Request`, and is sent the errno (0: success) that came of it;
it returns an errno of its own. Code that has to lock, read, change and write then reads as if it waited.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import TypeVar

from ..model.dm_target import BlockDevice, wait_for
from .steps import Done, Step

__all__ = ["Job", "SerialQueue"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

Job = Generator[Step, int, int]


class _Answer:
    """The end of a step: it is taken at once, or passed on when it comes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._error: int | None = None
        self._then: Done | None = None

    def come(self, error: int) -> None:
        with self._lock:
            self._error, then = error, self._then
        if then:
            then(error)

    def take(self, then: Done) -> int | None:
        """The errno if it is there; None: `then` will be called with it."""
        with self._lock:
            if self._error is None:
                self._then = then
            return self._error


class SerialQueue:
    """Runs jobs one at a time, in order; callable from any thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Job, Done]] = deque()
        self._later: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._busy = False

    def start(self, job: Job, done: Done) -> None:
        """Run a job after those before it; `done` gets its errno."""
        with self._lock:
            self._waiting.append((job, done))
            if self._busy:
                return
            self._busy = True
        self._run()

    def run(self, job: Job, *devices: BlockDevice) -> int:
        """`start` and wait; returns the errno, EAGAIN when one of the `devices` might hold up the job for ever. Not in
        the way of a bio."""
        return wait_for(lambda done: self.start(job, done), *devices)

    def between(self, work: Callable[[], T], later: Callable[[], None]) -> T | None:
        """What `work` returns, called while no job runs. None when one does: `later` is called once none does.

        `work` is short: it does not wait, sends nothing, and starts no job.
        """
        with self._lock:
            if not self._busy:
                return work()
            self._later.append(later)
            return None

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    later, self._later = self._later, []
                    break
                job, done = self._waiting.popleft()
            if not self._advance(job, done, None):
                return
        for call in later:
            call()

    def _advance(self, job: Job, done: Done, error: int | None) -> bool:
        """Run a job to its end (True), or until it has to wait: then it goes on, and the queue with it, later."""
        while True:
            try:
                step = next(job) if error is None else job.send(error)
            except StopIteration as stop:
                done(stop.value)
                return True
            except Exception:
                _log.exception("%r raised; its bio fails", job)
                done(errno.EIO)
                return True
            answer = _Answer()
            step(answer.come)
            error = answer.take(lambda error: self._go_on(job, done, error))
            if error is None:
                return False

    def _go_on(self, job: Job, done: Done, error: int) -> None:
        if self._advance(job, done, error):
            self._run()
