"""unstriped: one stripe of a striped device (Linux `drivers/md/dm-unstripe.c`).

Arguments: STRIPES CHUNK STRIPE DEVICE START; CHUNK and START in sectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..model.dm_target import DmPdev, Extent, StatusType, Target, TargetError, parse_sector, parse_uint

__all__ = ["Unstriped"]


class Unstriped(Target):
    name = "unstriped"
    version = (1, 1, 0)
    num_flush_bios = 1

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) != 5:
            raise self.refuse("Invalid number of arguments")
        self.stripes = self._number(argv[0], 1, "Invalid stripe count")
        self.chunk = self._number(argv[1], 1, "Invalid chunk_size")
        self.stripe = self._number(argv[2], 0, "Invalid stripe number")
        if self.stripe > self.stripes > 1:
            raise self.refuse("Please provide stripe between [0, # of stripes]")
        try:
            self.dev = self.get_device(argv[3])
        except TargetError:
            raise self.refuse("Couldn't get striped device") from None
        try:
            self.start = parse_sector(argv[4])
        except ValueError:
            raise self.refuse("Invalid striped device offset") from None
        if self.len % self.chunk:
            raise self.refuse("Target length not divisible by chunk size")
        self.max_io_len = self.chunk

    def _number(self, text: str, least: int, complaint: str) -> int:
        try:
            if (number := parse_uint(text)) >= least:
                return number
        except ValueError:
            pass
        raise self.refuse(complaint)

    def remap(self, sector: int) -> Extent:
        offset = self.offset(sector)
        row, within = divmod(offset, self.chunk)
        skipped = row * (self.stripes - 1) + self.stripe
        return Extent(self.dev.bdev, self.start + offset + skipped * self.chunk, self.chunk - within)

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.INFO:
            return ""
        return f"{self.stripes} {self.chunk} {self.stripe} {self.dev.number} {self.start}"

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.dev, self.start, self.len
