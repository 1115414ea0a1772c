"""What a block device can do and prefers (Linux `struct queue_limits`), and how it stacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import lcm
from operator import attrgetter
from typing import TypeAlias

from dmproto.wire import SECTOR_SIZE

__all__ = ["QueueLimits"]

_Shape: TypeAlias = tuple[int, int, int, int, int, int, bool]


class QueueLimits:
    """Sizes in bytes. `discard`, `write_zeroes`: the device takes such bios; a table decides that for all of its
    targets together (`DmTable.limits`)."""

    logical_block_size: int = 512
    physical_block_size: int = 512
    io_min: int = 512
    io_opt: int = 0
    alignment_offset: int = 0
    discard: bool = False
    discard_granularity: int = 0
    write_zeroes: bool = False
    rotational: bool = False

    def stack(self, below: QueueLimits, start: int = 0) -> bool:
        """Take in the limits of a device underneath that is used from sector `start` on (`blk_stack_limits`).

        False when the blocks of both do not line up.
        """
        before = _shape(self)
        shape, aligned = _stack(before, _shape(below), below.alignment_at(start))
        if shape != before:
            for name, value in zip(_NAMES, shape, strict=True):
                setattr(self, name, value)
        return aligned

    def alignment_at(self, sector: int) -> int:
        """Bytes from `sector` to the next boundary of what the device prefers (`queue_limit_alignment_offset`)."""
        granularity = max(self.physical_block_size, self.io_min)
        return (granularity + self.alignment_offset - sector * SECTOR_SIZE % granularity) % granularity


_NAMES = (
    "logical_block_size",
    "physical_block_size",
    "io_min",
    "io_opt",
    "alignment_offset",
    "discard_granularity",
    "rotational",
)
_shape: Callable[[QueueLimits], _Shape] = attrgetter(*_NAMES)


@lru_cache(64)  # a table of many targets is on few devices
def _stack(top: _Shape, below: _Shape, alignment: int) -> tuple[_Shape, bool]:
    logical, physical, io_min, io_opt, offset, discard_granularity, rotational = top
    aligned = True
    if offset != alignment:
        ends = max(physical, io_min) + offset, max(below[1], below[2]) + alignment
        aligned = not max(ends) % min(ends)
    logical, physical, io_min = max(logical, below[0]), max(physical, below[1]), max(io_min, below[2])
    io_opt = _lcm_not_zero(io_opt, below[3])
    if physical % logical:
        physical, aligned = logical, False
    if io_min & physical - 1:
        io_min, aligned = physical, False
    if io_opt & physical - 1:
        io_opt, aligned = 0, False
    offset = _lcm_not_zero(offset, alignment) % max(physical, io_min)
    shape = (
        logical,
        physical,
        io_min,
        io_opt,
        offset,
        max(discard_granularity, below[5]),
        rotational or below[6],
    )
    return shape, aligned and not offset % logical


def _lcm_not_zero(one: int, other: int) -> int:
    return lcm(one, other) or one or other
