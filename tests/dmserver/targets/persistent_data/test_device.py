from __future__ import annotations

import pytest
from support.targets import FaultyDisk

from dmserver.targets.persistent_data.block import BLOCK_SIZE
from dmserver.targets.persistent_data.commit import Commit
from dmserver.targets.persistent_data.device import block_reader, commit_now, metadata_blocks


def test_a_block_is_read_as_it_was_written() -> None:
    disk = FaultyDisk(0)
    block = bytes(range(256)) * 16
    commit_now(Commit(block, [(5, block)]), disk)
    read = block_reader(disk)
    assert read(0) == read(5) == block
    assert read(1) == bytes(BLOCK_SIZE)


def test_failures_are_raised() -> None:
    disk = FaultyDisk(0)
    disk.fail = lambda bio: True
    with pytest.raises(OSError, match="block 3 of /dev/ram0"):
        block_reader(disk)(3)
    with pytest.raises(OSError, match="/dev/ram0"):
        commit_now(Commit(bytes(BLOCK_SIZE)), disk)


def test_there_is_an_end_to_what_is_used() -> None:
    assert metadata_blocks(FaultyDisk(0)) == 2048
    assert metadata_blocks(FaultyDisk(0, "16G")) == 255 * ((1 << 14) - 64)
