"""striped: chunks of several devices in turn (Linux `drivers/md/dm-stripe.c`).

Arguments: STRIPES CHUNK, then DEVICE START for each stripe; CHUNK and START in sectors.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from ..model.dm_target import (
    Bio,
    DmPdev,
    Extent,
    MapResult,
    Op,
    QueueLimits,
    StatusType,
    Target,
    parse_sector,
    parse_uint,
)

__all__ = ["Striped"]

#: Failures of one stripe that are announced with an event (`DM_IO_ERROR_THRESHOLD`).
ERROR_THRESHOLD = 15


class Striped(Target):
    name = "striped"
    version = (1, 6, 0)
    module = "dm-mod"

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) < 2:
            raise self.refuse("Not enough arguments")
        stripes = self._count(argv[0], "Invalid stripe count")
        self.chunk = self._count(argv[1], "Invalid chunk_size")
        self.width, rest = divmod(self.len, stripes)
        if rest:
            raise self.refuse("Target length not divisible by number of stripes")
        if self.width % self.chunk:
            raise self.refuse("Target length not divisible by chunk size")
        if len(argv) != 2 + 2 * stripes:
            raise self.refuse("Not enough destinations specified")
        self.max_io_len = self.chunk
        self.num_flush_bios = self.num_discard_bios = self.num_write_zeroes_bios = stripes
        self.stripes = [self._stripe(path, start) for path, start in zip(argv[2::2], argv[3::2], strict=True)]
        self.errors = [0] * stripes

    def _count(self, text: str, complaint: str) -> int:
        try:
            if count := parse_uint(text):
                return count
        except ValueError:
            pass
        raise self.refuse(complaint)

    def _stripe(self, path: str, start: str) -> tuple[DmPdev, int]:
        complaint = "Couldn't parse stripe destination"
        try:
            sector = parse_sector(start)
        except ValueError:
            raise self.refuse(complaint) from None
        return self.get_device(path, complaint), sector

    def _locate(self, offset: int) -> tuple[int, int]:
        """The stripe of a sector of this target, and the sector on that stripe."""
        chunk, within = divmod(offset, self.chunk)
        row, stripe = divmod(chunk, len(self.stripes))
        return stripe, row * self.chunk + within

    def remap(self, sector: int) -> Extent:
        stripe, at = self._locate(self.offset(sector))
        pdev, start = self.stripes[stripe]
        return Extent(pdev.bdev, start + at, self.chunk - at % self.chunk)

    def map(self, bio: Bio) -> MapResult:
        if bio.op in (Op.DISCARD, Op.WRITE_ZEROES):
            return self._map_range(bio)
        return super().map(bio)

    def _first_from(self, offset: int, stripe: int) -> int:
        """The first sector on `stripe` that belongs to `offset` or lies behind it (`stripe_map_range_sector`)."""
        at_stripe, at = self._locate(offset)
        if at_stripe == stripe:
            return at
        row = at - at % self.chunk
        return row + self.chunk if at_stripe > stripe else row

    def _map_range(self, bio: Bio) -> MapResult:
        """What of the range lies on the stripe whose copy this is (`stripe_map_range`)."""
        offset = self.offset(bio.sector)
        begin = self._first_from(offset, bio.target_bio_nr)
        end = self._first_from(offset + bio.nr_sectors, bio.target_bio_nr)
        if begin >= end:
            bio.endio()
            return MapResult.SUBMITTED
        pdev, start = self.stripes[bio.target_bio_nr]
        bio.bdev, bio.sector, bio.nr_sectors = pdev.bdev, start + begin, end - begin
        return MapResult.REMAPPED

    def end_io(self, bio: Bio, error: int) -> int:
        if error not in (0, errno.EOPNOTSUPP):
            for stripe, (pdev, _) in enumerate(self.stripes):
                if pdev.bdev is bio.bdev:
                    self.errors[stripe] += 1
                    if self.errors[stripe] < ERROR_THRESHOLD:
                        self.queue_work(self.event)
        return error

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.TABLE:
            stripes = "".join(f" {pdev.number} {start}" for pdev, start in self.stripes)
            return f"{len(self.stripes)} {self.chunk}{stripes}"
        numbers = " ".join(pdev.number for pdev, _ in self.stripes)
        health = "".join("D" if errors else "A" for errors in self.errors)
        return f"{len(self.stripes)} {numbers} 1 {health}"

    def ima_status(self) -> str:
        stripes = "".join(
            f",stripe_{at}_device_name={pdev.number},stripe_{at}_physical_start={start}"
            f",stripe_{at}_status={'D' if self.errors[at] else 'A'}"
            for at, (pdev, start) in enumerate(self.stripes)
        )
        return f"{self.ima_name()},stripes={len(self.stripes)},chunk_size={self.chunk}{stripes};"

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        for pdev, start in self.stripes:
            yield pdev, start, self.width

    def io_hints(self, limits: QueueLimits) -> None:
        limits.io_min = max(limits.io_min, self.chunk * 512)
        limits.io_opt = self.chunk * 512 * len(self.stripes)
