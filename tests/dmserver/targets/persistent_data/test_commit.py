from __future__ import annotations

import errno

import pytest
from support.targets import FaultyDisk

from dmserver.io.bio import Op
from dmserver.targets.persistent_data.block import BLOCK_SIZE
from dmserver.targets.persistent_data.commit import Commit, write_commit

COMMIT = Commit(bytes(BLOCK_SIZE), [(3, bytes(BLOCK_SIZE)), (5, bytes(BLOCK_SIZE))])


def test_the_superblock_comes_last() -> None:
    metadata, data = FaultyDisk(0), FaultyDisk(1)
    ended: list[int] = []
    write_commit(COMMIT, metadata, [data], ended.append)
    assert ended == [0]
    assert data.log == [(Op.FLUSH, 0, 0)]
    assert metadata.log == [(Op.WRITE, 24, 8), (Op.WRITE, 40, 8), (Op.FLUSH, 0, 0), (Op.WRITE, 0, 8)]


@pytest.mark.parametrize("failing", [(Op.FLUSH, 0), (Op.WRITE, 40)])
def test_nothing_follows_a_failure(failing: tuple[Op, int]) -> None:
    metadata = FaultyDisk(0)
    metadata.fail = lambda bio: (bio.op, bio.sector) == failing
    ended: list[int] = []
    write_commit(COMMIT, metadata, [], ended.append)
    assert ended == [errno.EIO]
    assert (metadata.log[-1][0], metadata.log[-1][1]) == failing


def test_no_metadata_tell_of_data_that_were_lost() -> None:
    metadata, data = FaultyDisk(0), FaultyDisk(1)
    data.fail = lambda bio: True
    ended: list[int] = []
    write_commit(COMMIT, metadata, [data], ended.append)
    assert ended == [errno.EIO]
    assert not metadata.log
