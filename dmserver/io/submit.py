"""Handing bios over: the list of bios yet to be started in this thread, and a way to wait for one.

A target's `map` may submit bios to other mapped devices, whose targets do so again. As in the kernel
(`current->bio_list`), such bios wait until the `map` at hand has returned, so a deep stack takes no deep recursion.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable

from .bio import Bio, Op
from .blockdev import BlockDevice

__all__ = ["TURN", "is_suspended", "run_apart", "run_flat", "submit_and_wait", "wait_for"]

#: Seconds between two looks at whether what is waited for can still come.
TURN = 0.05

#: No request comes through so many devices: a route leads through 64, and so does what goes from one to the next.
_DEEPEST = 128


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


def run_apart(start: Callable[[], None]) -> None:
    """Start bios that are going to be waited for: they must not wait for one under way in this thread."""
    outer, _active.bios = _active.bios, None
    try:
        start()
    finally:
        _active.bios = outer


def is_suspended(device: BlockDevice) -> bool:
    """A request to it might wait for a command: it is suspended, or holds bios (`Target.holds_bios`), or a device that
    its table uses is or does; or it is mapped onto itself, and might wait for itself."""
    return _waits(device, [], set())


def _waits(device: BlockDevice, above: list[BlockDevice], moving: set[BlockDevice]) -> bool:
    io = device.mapped_io
    if io is None or device in moving or len(above) == _DEEPEST:
        return False
    if io.blocked or device in above:
        return True
    above.append(device)
    if table := io.device.live:
        for target in table.targets:
            if target.holds_bios:
                return True
        for pdev in table.pdevs:
            if _waits(pdev.bdev, above, moving):
                return True
    moving.add(above.pop())
    return False


def wait_for(start: Callable[[Callable[[int], None]], None], *devices: BlockDevice) -> int:
    """Call `start(done)`, wait until `done(errno)` is called, and return that errno; EAGAIN when one of the devices
    that this takes is suspended: it might be for ever."""
    errors: list[int] = []
    ended = threading.Event()

    def done(error: int) -> None:
        errors.append(error)
        ended.set()

    start(done)
    while not ended.is_set():
        if any(map(is_suspended, devices)):
            return errno.EAGAIN
        ended.wait(TURN)
    return errors[0]


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
    run_apart(lambda: bdev.submit_bio(bio))
    ended.acquire()
    return bio.error
