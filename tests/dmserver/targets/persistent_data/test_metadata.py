from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from dmserver.targets.persistent_data.block import BLOCK_SIZE, Corrupt
from dmserver.targets.persistent_data.commit import Commit
from dmserver.targets.persistent_data.metadata import Metadata, MetadataError, check_data_block_size


@dataclass
class Superblock:
    metadata_space_map_root: bytes = bytes(128)
    number: int = 0

    def pack(self) -> bytes:
        return str(self.number).encode()


class Numbered(Metadata[Superblock]):
    """One number, in the superblock, on a disk of `blocks` blocks."""

    def __init__(self, disk: dict[int, bytes], blocks: int) -> None:
        super().__init__(lambda block: disk.get(block, bytes(BLOCK_SIZE)))
        self._bind()
        self._space_map.create(blocks)
        self._begin(Superblock())

    @property
    def number(self) -> int:
        return self._superblock.number

    def count(self) -> None:
        self._superblock.number += 1
        self.transaction.new(bytes(BLOCK_SIZE))
        self.changed = True


def commit(metadata: Numbered, disk: dict[int, bytes]) -> Commit:
    written = metadata.prepare_commit()
    disk.update(written.blocks)
    metadata.committed()
    return written


def test_what_is_new_is_to_be_committed() -> None:
    disk: dict[int, bytes] = {}
    metadata = Numbered(disk, 10)
    assert metadata.changed
    assert metadata.metadata_blocks == 10
    metadata.count()
    assert commit(metadata, disk).superblock == b"1"
    assert not metadata.changed


def test_an_abort_goes_back_to_the_last_commit() -> None:
    disk: dict[int, bytes] = {}
    metadata = Numbered(disk, 10)
    metadata.count()
    commit(metadata, disk)
    for _ in range(2):
        metadata.count()
        metadata.abort()
        assert metadata.number == 1
        assert not metadata.changed
        assert not metadata.transaction.fresh
    metadata.count()
    assert commit(metadata, disk).superblock == b"2"


def test_before_the_first_commit_there_is_nothing_to_go_back_to() -> None:
    metadata = Numbered({}, 10)
    with pytest.raises(Corrupt):
        metadata.abort()


def test_a_refusal_without_words_shows_its_errno() -> None:
    assert str(MetadataError(errno.EPERM)) == "EPERM"
    assert str(MetadataError(errno.EINVAL, "one", "two")) == "one; two"


def test_data_blocks_have_one_size() -> None:
    check_data_block_size(64, 64)
    with pytest.raises(MetadataError, match=r"\(from 64 to 128\)") as refusal:
        check_data_block_size(64, 128)
    assert refusal.value.errno == errno.EINVAL


def test_an_abort_before_the_first_commit_reads_nothing() -> None:
    """It may be called where a read would wait for itself."""
    metadata = Numbered({0: b"not a bitmap"}, 10)
    with pytest.raises(Corrupt, match="nothing was ever committed"):
        metadata.abort()
