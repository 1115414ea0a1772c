"""Writing a transaction so that the metadata are whole, whatever gets lost (`dm_tm_commit`). None of it waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...model.dm_target import BlockDevice, Op, submit
from ..steps import Done, Request, gather
from .block import BLOCK_SECTORS

__all__ = ["Commit", "write_commit"]


@dataclass(slots=True)
class Commit:
    """Blocks to write; when they are on stable storage, the superblock, and when that is, the commit is done."""

    superblock: bytes
    blocks: list[tuple[int, bytes]] = field(default_factory=list)


def write_commit(commit: Commit, metadata: BlockDevice, data: Sequence[BlockDevice], done: Done) -> None:
    """Flush the data, write the blocks, flush, write the superblock."""

    def data_flushed(errors: list[int]) -> None:
        if any(errors):
            done(max(errors))
            return
        gather(
            [Request(Op.WRITE, metadata, block * BLOCK_SECTORS, memoryview(image)) for block, image in commit.blocks],
            blocks_written,
        )

    def blocks_written(errors: list[int]) -> None:
        if any(errors):
            done(max(errors))
        else:
            submit(Op.FLUSH, metadata, 0, None, blocks_flushed)

    def blocks_flushed(error: int) -> None:
        if error:
            done(error)
        else:
            submit(Op.WRITE, metadata, 0, memoryview(commit.superblock), done, fua=True)

    gather([Request(Op.FLUSH, device, 0, None) for device in data], data_flushed)
