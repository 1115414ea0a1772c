from __future__ import annotations

import errno
from pathlib import Path

import pytest
from support.era import checked, eras

from dmserver.targets.era.metadata import MAGIC, EraMetadata
from dmserver.targets.persistent_data.block import BLOCK_SIZE, Corrupt
from dmserver.targets.persistent_data.metadata import MetadataError
from dmserver.targets.persistent_data.superblock import BadSuperblock


class Disk:
    def __init__(self, blocks: int = 256) -> None:
        self.blocks = blocks
        self.image = bytearray(blocks * BLOCK_SIZE)

    def read(self, block: int) -> bytes:
        return bytes(self.image[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE])

    def open(self, block_size: int = 128) -> EraMetadata:
        return EraMetadata(self.read, self.blocks, block_size)

    def commit(self, metadata: EraMetadata) -> None:
        commit = metadata.prepare_commit()
        for block, image in [*commit.blocks, (0, commit.superblock)]:
            self.image[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] = image
        metadata.committed()


@pytest.fixture
def disk() -> Disk:
    return Disk()


def make(disk: Disk, nr_blocks: int) -> EraMetadata:
    metadata = disk.open()
    metadata.resize(nr_blocks)
    metadata.rollover()
    return metadata


def digest(metadata: EraMetadata) -> int:
    """All of it; returns in how many steps."""
    return sum(1 for _ in metadata.digest())


def roll_over(metadata: EraMetadata, times: int) -> None:
    for _ in range(times):
        metadata.rollover()


def test_fresh_metadata_are_what_the_tools_expect(disk: Disk, tmp_path: Path) -> None:
    metadata = disk.open()
    assert metadata.changed
    disk.commit(metadata)
    assert not metadata.changed
    assert metadata.is_current(disk.read(0))
    assert int.from_bytes(disk.read(0)[32:40], "little") == MAGIC
    metadata.resize(1)
    disk.commit(metadata)
    assert eras(checked(bytes(disk.image), tmp_path / "m")) == [0]


def test_what_is_marked_is_in_its_era(disk: Disk, tmp_path: Path) -> None:
    metadata = make(disk, 3000)
    for blocks in ((5, 2999), (5, 7), ()):
        for block in blocks:
            metadata.mark(block)
        metadata.rollover()
    disk.commit(metadata)
    expected = [0] * 3000
    expected[2999], expected[5], expected[7] = 1, 2, 2
    assert eras(checked(bytes(disk.image), tmp_path / "m")) == expected
    assert digest(disk.open()) == 3
    again = disk.open()
    digest(again)
    disk.commit(again)
    assert eras(checked(bytes(disk.image), tmp_path / "m")) == expected
    assert again.used_metadata_blocks < metadata.used_metadata_blocks


def test_what_a_current_writeset_has_is_marked_again(disk: Disk) -> None:
    metadata = make(disk, 300)
    metadata.mark(299)
    metadata.mark(2)
    disk.commit(metadata)
    assert metadata.marked == set()
    assert disk.open().marked == {2, 299}


def test_a_digest_goes_step_by_step(disk: Disk) -> None:
    metadata = make(disk, 1000)
    for block in range(250):
        metadata.mark(block)
    metadata.archive()
    assert metadata.archived
    assert digest(metadata) == 3
    assert not metadata.archived
    assert not digest(metadata)


def test_blocks_that_are_gone_are_not_digested(disk: Disk, tmp_path: Path) -> None:
    metadata = make(disk, 1000)
    for block in (3, 999):
        metadata.mark(block)
    metadata.archive()
    metadata.resize(100)
    digest(metadata)
    metadata.resize(1500)
    disk.commit(metadata)
    assert eras(checked(bytes(disk.image), tmp_path / "m")) == [0, 0, 0, 1] + [0] * 1496


def test_a_snapshot_stays_as_it_was(disk: Disk, tmp_path: Path) -> None:
    metadata = make(disk, 100)
    metadata.mark(1)
    metadata.prepare_snapshot()
    disk.commit(metadata)
    metadata.take_snapshot()
    disk.commit(metadata)
    with pytest.raises(MetadataError, match="already exists"):
        metadata.prepare_snapshot()
    metadata.mark(2)
    metadata.rollover()
    digest(metadata)
    disk.commit(metadata)
    assert eras(checked(bytes(disk.image), tmp_path / "m"))[:4] == [0, 1, 2, 0]
    again = disk.open()
    assert again.snapshot == metadata.snapshot
    shown = Disk()
    shown.image[:] = disk.image
    shown.image[:BLOCK_SIZE] = again._snapshot().pack()
    (tmp_path / "s").write_bytes(shown.image)
    assert eras(str(tmp_path / "s"))[:4] == [0, 1, 0, 0]
    again.drop_snapshot()
    disk.commit(again)
    checked(bytes(disk.image), tmp_path / "m")
    with pytest.raises(MetadataError, match="no snap to drop"):
        again.drop_snapshot()


def test_an_abort_goes_back_to_the_last_commit(disk: Disk, tmp_path: Path) -> None:
    metadata = make(disk, 100)
    metadata.mark(1)
    disk.commit(metadata)
    metadata.mark(2)
    metadata.rollover()
    metadata.abort()
    assert (metadata.current_era, metadata.marked, metadata.changed) == (1, {1}, False)
    metadata.rollover()
    disk.commit(metadata)
    assert eras(checked(bytes(disk.image), tmp_path / "m"))[:4] == [0, 1, 0, 0]


def test_metadata_that_are_full(tmp_path: Path) -> None:
    disk = Disk(16)
    metadata = make(disk, 100)
    disk.commit(metadata)
    with pytest.raises(OSError, match="No space left"):
        roll_over(metadata, 20)
    metadata.abort()
    assert metadata.current_era == 1
    disk.commit(metadata)
    checked(bytes(disk.image), tmp_path / "m")


def test_refusals(disk: Disk) -> None:
    metadata = disk.open()
    disk.commit(metadata)
    with pytest.raises(MetadataError, match=r"changing the data block size \(from 128 to 8\) is not supported"):
        disk.open(8)
    with pytest.raises(MetadataError, match="Invalid number of origin blocks 2147483648"):
        metadata.resize(1 << 31)
    disk.image[50] ^= 1
    with pytest.raises(Corrupt, match="csum"):
        disk.open()


def test_other_versions(disk: Disk) -> None:
    metadata = disk.open()
    metadata._superblock.version = 2
    disk.commit(metadata)
    text = "Era metadata version 2 found, but only versions between 1 and 1 supported."
    with pytest.raises(BadSuperblock, match=text) as refusal:
        disk.open()
    assert refusal.value.errno == errno.EINVAL
