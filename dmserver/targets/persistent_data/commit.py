"""Writing a transaction so that the metadata are whole, whatever gets lost (`dm_tm_commit`). None of it waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...model.dm_target import BlockDevice, Op, submit
from .block import BLOCK_SECTORS

__all__ = ["Commit", "Done", "after", "write_commit"]

Done = Callable[[int], None]


@dataclass(slots=True)
class Commit:
    """Blocks to write; when they are on stable storage, the superblock, and when that is, the commit is done."""

    superblock: bytes
    blocks: list[tuple[int, bytes]] = field(default_factory=list)


def after(count: int, done: Done) -> Done:
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


def write_commit(commit: Commit, metadata: BlockDevice, data: Sequence[BlockDevice], done: Done) -> None:
    """Flush the data, write the blocks, flush, write the superblock."""

    def data_flushed(error: int) -> None:
        if error:
            done(error)
            return
        written = after(len(commit.blocks) + 1, blocks_written)
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

    flushed = after(len(data) + 1, data_flushed)
    for device in data:
        submit(Op.FLUSH, device, 0, None, flushed)
    flushed(0)
