"""The target types of NetBSD's driver: its own argument checks, versions and status lines (sys/dev/dm:
dm_target_linear.c, dm_target_stripe.c, dm_target_zero.c, dm_target_error.c; January 2025).

A device that cannot be opened, for whatever reason, is ENOENT.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence

from ..model.args import wrapped
from ..model.dm_pdev import DmPdev
from ..model.dm_target import Bio, Extent, MapResult, Op, StatusType, Target

__all__ = ["MAX_ARGC", "NETBSD_TARGETS", "atoi64", "split_params"]

#: Arguments of one target (`args` of dm_table_init); the rest is not looked at.
MAX_ARGC = 32

_DIGITS = re.compile(r"[0-9]*")


def atoi64(text: str) -> int:
    """The leading digits, wrapping at 2**64; 0 when there are none."""
    match = _DIGITS.match(text)
    return wrapped(match[0] or "0") if match else 0


def split_params(params: str) -> list[str]:
    """Split at blanks and tabs."""
    return [word for word in re.split("[ \t]+", params) if word][:MAX_ARGC]


class _NetbsdTarget(Target):
    num_flush_bios = num_discard_bios = num_write_zeroes_bios = 1

    def insert(self, path: str) -> DmPdev:
        """`dm_pdev_insert`, and its callers' answer when it fails."""
        try:
            return self.table.get_device(path)
        except OSError as failure:
            raise self.refuse(f"cannot open {path}: {failure.strerror or failure}", errno.ENOENT) from failure


class Linear(_NetbsdTarget):
    """Arguments: DEVICE OFFSET."""

    name = "linear"
    version = (1, 0, 2)

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) != 2:
            raise self.refuse(f"expected 2 arguments (device, offset), got {len(argv)}")
        self.pdev = self.insert(argv[0])
        self.start = atoi64(argv[1])

    def remap(self, sector: int) -> Extent:
        offset = self.offset(sector)
        return Extent(self.pdev.bdev, self.start + offset, self.len - offset)

    def status(self, kind: StatusType) -> str:
        return f"{self.pdev.number} {self.start}" if kind is StatusType.TABLE else ""

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.pdev, self.start, self.len


class Striped(_NetbsdTarget):
    """Arguments: COUNT CHUNK (DEVICE OFFSET)*COUNT; chunk in sectors. The count is an uint8_t, nothing is checked."""

    name = "striped"
    version = (1, 0, 3)

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) < 2:
            raise self.refuse(f"expected a stripe count and a chunk size, got {len(argv)} arguments")
        count = atoi64(argv[0]) & 0xFF
        self.chunk = self.max_io_len = atoi64(argv[1])
        self.stripes: list[tuple[DmPdev, int]] = []
        for at in range(2, 2 + 2 * count, 2):
            if at >= len(argv):
                raise self.refuse(f"{count} stripes, but only {len(self.stripes)} devices with an offset")
            pdev = self.insert(argv[at])
            if at + 1 >= len(argv):
                raise self.refuse(f"no offset behind {argv[at]}")
            self.stripes.append((pdev, atoi64(argv[at + 1])))

    def remap(self, sector: int) -> Extent | None:
        if not self.chunk or not self.stripes:
            return None
        chunk, within = divmod(self.offset(sector), self.chunk)
        row, stripe = divmod(chunk, len(self.stripes))
        pdev, start = self.stripes[stripe]
        return Extent(pdev.bdev, start + row * self.chunk + within, self.chunk - within)

    def status(self, kind: StatusType) -> str:
        count = len(self.stripes)
        if kind is StatusType.INFO:
            return "".join([f"{count} ", *(f"{pdev.number} " for pdev, _ in self.stripes), "1 ", "A" * count])
        return " ".join([f"{count} {self.chunk}", *(f"{pdev.number} {start}" for pdev, start in self.stripes)])

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        for pdev, start in self.stripes:
            yield pdev, start, self.len // len(self.stripes)


class Error(_NetbsdTarget):
    """No arguments. All I/O fails."""

    name = "error"
    version = (1, 0, 0)

    def map(self, bio: Bio) -> MapResult:
        return MapResult.KILL


class Zero(_NetbsdTarget):
    """No arguments. Reads give zeroes, writes go nowhere."""

    name = "zero"
    version = (1, 0, 0)

    def map(self, bio: Bio) -> MapResult:
        if bio.op is Op.READ and bio.data is not None:
            bio.data[:] = bytes(len(bio.data))
        bio.endio()
        return MapResult.SUBMITTED


#: In the order of the `targets` command.
NETBSD_TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (Linear, Striped, Error, Zero)}
