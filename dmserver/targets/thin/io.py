"""What a thin pool reads and writes itself besides its metadata: new blocks, discards. None of it waits."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ...model.dm_target import SECTOR_SIZE, BlockDevice, Extent, Kcopyd, Op, submit
from ..steps import Done, Request, gather

__all__ = ["copy_block", "discard_runs"]


def copy_block(kcopyd: Kcopyd, source: Extent, data: BlockDevice, sector: int, size: int, done: Done) -> None:
    """Fill a block of `size` sectors with a copy, and with zeroes what is behind the end of the source."""

    def copied(read_failed: bool, failed: frozenset[int]) -> None:
        if read_failed or failed:
            done(errno.EIO)
        elif source.length < size:
            zeroes = memoryview(bytes((size - source.length) * SECTOR_SIZE))
            submit(Op.WRITE, data, sector + source.length, zeroes, done)
        else:
            done(0)

    kcopyd.copy((source.device, source.sector), [(data, sector)], source.length, copied)


def discard_runs(data: BlockDevice, runs: Sequence[tuple[int, int]], done: Done) -> None:
    """Discard runs of (sector, sectors)."""
    discards = [Request(Op.DISCARD, data, sector, length) for sector, length in runs]
    gather(discards, lambda errors: done(max(errors, default=0)))
