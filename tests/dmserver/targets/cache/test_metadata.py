from __future__ import annotations

import errno
from pathlib import Path

import pytest
from support.thin import thin_tool

from dmserver.targets.cache.metadata import CacheMetadata, Mapping
from dmserver.targets.cache.superblock import Stats, Superblock
from dmserver.targets.persistent_data.block import BLOCK_SIZE, Corrupt
from dmserver.targets.persistent_data.metadata import MetadataError

SMQ = (b"smq", 2, 4)


class MetadataDisk:
    """A metadata device of `blocks` blocks."""

    def __init__(self, blocks: int = 256) -> None:
        self.blocks = blocks
        self.image = bytearray(blocks * BLOCK_SIZE)

    def read(self, block: int) -> bytes:
        return bytes(self.image[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE])

    def open(self, version: int = 1, block_size: int = 64) -> CacheMetadata:
        metadata = CacheMetadata(self.read, self.blocks, block_size, version)
        self.commit(metadata)
        return metadata

    def commit(self, metadata: CacheMetadata) -> None:
        commit = metadata.prepare_commit()
        for block, image in [*commit.blocks, (0, commit.superblock)]:
            self.image[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] = image
        metadata.committed()

    def suspend(self, metadata: CacheMetadata, dirty: set[int], hints: list[int]) -> None:
        """What a suspension leaves."""
        metadata.set_dirty(dirty)
        metadata.set_discards(128, 100, {3, 4, 99})
        metadata.stats = Stats(1, 2, 3, 1 << 32)
        metadata.write_hints(b"smq", (2, 0, 0), hints)
        metadata.clean = True
        self.commit(metadata)

    def save(self, path: Path) -> str:
        path.write_bytes(self.image)
        return str(path)


def used(disk: MetadataDisk, version: int, blocks: int = 1000) -> CacheMetadata:
    """Metadata with three mappings, of which the second is dirty."""
    metadata = disk.open(version)
    metadata.resize(blocks)
    for cblock, oblock in ((0, 70), (7, 1), (blocks - 1, 1 << 40)):
        metadata.insert(cblock, oblock)
    disk.suspend(metadata, {7}, [cblock % 64 for cblock in range(blocks)])
    return metadata


@pytest.mark.parametrize("version", [1, 2])
def test_what_a_suspension_leaves_is_found_again(version: int, tmp_path: Path) -> None:
    disk = MetadataDisk()
    used(disk, version)
    thin_tool("cache_check", disk.save(tmp_path / "metadata"))
    metadata = disk.open()
    mappings = [Mapping(0, 70, False, 0), Mapping(7, 1, True, 7), Mapping(999, 1 << 40, False, 39)]
    assert list(metadata.mappings(*SMQ)) == mappings
    assert metadata.discards() == (128, [3, 4, 99])
    assert metadata.stats == Stats(1, 2, 3, 0)
    assert metadata.cache_blocks == 1000


@pytest.mark.parametrize("version", [1, 2])
def test_after_a_crash_all_is_dirty_and_nothing_discarded(version: int) -> None:
    disk = MetadataDisk()
    used(disk, version)
    disk.open()
    metadata = disk.open()
    assert [(mapping.dirty, mapping.hint) for mapping in metadata.mappings(*SMQ)] == [(True, None)] * 3
    assert metadata.discards() == (128, [])


@pytest.mark.parametrize("policy", [(b"mq", 2, 4), (b"smq", 1, 4), (b"smq", 2, 0)])
def test_hints_of_another_policy_are_no_hints(policy: tuple[bytes, int, int]) -> None:
    disk = MetadataDisk()
    used(disk, 1)
    assert {mapping.hint for mapping in disk.open().mappings(*policy)} == {None}


@pytest.mark.parametrize("version", [1, 2])
def test_dirty_bits_go_as_they_came(version: int) -> None:
    disk = MetadataDisk()
    metadata = used(disk, version)
    metadata.remove(7)
    disk.suspend(metadata, {0}, [])
    assert [(mapping.cblock, mapping.dirty) for mapping in disk.open().mappings(*SMQ)] == [(0, True), (999, False)]


def test_what_the_tools_dump_is_what_we_mean(tmp_path: Path) -> None:
    """And what they restore from it is what we read."""
    disk = MetadataDisk()
    used(disk, 1)
    dumped = thin_tool("cache_dump", disk.save(tmp_path / "metadata"))
    assert 'block_size="64" nr_cache_blocks="1000" policy="smq" hint_width="4"' in dumped
    assert '<mapping cache_block="7" origin_block="1" dirty="true"/>' in dumped
    assert '<mapping cache_block="999" origin_block="1099511627776" dirty="false"/>' in dumped
    (tmp_path / "dumped").write_text(dumped)
    for version in (1, 2):
        restored = disk.save(tmp_path / "restored")
        source = str(tmp_path / "dumped")
        thin_tool("cache_restore", "-i", source, "-o", restored, "--metadata-version", str(version))
        again = MetadataDisk()
        again.image = bytearray((tmp_path / "restored").read_bytes())
        found = [(mapping.cblock, mapping.oblock, mapping.dirty) for mapping in again.open().mappings(*SMQ)]
        assert found == [(0, 70, False), (7, 1, True), (999, 1 << 40, False)]
        thin_tool("cache_check", again.save(tmp_path / "again"))


@pytest.mark.parametrize("version", [1, 2])
def test_only_clean_blocks_go(version: int, tmp_path: Path) -> None:
    disk = MetadataDisk()
    metadata = used(disk, version)
    metadata.resize(8)
    with pytest.raises(MetadataError) as refusal:
        metadata.resize(7)
    where = "" if version == 1 else "blocks_are_clean_separate_dirty: "
    assert refusal.value.messages == (f"{where}cache block 7 is dirty", "unable to shrink cache due to dirty blocks")
    metadata.resize(2000)
    metadata.clean = False
    disk.commit(metadata)
    thin_tool("cache_check", disk.save(tmp_path / "metadata"))
    assert [mapping.cblock for mapping in disk.open().mappings(*SMQ)] == [0, 7]


def test_an_aborted_transaction_is_gone() -> None:
    disk = MetadataDisk()
    metadata = used(disk, 1)
    metadata.remove(0)
    metadata.resize(2000)
    metadata.abort()
    assert not metadata.changed
    assert [mapping.cblock for mapping in metadata.mappings(*SMQ)] == [0, 7, 999]
    disk.image[:BLOCK_SIZE] = metadata.set_needs_check()
    assert disk.open().needs_check


def test_metadata_of_another_cache() -> None:
    disk = MetadataDisk()
    disk.open()
    with pytest.raises(MetadataError) as refusal:
        disk.open(block_size=128)
    assert refusal.value.messages == ("changing the data block size (from 64 to 128) is not supported",)
    assert refusal.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("superblock", "what"),
    [
        (Superblock(data_block_size=64, incompat_flags=16), "metadata due to unsupported optional features (10)."),
        (Superblock(data_block_size=64, compat_ro_flags=1), "metadata RDWR due to unsupported optional features (1)."),
    ],
)
def test_features_of_the_future(superblock: Superblock, what: str) -> None:
    disk = MetadataDisk()
    disk.image[:BLOCK_SIZE] = superblock.pack()
    with pytest.raises(MetadataError, match="could not access") as refusal:
        disk.open()
    assert refusal.value.messages == ("could not access " + what,)


def test_a_device_that_is_too_small() -> None:
    with pytest.raises(MetadataError, match="tm_create_with_sm failed") as refusal:
        MetadataDisk(3).open()
    assert refusal.value.errno == errno.ENOSPC


def test_a_cache_block_that_is_none() -> None:
    metadata = used(MetadataDisk(), 1)
    with pytest.raises(Corrupt):
        metadata.insert(1000, 1)
