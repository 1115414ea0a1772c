"""What a target starts and hears of later: single bios, and several at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..model.dm_target import BlockDevice, Op, submit

__all__ = ["Done", "Request", "Step", "gather"]

#: Takes an errno, 0 for success.
Done = Callable[[int], None]

#: Starts something and has `done(errno)` called when that ended: at once, or later in any thread.
Step = Callable[[Done], None]


@dataclass(slots=True)
class Request:
    """A bio, with the arguments of `Target.submit`."""

    op: Op
    bdev: BlockDevice
    sector: int
    data: memoryview | int | None
    fua: bool = False

    def __call__(self, done: Done) -> None:
        submit(self.op, self.bdev, self.sector, self.data, done, fua=self.fua)


def gather(steps: Sequence[Step], done: Callable[[list[int]], None]) -> None:
    """Start all steps; `done` gets their errnos in order once all have ended, at once when there are none."""
    if not steps:
        done([])
        return
    errors = [0] * len(steps)
    left = len(steps)
    lock = threading.Lock()

    def ended(number: int, error: int) -> None:
        nonlocal left
        errors[number] = error
        with lock:
            left -= 1
            if left:
                return
        done(errors)

    for number, step in enumerate(steps):
        step(lambda error, number=number: ended(number, error))  # type: ignore[misc]  # its default
