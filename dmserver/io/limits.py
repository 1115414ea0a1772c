"""What a block device can do and prefers (Linux `struct queue_limits`), and how it stacks."""

from __future__ import annotations

from math import lcm

from dmproto.wire import SECTOR_SIZE

__all__ = ["QueueLimits"]


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
        aligned = self._stack_alignment(below, below.alignment_at(start))
        self.discard_granularity = max(self.discard_granularity, below.discard_granularity)
        self.rotational |= below.rotational
        return aligned

    def alignment_at(self, sector: int) -> int:
        """Bytes from `sector` to the next boundary of what the device prefers (`queue_limit_alignment_offset`)."""
        granularity = self._granularity
        return (granularity + self.alignment_offset - sector * SECTOR_SIZE % granularity) % granularity

    @property
    def _granularity(self) -> int:
        return max(self.physical_block_size, self.io_min)

    def _stack_alignment(self, below: QueueLimits, alignment: int) -> bool:
        aligned = True
        if self.alignment_offset != alignment:
            top = self._granularity + self.alignment_offset
            bottom = below._granularity + alignment
            aligned = not max(top, bottom) % min(top, bottom)
        self.logical_block_size = max(self.logical_block_size, below.logical_block_size)
        self.physical_block_size = max(self.physical_block_size, below.physical_block_size)
        self.io_min = max(self.io_min, below.io_min)
        self.io_opt = _lcm_not_zero(self.io_opt, below.io_opt)
        if self.physical_block_size % self.logical_block_size:
            self.physical_block_size, aligned = self.logical_block_size, False
        if self.io_min & self.physical_block_size - 1:
            self.io_min, aligned = self.physical_block_size, False
        if self.io_opt & self.physical_block_size - 1:
            self.io_opt, aligned = 0, False
        self.alignment_offset = _lcm_not_zero(self.alignment_offset, alignment) % self._granularity
        return aligned and not self.alignment_offset % self.logical_block_size


def _lcm_not_zero(one: int, other: int) -> int:
    return lcm(one, other) or one or other
