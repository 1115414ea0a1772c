"""What a block device can do and prefers (Linux `struct queue_limits`), and how it stacks."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QueueLimits"]


@dataclass(slots=True)
class QueueLimits:
    """Sizes in bytes. `discard`, `write_zeroes`: the device takes such bios; a table decides that for all of its
    targets together (`DmTable.limits`)."""

    logical_block_size: int = 512
    physical_block_size: int = 512
    io_min: int = 512
    io_opt: int = 0
    discard: bool = False
    discard_granularity: int = 0
    write_zeroes: bool = False
    rotational: bool = False

    def stack(self, below: QueueLimits) -> None:
        """Take in the limits of a device underneath (`blk_stack_limits`)."""
        self.logical_block_size = max(self.logical_block_size, below.logical_block_size)
        self.physical_block_size = max(self.physical_block_size, below.physical_block_size)
        self.io_min = max(self.io_min, below.io_min)
        self.io_opt = max(self.io_opt, below.io_opt)
        self.discard_granularity = max(self.discard_granularity, below.discard_granularity)
        self.rotational |= below.rotational
