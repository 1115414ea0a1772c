from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
from support.thin import MetadataDisk, thin_tool

from dmserver.targets.persistent_data.block import Corrupt
from dmserver.targets.persistent_data.metadata import MetadataError
from dmserver.targets.thin.metadata import ThinMetadata

Expected = dict[int, dict[int, int]]


def write(metadata: ThinMetadata, number: int, virtual: int, expected: Expected) -> None:
    device = metadata.open_device(number)
    found = metadata.find(device, virtual)
    if found is None or found.shared:
        block = metadata.allocate_data_block()
        metadata.insert(device, virtual, block)
        expected[number][virtual] = block
    metadata.close_device(device)


def mappings(metadata: ThinMetadata, expected: Expected) -> Expected:
    found = {}
    for number in expected:
        device = metadata.open_device(number)
        found[number] = dict(metadata.mapped(device, 0, 1 << 40))
        assert device.mapped_blocks == len(found[number])
        assert metadata.highest(device) == max(found[number], default=None)
        metadata.close_device(device)
    return found


def scene(blocks: int = 1000) -> tuple[MetadataDisk, ThinMetadata]:
    disk = MetadataDisk()
    metadata = disk.open()
    metadata.resize_data(blocks)
    metadata.create_thin(0)
    disk.commit(metadata)
    return disk, metadata


def play(disk: MetadataDisk, metadata: ThinMetadata, dice: random.Random, expected: Expected, rounds: int) -> None:
    """Writes, discards, snapshots and deletions."""
    for _ in range(rounds):
        number = dice.choice(sorted(expected))
        what = dice.random()
        if what < 0.9:
            write(metadata, number, dice.randrange(2000), expected)
        elif what < 0.95:
            device, begin = metadata.open_device(number), dice.randrange(2000)
            metadata.remove(device, begin, begin + 100)
            metadata.close_device(device)
            expected[number] = {at: b for at, b in expected[number].items() if not begin <= at < begin + 100}
        elif what < 0.98 and len(expected) < 6:
            new = max(expected) + 1
            metadata.create_snap(new, number)
            expected[new] = dict(expected[number])
        elif len(expected) > 1:
            metadata.delete(number)
            del expected[number]


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_are_what_thin_check_accepts(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    disk, metadata = scene(40000)
    expected: Expected = {0: {}}
    for turn in range(6):
        play(disk, metadata, dice, expected, 400)
        if turn == 3:
            disk.commit(metadata)
            metadata.reserve_snapshot()
        disk.commit(metadata)
        path = disk.save(tmp_path / "metadata")
        thin_tool("thin_check", path)
        if dice.random() < 0.5:
            metadata = disk.open()
        assert mappings(metadata, expected) == expected
        used = {block for blocks in expected.values() for block in blocks.values()}
        if turn < 3:
            assert metadata.data_blocks - metadata.free_data_blocks == len(used)
    metadata.release_snapshot()
    for number in list(expected):
        metadata.delete(number)
    disk.commit(metadata)
    thin_tool("thin_check", disk.save(tmp_path / "metadata"))
    assert metadata.free_data_blocks == metadata.data_blocks


def test_what_restore_makes_is_read_and_what_is_written_dumps(tmp_path: Path) -> None:
    text = """<superblock uuid="" time="1" transaction="7" version="2" data_block_size="128" nr_data_blocks="500">
  <device dev_id="3" mapped_blocks="3" transaction="2" creation_time="0" snap_time="1">
    <single_mapping origin_block="0" data_block="20" time="0"/>
    <range_mapping origin_begin="4" data_begin="7" length="2" time="1"/>
  </device>
</superblock>
"""
    (tmp_path / "xml").write_text(text)
    disk = MetadataDisk()
    path = disk.save(tmp_path / "metadata")
    thin_tool("thin_restore", "-i", str(tmp_path / "xml"), "-o", path)
    disk.image = bytearray(Path(path).read_bytes())
    metadata = disk.open()
    assert metadata.transaction_id == 7
    device = metadata.open_device(3)
    assert metadata.mapped(device, 0, 9) == [(0, 20), (4, 7), (5, 8)]
    assert [metadata.find(device, virtual) for virtual in (0, 4, 1)] == [(20, True), (7, False), None]
    metadata.insert(device, 0, metadata.allocate_data_block())
    metadata.set_transaction_id(7, 8)
    disk.commit(metadata)
    dumped = thin_tool("thin_dump", disk.save(tmp_path / "metadata"))
    assert 'time="1" transaction="8" flags="0" version="2" data_block_size="128" nr_data_blocks="500"' in dumped
    assert '<single_mapping origin_block="0" data_block="0" time="1"/>' in dumped
    assert '<range_mapping origin_begin="4" data_begin="7" length="2" time="1"/>' in dumped


def test_a_commit_that_is_cut_short_leaves_the_one_before(tmp_path: Path) -> None:
    dice = random.Random(9)
    disk, metadata = scene(40000)
    expected: Expected = {0: {}}
    play(disk, metadata, dice, expected, 500)
    disk.commit(metadata)
    committed = {number: dict(blocks) for number, blocks in expected.items()}
    play(disk, metadata, dice, expected, 300)
    count = len(metadata.prepare_commit().blocks)
    for left in {0, 1, count // 2, count}:
        disk.commit(metadata, left)
        thin_tool("thin_check", disk.save(tmp_path / "metadata"))
        assert mappings(disk.open(), committed) == committed


def test_an_abort_goes_back_to_what_was_committed(tmp_path: Path) -> None:
    dice = random.Random(3)
    disk, metadata = scene(40000)
    expected: Expected = {0: {}}
    play(disk, metadata, dice, expected, 500)
    disk.commit(metadata)
    committed = {number: dict(blocks) for number, blocks in expected.items()}
    play(disk, metadata, dice, expected, 300)
    device = metadata.open_device(next(number for number in committed if number in expected))
    metadata.insert(device, 5000, metadata.allocate_data_block())
    metadata.prepare_commit()
    metadata.transaction.read = lambda block: pytest.fail(f"block {block} was read")
    metadata.abort()
    assert device.aborted
    assert mappings(metadata, committed) == committed
    write(metadata, max(committed), 3000, committed)
    disk.commit(metadata)
    thin_tool("thin_check", disk.save(tmp_path / "metadata"))


def test_blocks_used() -> None:
    """Superblock, index, bitmap and counts of the metadata; index, bitmap and counts of the data; two trees; and one
    for each device. What is shared counts once."""
    disk, metadata = scene()
    used = lambda: metadata.transaction.counts.allocated  # noqa: E731  # short, and said where it is used
    assert used() == 10
    write(metadata, 0, 0, {0: {}})
    disk.commit(metadata)
    assert used() == 10
    metadata.create_snap(1, 0)
    disk.commit(metadata)
    assert used() == 10
    write(metadata, 1, 0, {1: {}})
    disk.commit(metadata)
    assert used() == 11


def test_growing() -> None:
    disk, metadata = scene(10)
    metadata.resize_data(40000)
    disk.blocks = 2060
    metadata.resize_metadata(2060)
    disk.image.extend(bytes(12 * 4096))
    disk.commit(metadata)
    again = disk.open()
    assert (again.data_blocks, again.metadata_blocks) == (40000, 2060)


def test_metadata_that_are_not_for_this_pool() -> None:
    disk, _ = scene()
    with pytest.raises(MetadataError, match=r"changing the data block size \(from 128 to 256\) is not supported"):
        ThinMetadata(disk.read, disk.blocks, 256, writable=True)
    with pytest.raises(MetadataError) as refusal:
        ThinMetadata(MetadataDisk().read, 2048, 128, writable=False)
    assert refusal.value.errno == errno.EPERM
    disk.image[32] ^= 1
    with pytest.raises(Corrupt, match="sb_check failed: magic 27022011: wanted 27022010"):
        disk.open()


def test_a_broken_superblock() -> None:
    disk, _ = scene()
    disk.image[4095] ^= 1
    with pytest.raises(Corrupt, match="sb_check failed: csum"):
        disk.open()


def test_needs_check_stays() -> None:
    disk, metadata = scene()
    disk.write(0, metadata.set_needs_check())
    assert disk.open().needs_check
