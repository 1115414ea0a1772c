"""delay: hold each bio for some milliseconds (Linux `drivers/md/dm-delay.c`).

Arguments: DEVICE START DELAY, once for everything, or twice (reads; writes and flushes), or thrice (reads; writes;
flushes). DELAY in milliseconds. A suspension lets go of what is held.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..model.dm_target import Bio, DmPdev, MapResult, Op, StatusType, Target, parse_sector, parse_u32

__all__ = ["Delay"]


@dataclass(slots=True)
class DelayClass:
    """Where bios of one kind go, how late (milliseconds), and how many are held (`struct delay_class`)."""

    dev: DmPdev
    start: int
    delay: int
    ops: int = 0

    def __str__(self) -> str:
        return f"{self.dev.number} {self.start} {self.delay}"


class Delay(Target):
    name = "delay"
    version = (1, 3, 0)
    num_flush_bios = num_discard_bios = 1

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) not in (3, 6, 9):
            raise self.refuse("Requires exactly 3, 6 or 9 arguments")
        given = [argv[at : at + 3] for at in range(0, len(argv), 3)]
        self.given = len(given)
        given += given[-1:] * (3 - len(given))
        self.read, self.write, self.flush = (self._class(*words) for words in given)
        self.may_delay = True
        self._held: dict[Bio, DelayClass] = {}
        self._lock = threading.Lock()

    def _class(self, path: str, start: str, delay: str) -> DelayClass:
        try:
            sector = parse_sector(start)
        except ValueError:
            raise self.refuse("Invalid device sector") from None
        try:
            milliseconds = parse_u32(delay)
        except ValueError:
            raise self.refuse("Invalid delay") from None
        return DelayClass(self.get_device(path), sector, milliseconds)

    def map(self, bio: Bio) -> MapResult:
        kind = self.read if bio.op is Op.READ else self.flush if bio.op is Op.FLUSH else self.write
        bio.bdev = kind.dev.bdev
        if bio.op is not Op.FLUSH:
            bio.sector = kind.start + self.offset(bio.sector)
        with self._lock:
            if not kind.delay or not self.may_delay:
                return MapResult.REMAPPED
            kind.ops += 1
            self._held[bio] = kind
        self.call_later(kind.delay / 1000, lambda: self._let_go(bio))
        return MapResult.SUBMITTED

    def _let_go(self, bio: Bio) -> None:
        with self._lock:
            kind = self._held.pop(bio, None)
            if kind is None:
                return
            kind.ops -= 1
        kind.dev.bdev.submit_bio(bio)

    def presuspend(self) -> None:
        with self._lock:
            self.may_delay = False
            held = list(self._held)
        for bio in held:
            self._let_go(bio)

    def resume(self) -> None:
        self.may_delay = True

    def status(self, kind: StatusType) -> str:
        classes = (self.read, self.write, self.flush)
        if kind is StatusType.INFO:
            return " ".join(str(each.ops) for each in classes)
        return " ".join(map(str, classes[: self.given]))

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        for kind in (self.read, self.write, self.flush):
            yield kind.dev, kind.start, self.len
