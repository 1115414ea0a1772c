"""What a block device can do and prefers (Linux `struct queue_limits`), and how it stacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import lcm
from operator import attrgetter
from typing import Any, NamedTuple

from dmproto.wire import SECTOR_SIZE

__all__ = ["IntegrityProfile", "QueueLimits"]


class IntegrityProfile(NamedTuple):
    """A device keeps `tag_size` bytes for each block of `interval` bytes: `Bio.tags` (`struct blk_integrity`)."""

    tag_size: int
    interval: int


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
    #: What is kept beside the data; it does not stack.
    integrity: IntegrityProfile | None = None

    def stack(self, below: QueueLimits, start: int = 0) -> bool:
        """Take in the limits of a device underneath that is used from sector `start` on (`blk_stack_limits`).

        False when the blocks of both do not line up.
        """
        before = _values(self)
        after, aligned = _stack(before, _values(below), below.alignment_at(start))
        if after != before:
            for name, value in zip(_Shape._fields, after, strict=True):
                setattr(self, name, value)
        return aligned

    def alignment_at(self, sector: int) -> int:
        """Bytes from `sector` to the next boundary of what the device prefers (`queue_limit_alignment_offset`)."""
        granularity = max(self.physical_block_size, self.io_min)
        return (granularity + self.alignment_offset - sector * SECTOR_SIZE % granularity) % granularity


class _Shape(NamedTuple):
    """What is stacked of `QueueLimits`."""

    logical_block_size: int
    physical_block_size: int
    io_min: int
    io_opt: int
    alignment_offset: int
    discard_granularity: int
    rotational: bool

    @property
    def granularity(self) -> int:
        return max(self.physical_block_size, self.io_min)


_Values = tuple[Any, ...]
_values: Callable[[QueueLimits], _Values] = attrgetter(*_Shape._fields)


@lru_cache(64)  # a table of many targets is on few devices
def _stack(upper: _Values, lower: _Values, alignment: int) -> tuple[_Shape, bool]:
    top, below = _Shape(*upper), _Shape(*lower)
    aligned = True
    if top.alignment_offset != alignment:
        ends = top.granularity + top.alignment_offset, below.granularity + alignment
        aligned = not max(ends) % min(ends)
    logical = max(top.logical_block_size, below.logical_block_size)
    physical = max(top.physical_block_size, below.physical_block_size)
    io_min = max(top.io_min, below.io_min)
    io_opt = _lcm_not_zero(top.io_opt, below.io_opt)
    if physical % logical:
        physical, aligned = logical, False
    if io_min & physical - 1:
        io_min, aligned = physical, False
    if io_opt & physical - 1:
        io_opt, aligned = 0, False
    offset = _lcm_not_zero(top.alignment_offset, alignment) % max(physical, io_min)
    discard_granularity = max(top.discard_granularity, below.discard_granularity)
    shape = _Shape(logical, physical, io_min, io_opt, offset, discard_granularity, top.rotational or below.rotational)
    return shape, aligned and not offset % logical


def _lcm_not_zero(one: int, other: int) -> int:
    return lcm(one, other) or one or other
