"""flakey: a device that is good for a while and bad for a while (Linux `drivers/md/dm-flakey.c`).

Arguments: DEVICE START UP DOWN [NUM [drop_writes | error_writes] [corrupt_bio_byte NTH r|w VALUE FLAGS]], UP and DOWN
in seconds, NUM the number of words that follow. While the device is down, writes vanish, or fail, or have their NTH
byte (from 1) changed to VALUE; reads have it changed, or come through where only writes suffer; without a feature all
I/O fails. FLAGS: a bio is spared unless it has all these bits of `bi_opf`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..model.dm_target import Arguments, Bio, DmPdev, MapResult, Op, StatusType, Target, parse_sector

__all__ = ["Flakey"]

UINT_MAX = 0xFFFFFFFF
#: `bi_opf` of the bios that carry data: REQ_OP_READ, REQ_OP_WRITE, and REQ_FUA.
OPF = {Op.READ: 0, Op.WRITE: 1}
REQ_FUA = 1 << 17


@dataclass(slots=True)
class Corruption:
    """corrupt_bio_byte: what happens to which byte of which bios."""

    nth: int
    direction: Op
    value: int
    flags: int

    def concerns(self, bio: Bio) -> bool:
        if bio.op is not self.direction or bio.data is None or self.nth > len(bio.data):
            return False
        opf = OPF[bio.op] | (REQ_FUA if bio.fua else 0)
        return opf & self.flags == self.flags

    def __str__(self) -> str:
        return f"corrupt_bio_byte {self.nth} {'w' if self.direction is Op.WRITE else 'r'} {self.value} {self.flags} "


class _Carried:
    """`down`: the bio was mapped while the device was down."""

    down = False


class Flakey(Target):
    name = "flakey"
    version = (1, 5, 0)
    per_bio_data = _Carried
    num_flush_bios = num_discard_bios = 1

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) < 4:
            raise self.refuse("Invalid argument count")
        self.start_time = self.now()
        args = Arguments(argv)
        path = args.shift()
        self.start = self._read(lambda: parse_sector(args.shift()), "Invalid device sector")
        self.up_interval = self._read(lambda: args.number(0, UINT_MAX), "Invalid up interval")
        self.down_interval = self._read(lambda: args.number(0, UINT_MAX), "Invalid down interval")
        if not self.up_interval + self.down_interval & UINT_MAX:
            raise self.refuse("Total (up + down) interval is zero")
        if self.up_interval + self.down_interval > UINT_MAX:
            raise self.refuse("Interval overflow")
        self._parse_features(args)
        self.dev = self.get_device(path)

    def _read(self, read: Callable[[], int], complaint: str) -> int:
        try:
            return read()
        except ValueError:
            raise self.refuse(complaint) from None

    def _parse_features(self, args: Arguments) -> None:
        self.writes = ""  #: what happens to writes: "drop_writes", "error_writes" or nothing special
        self.corruption: Corruption | None = None
        if not args:
            return
        count = self._read(lambda: args.group(0, 6), "Invalid number of feature args")
        end = len(args) - count
        while len(args) != end:  # corrupt_bio_byte may have taken too many
            if not args:
                raise self.refuse("Insufficient feature arguments")
            feature = args.shift().lower()
            if feature in ("drop_writes", "error_writes"):
                if self.writes == feature:
                    raise self.refuse(f"Feature {feature} duplicated")
                if self.writes:
                    raise self.refuse(f"Feature {feature} conflicts with feature {self.writes}")
                self.writes = feature
            elif feature == "corrupt_bio_byte":
                if len(args) <= end:
                    raise self.refuse("Feature corrupt_bio_byte requires parameters")
                self.corruption = self._parse_corruption(args)
            else:
                raise self.refuse("Unrecognised flakey feature requested")
        if self.writes and self.corruption and self.corruption.direction is Op.WRITE:
            raise self.refuse(f"{self.writes} is incompatible with corrupt_bio_byte with the WRITE flag set")

    def _parse_corruption(self, args: Arguments) -> Corruption:
        nth = self._read(lambda: args.number(1, UINT_MAX), "Invalid corrupt bio byte")
        direction = {"r": Op.READ, "w": Op.WRITE}.get(args.shift().lower())
        if direction is None:
            raise self.refuse("Invalid corrupt bio direction (r or w)")
        value = self._read(lambda: args.number(0, 255), "Invalid corrupt value to write into bio byte (0-255)")
        flags = self._read(lambda: args.number(0, UINT_MAX), "Invalid corrupt bio flags mask")
        return Corruption(nth, direction, value, flags)

    @property
    def is_down(self) -> bool:
        elapsed = int(self.now() - self.start_time)
        return elapsed % (self.up_interval + self.down_interval) >= self.up_interval

    def map(self, bio: Bio) -> MapResult:
        if self.is_down:
            bio.per_bio.down = True
            if not self.writes and not self.corruption:
                return MapResult.KILL
            if bio.op is not Op.READ and self.writes:
                bio.endio(errno.EIO if self.writes == "error_writes" else 0)
                return MapResult.SUBMITTED
            if bio.op is Op.WRITE and self.corruption and self.corruption.concerns(bio):
                assert bio.data is not None
                bio.data = memoryview(bytearray(bio.data))  # the writer's own buffer stays as it is
                bio.data[self.corruption.nth - 1] = self.corruption.value
        bio.bdev = self.dev.bdev
        if bio.op is not Op.FLUSH:
            bio.sector = self.start + self.offset(bio.sector)
        return MapResult.REMAPPED

    def end_io(self, bio: Bio, error: int) -> int:
        corruption = self.corruption
        if not error and bio.per_bio.down and bio.op is Op.READ and corruption and corruption.concerns(bio):
            assert bio.data is not None
            bio.data[corruption.nth - 1] = corruption.value
        return error

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.INFO:
            return ""
        features = f"{self.writes} " if self.writes else ""
        count = bool(self.writes) + 5 * bool(self.corruption)
        return (
            f"{self.dev.number} {self.start} {self.up_interval} {self.down_interval} {count} {features}"
            f"{self.corruption or ''}"
        )

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.dev, self.start, self.len
