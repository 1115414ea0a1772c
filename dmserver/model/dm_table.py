"""A table: targets, in order, and the references to physical devices that they hold (Linux `dm-table.c`)."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..io.blockdev import BlockDevice
from ..io.limits import QueueLimits
from .dm_pdev import DmPdev
from .dm_target import Target

if TYPE_CHECKING:
    from .dm_dev import DmDev

__all__ = ["DmTable", "Resolver"]

#: How a control module finds what a table names: (key for the pdev list, path, device), or OSError.
Resolver = Callable[[str], tuple[Hashable, str, BlockDevice]]


class DmTable:
    """The targets of one slot of `device`; `size` in sectors is the sum of their lengths. `resolve` finds the devices
    that parameters name."""

    def __init__(self, device: DmDev, resolve: Resolver, *, read_only: bool = False) -> None:
        self.device = device
        self.read_only = read_only
        self.size = 0
        self.targets: list[Target] = []
        self.pdevs: Counter[DmPdev] = Counter()
        self._resolve = resolve
        self._taken: list[DmPdev] = []  # references of the newest target
        self._ends: list[int] = []

    @property
    def _user(self) -> Hashable:
        return (self.device, self.read_only)

    def add_target(self, kind: type[Target], begin: int, length: int, argv: Sequence[str]) -> Target:
        """Construct a target and append it. When `ctr` raises, the references it took are given back."""
        target = kind(self, begin, length)
        self._taken.clear()
        try:
            target.ctr(argv)
        except BaseException:
            for pdev in self._taken.copy():
                self.put_device(pdev)
            raise
        self.targets.append(target)
        self._ends.append(begin + length)
        self.size += length
        return target

    def append(self, other: DmTable) -> None:
        """Take over the targets of another table of the same device, behind those of this one."""
        for target in other.targets:
            target.table = self
        self.targets += other.targets
        self._ends += other._ends
        self.pdevs += other.pdevs
        self.size += other.size
        other.targets, other._ends, other.pdevs, other.size = [], [], Counter(), 0

    def get_device(self, name: str) -> DmPdev:
        """Take a reference to the device called `name`; OSError when there is none or it is busy."""
        key, path, bdev = self._resolve(name)
        pdev = self.device.mapper.pdevs.incr(key, path, bdev, self._user)
        self.pdevs[pdev] += 1
        self._taken.append(pdev)
        return pdev

    def put_device(self, pdev: DmPdev) -> None:
        """Give one reference back."""
        if pdev in self._taken:
            self._taken.remove(pdev)
        self.pdevs[pdev] -= 1
        if not self.pdevs[pdev]:
            del self.pdevs[pdev]
        self.device.mapper.pdevs.decr(pdev, self._user)

    def find_target(self, sector: int) -> Target | None:
        """The target that maps `sector`, in O(log n); None in a gap or past the end."""
        index = bisect_right(self._ends, sector)
        if index < len(self.targets) and self.targets[index].begin <= sector:
            return self.targets[index]
        return None

    def devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        """All that the targets use: (device, start, length in sectors)."""
        for target in self.targets:
            yield from target.iterate_devices()

    def limits(self) -> QueueLimits:
        """The limits that the mapped device shows: those underneath stacked, then each target's `io_hints`
        (`dm_calculate_queue_limits`). It discards, or writes zeroes, when all of its targets do."""
        limits = QueueLimits()
        limits.discard = limits.write_zeroes = bool(self.targets)
        for target in self.targets:
            below = [pdev.bdev.limits for pdev, _, _ in target.iterate_devices()]
            for limit in below:
                limits.stack(limit)
            if not target.num_discard_bios or not (
                target.discards_supported or (below and all(limit.discard for limit in below))
            ):
                limits.discard = False
            if not target.num_write_zeroes_bios or not below or not all(limit.write_zeroes for limit in below):
                limits.write_zeroes = False
            target.io_hints(limits)
        if not limits.discard:
            limits.discard_granularity = 0
        return limits

    def destroy(self) -> None:
        """Destroy the targets and give back every reference (`dm_table_destroy`)."""
        for target in self.targets:
            target.dtr()
        for pdev, count in list(self.pdevs.items()):
            for _ in range(count):
                self.put_device(pdev)
        self.targets.clear()
        self._ends.clear()
        self.size = 0
