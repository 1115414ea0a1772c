"""Handing bios over: the list of bios yet to be started in this thread, and a way to wait for one.

A target's `map` may submit bios to other mapped devices, whose targets do so again. As in the kernel
(`current->bio_list`), such bios wait until the `map` at hand has returned, so a deep stack takes no deep recursion.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from .bio import Bio, Op
from .blockdev import BlockDevice

__all__ = ["is_suspended", "run_flat", "submit_and_wait"]


class _Active(threading.local):
    bios: deque[tuple[Callable[[Bio], None], Bio]] | None = None


_active = _Active()


def run_flat(start: Callable[[Bio], None], bio: Bio) -> None:
    """Call `start(bio)` now, or after the one under way in this thread."""
    waiting = _active.bios
    if waiting is not None:
        waiting.append((start, bio))
        return
    _active.bios = waiting = deque()
    try:
        start(bio)
        while waiting:
            start, bio = waiting.popleft()
            start(bio)
    finally:
        _active.bios = None


def is_suspended(device: BlockDevice) -> bool:
    """A request to it would wait for a resume, of this device or of one underneath."""
    io = device.mapped_io
    if io is None:
        return False
    below = io.device.live.devices() if io.device.live else ()
    return io.blocked or any(is_suspended(pdev.bdev) for pdev, _, _ in below)


def submit_and_wait(
    bdev: BlockDevice,
    op: Op,
    sector: int = 0,
    nr_sectors: int = 0,
    data: memoryview | None = None,
    *,
    fua: bool = False,
) -> int:
    """Do one request and wait for it: 0 or an errno (`submit_bio_wait`). READ fills `data`, WRITE takes it.

    It blocks for as long as the device is suspended, so not in the thread that would resume it.
    """
    ended = threading.Lock()
    ended.acquire()
    bio = Bio(op, sector, nr_sectors, data, lambda _: ended.release(), fua=fua, bdev=bdev)
    outer, _active.bios = _active.bios, None  # a `map` that waits must not wait for itself
    try:
        bdev.submit_bio(bio)
        ended.acquire()
    finally:
        _active.bios = outer
    return bio.error
