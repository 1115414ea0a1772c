"""linear: a run of sectors of one device (Linux `drivers/md/dm-linear.c`).

Arguments: DEVICE START.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..model.dm_target import DmPdev, Extent, StatusType, Target, parse_sector

__all__ = ["Linear"]


class Linear(Target):
    name = "linear"
    version = (1, 4, 0)
    module = "dm-mod"
    num_flush_bios = num_discard_bios = num_write_zeroes_bios = 1

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) != 2:
            raise self.refuse("Invalid argument count")
        try:
            self.start = parse_sector(argv[1])
        except ValueError:
            raise self.refuse("Invalid device sector") from None
        self.dev = self.get_device(argv[0])

    def remap(self, sector: int) -> Extent:
        offset = self.offset(sector)
        return Extent(self.dev.bdev, self.start + offset, self.len - offset)

    def status(self, kind: StatusType) -> str:
        return f"{self.dev.number} {self.start}" if kind is StatusType.TABLE else ""

    def ima_status(self) -> str:
        return f"{self.ima_name()},device_name={self.dev.number},start={self.start};"

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.dev, self.start, self.len
