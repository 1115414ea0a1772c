"""Metadata on their device, for those who may wait: constructors and their like."""

from __future__ import annotations

import os
from collections.abc import Callable

from ...model.dm_target import BlockDevice, Op, do_io, wait_for
from .block import BLOCK_SECTORS, BLOCK_SIZE
from .commit import Commit, write_commit
from .space_map import MAX_METADATA_BLOCKS

__all__ = ["block_reader", "commit_now", "metadata_blocks"]


def metadata_blocks(device: BlockDevice) -> int:
    """How many blocks of a metadata device are used."""
    return min(device.size // BLOCK_SECTORS, MAX_METADATA_BLOCKS)


def block_reader(device: BlockDevice) -> Callable[[int], bytes]:
    """A function that reads one block, or raises OSError."""

    def read(block: int) -> bytes:
        image = memoryview(bytearray(BLOCK_SIZE))
        if error := do_io(Op.READ, device, block * BLOCK_SECTORS, image):
            raise OSError(error, os.strerror(error), f"block {block} of {device.path}")
        return bytes(image)

    return read


def commit_now(commit: Commit, device: BlockDevice) -> None:
    """Write a transaction and wait for it; OSError when that fails, or might never end."""
    if error := wait_for(lambda done: write_commit(commit, device, [], done), device):
        raise OSError(error, os.strerror(error), device.path)
