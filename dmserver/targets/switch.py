"""switch: regions of fixed size, each sent down one of several paths (Linux `drivers/md/dm-switch.c`).

Arguments: PATHS REGION_SIZE 0, then DEVICE START for each path; sizes in sectors. The message `set_region_mappings`
gives regions to paths: `INDEX:PATH`, `:PATH` for the next region, or `Rn,m` to repeat the last n of them over the m
that follow; all hexadecimal.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence

from ..model.dm_target import (
    Arguments,
    Bio,
    DmPdev,
    MapResult,
    StatusType,
    Target,
    TargetError,
    parse_uint,
)

__all__ = ["Switch"]

ULONG_MAX = 0xFFFFFFFFFFFFFFFF
MAX_PATHS = ((1 << 22) - 64) // 16  # what fits into the largest kmalloc()
_REPEAT = re.compile(r"[Rr]([0-9a-fA-F]+),([0-9a-fA-F]+)\Z")
_MAPPING = re.compile(r"([0-9a-fA-F]*):([0-9a-fA-F]+)\Z")


class Switch(Target):
    name = "switch"
    version = (1, 1, 0)
    num_discard_bios = 1

    def ctr(self, argv: Sequence[str]) -> None:
        arguments = Arguments(argv)
        nr_paths = self._number(arguments, 1, MAX_PATHS, "Invalid number of paths")
        self.region_size = self._number(arguments, 1, 0xFFFFFFFF, "Invalid region size")
        self._number(arguments, 0, 0, "Invalid number of optional args")
        if len(arguments) != 2 * nr_paths:
            raise self.refuse("Incorrect number of path arguments")
        self.max_io_len = self.region_size
        self.paths: list[tuple[DmPdev, int]] = []
        while arguments:
            pdev = self.get_device(arguments.shift())
            try:
                self.paths.append((pdev, parse_uint(arguments.shift(), 64)))
            except ValueError:
                raise self.refuse("Invalid device starting offset") from None
        self.nr_regions = -(-self.len // self.region_size)
        #: Path of each region that a message gave one; the others take turns.
        self.mappings: dict[int, int] = {}

    def _number(self, arguments: Arguments, low: int, high: int, complaint: str) -> int:
        try:
            return arguments.number(low, high)
        except ValueError:
            raise self.refuse(complaint) from None

    def _path_of(self, region: int) -> int:
        return self.mappings.get(region, region % len(self.paths))

    def map(self, bio: Bio) -> MapResult:
        offset = self.offset(bio.sector)
        pdev, start = self.paths[self._path_of(offset // self.region_size)]
        bio.bdev, bio.sector = pdev.bdev, start + offset
        return MapResult.REMAPPED

    def message(self, argv: Sequence[str]) -> None:
        if argv[0].lower() != "set_region_mappings":
            raise self._warn("Unrecognised message received.")
        region = 0
        for argument in argv[1:]:
            take = self._repeat if argument[:1] in ("R", "r") else self._set
            region = take(argument, region)

    def _warn(self, text: str) -> TargetError:
        self.log(text)
        return TargetError(errno.EINVAL)

    def _set(self, argument: str, region: int) -> int:
        match = _MAPPING.match(argument)
        if not match:
            raise self._warn(f"invalid set_region_mappings argument: '{argument}'")
        region = _hex(match[1]) if match[1] else region + 1
        path = _hex(match[2])
        if region >= self.nr_regions:
            raise self._warn(f"invalid set_region_mappings region number: {region} >= {self.nr_regions}")
        if path >= len(self.paths):
            raise self._warn(f"invalid set_region_mappings device: {path} >= {len(self.paths)}")
        self.mappings[region] = path
        return region

    def _repeat(self, argument: str, region: int) -> int:
        match = _REPEAT.match(argument)
        if not match:
            raise self._warn(f"invalid set_region_mappings argument: '{argument}'")
        cycle, count = _hex(match[1]), _hex(match[2])
        if not 0 <= cycle - 1 <= region:
            raise self._warn(f"invalid set_region_mappings cycle length: {cycle - 1 & ULONG_MAX} > {region}")
        if region + count >= self.nr_regions:
            raise self._warn(f"invalid set_region_mappings region number: {region} + {count} >= {self.nr_regions}")
        for following in range(region + 1, region + count + 1):
            self.mappings[following] = self._path_of(following - cycle)
        return region + count

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.INFO:
            return ""
        paths = "".join(f" {pdev.number} {start}" for pdev, start in self.paths)
        return f"{len(self.paths)} {self.region_size} 0{paths}"

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        for pdev, start in self.paths:
            yield pdev, start, self.len


def _hex(digits: str) -> int:
    """`parse_hex`, which wraps."""
    return int(digits, 16) & ULONG_MAX
