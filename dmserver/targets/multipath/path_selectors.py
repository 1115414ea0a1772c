"""How a multipath's priority group picks the path for a bio (Linux `dm-round-robin.c`, `dm-queue-length.c`,
`dm-service-time.c`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...model.dm_target import DmPdev, StatusType, parse_u32

__all__ = ["SELECTORS", "Path", "PathSelector"]

MAX_RELATIVE_THROUGHPUT = 100


@dataclass(slots=True, eq=False)
class Path:
    """One path: a device, and what its selector knows of it. `in_flight` counts bios, `in_flight_bytes` bytes."""

    dev: DmPdev
    group: int
    is_active: bool = True
    fail_count: int = 0
    repeat_count: int = 1
    relative_throughput: int = 1
    in_flight: int = 0
    in_flight_bytes: int = 0


class PathSelector(ABC):
    """`info_args`, `table_args`: how many words a path has in a status line. `valid`: the paths to choose from."""

    name: ClassVar[str]
    max_args: ClassVar[int] = 1
    info_args: ClassVar[int]
    table_args: ClassVar[int] = 1

    def __init__(self) -> None:
        self.valid: list[Path] = []

    def add_path(self, path: Path, argv: Sequence[str], warn: Callable[[str], None]) -> None:
        """Take a path with its arguments, [REPEAT_COUNT]. ValueError with the kernel's words; `warn` logs."""
        if len(argv) > self.max_args:
            raise ValueError(f"{self.name} ps: incorrect number of arguments")
        try:
            repeat_count = parse_u32(argv[0]) if argv else 1
        except ValueError:
            raise ValueError(f"{self.name} ps: invalid repeat count") from None
        if repeat_count > 1:
            warn("repeat_count > 1 is deprecated, using 1 instead")
            repeat_count = 1
        path.repeat_count = repeat_count
        self.valid.append(path)

    def fail_path(self, path: Path) -> None:
        self.valid.remove(path)

    def reinstate_path(self, path: Path) -> None:
        self.valid.append(path)

    def select(self, nr_bytes: int) -> Path | None:
        """The path for the next `nr_bytes`. The first in the list becomes the last, so that equals take turns."""
        if not self.valid:
            return None
        self.valid.append(self.valid.pop(0))
        return self.best(nr_bytes)

    @abstractmethod
    def best(self, nr_bytes: int) -> Path:
        """The best of `valid`."""

    def status(self, path: Path, kind: StatusType) -> str:
        """Words about a path, each with a blank behind it."""
        return f"{path.repeat_count} " if kind is StatusType.TABLE else ""


class RoundRobin(PathSelector):
    name = "round-robin"
    info_args = 0

    def best(self, nr_bytes: int) -> Path:
        return self.valid[-1]


class QueueLength(PathSelector):
    """The path with the fewest bios under way."""

    name = "queue-length"
    info_args = 1

    def best(self, nr_bytes: int) -> Path:
        return min(self.valid, key=lambda path: path.in_flight)

    def status(self, path: Path, kind: StatusType) -> str:
        return super().status(path, kind) or f"{path.in_flight} "


class ServiceTime(PathSelector):
    """The path that will be done first: bytes under way by relative throughput."""

    name = "service-time"
    max_args = 2
    info_args = 2
    table_args = 2

    def add_path(self, path: Path, argv: Sequence[str], warn: Callable[[str], None]) -> None:
        super().add_path(path, argv, warn)
        try:
            path.relative_throughput = parse_u32(argv[1]) if len(argv) > 1 else 1
            if path.relative_throughput > MAX_RELATIVE_THROUGHPUT:
                raise ValueError(f"{argv[1]}: expected at most {MAX_RELATIVE_THROUGHPUT}")
        except ValueError:
            raise ValueError(f"{self.name} ps: invalid relative_throughput value") from None

    def best(self, nr_bytes: int) -> Path:
        usable = [path for path in self.valid if path.relative_throughput] or self.valid
        return min(
            usable,
            key=lambda path: (
                (path.in_flight_bytes + nr_bytes) / (path.relative_throughput or 1),
                -path.relative_throughput,
            ),
        )

    def status(self, path: Path, kind: StatusType) -> str:
        first = path.repeat_count if kind is StatusType.TABLE else path.in_flight_bytes
        return f"{first} {path.relative_throughput} "


SELECTORS: dict[str, type[PathSelector]] = {kind.name: kind for kind in (RoundRobin, QueueLength, ServiceTime)}
