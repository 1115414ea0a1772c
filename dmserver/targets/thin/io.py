"""What a thin pool reads and writes itself: its metadata, new blocks, discards. None of it waits."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence

from ...model.dm_target import SECTOR_SIZE, BlockDevice, Extent, Kcopyd, Op, submit
from .metadata import Commit
from .persistent_data import BLOCK_SIZE

__all__ = ["BLOCK_SECTORS", "copy_block", "discard_runs", "write_commit"]

#: Sectors of a block of metadata.
BLOCK_SECTORS = BLOCK_SIZE // SECTOR_SIZE

Done = Callable[[int], None]


def _after(count: int, done: Done) -> Done:
    """A function to be called `count` times, with errnos; then `done` gets the first that is none of success."""
    lock = threading.Lock()
    left, failed = count, 0

    def one_done(error: int) -> None:
        nonlocal left, failed
        with lock:
            failed = failed or error
            left -= 1
            if left:
                return
        done(failed)

    return one_done


def write_commit(commit: Commit, metadata: BlockDevice, data: BlockDevice, done: Done) -> None:
    """Flush the data, write the blocks, flush, write the superblock: whatever of it is lost, the metadata are whole."""

    def data_flushed(error: int) -> None:
        if error:
            done(error)
            return
        written = _after(len(commit.blocks) + 1, blocks_written)
        for block, image in commit.blocks:
            submit(Op.WRITE, metadata, block * BLOCK_SECTORS, memoryview(image), written)
        written(0)

    def blocks_written(error: int) -> None:
        if error:
            done(error)
        else:
            submit(Op.FLUSH, metadata, 0, None, blocks_flushed)

    def blocks_flushed(error: int) -> None:
        if error:
            done(error)
        else:
            submit(Op.WRITE, metadata, 0, memoryview(commit.superblock), done, fua=True)

    submit(Op.FLUSH, data, 0, None, data_flushed)


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
    discarded = _after(len(runs) + 1, done)
    for sector, length in runs:
        submit(Op.DISCARD, data, sector, length, discarded)
    discarded(0)
