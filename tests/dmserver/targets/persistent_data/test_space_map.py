from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.persistent_data.block import Corrupt
from dmserver.targets.persistent_data.space_map import DataSpaceMap, MetadataSpaceMap
from dmserver.targets.persistent_data.transaction import PER_BITMAP, Transaction

COUNTS = st.dictionaries(st.integers(0, 2 * PER_BITMAP), st.integers(1, 6), max_size=20)


@given(COUNTS, COUNTS)
def test_counts_are_read_as_they_were_written(first: dict[int, int], then: dict[int, int]) -> None:
    disk: dict[int, bytes] = {}
    work = Transaction(disk.__getitem__)
    metadata, data = MetadataSpaceMap(work), DataSpaceMap(work)
    metadata.create(4000)
    data.create()
    data.counts.extend(2 * PER_BITMAP + 1)
    for counts in (first, then):
        for block in range(len(data.counts)) if counts is then else ():
            if data.counts[block]:
                data.counts[block] = 0
        for block, count in counts.items():
            data.counts[block] = count
        data.commit()
        metadata.commit()
        disk |= dict(work.images())
        work.committed()
        data.counts.committed()
    again = Transaction(disk.__getitem__)
    metadata_again, data_again = MetadataSpaceMap(again), DataSpaceMap(again)
    metadata_again.open(metadata.root)
    data_again.open(data.root)
    assert {block: data_again.counts[block] for block in then} == then
    assert data_again.counts.low == data.counts.low
    assert data_again.counts.allocated == len(then)
    assert (again.counts.low, again.counts.allocated) == (work.counts.low, work.counts.allocated)


def test_a_bitmap_changes_only_with_its_counts() -> None:
    work = Transaction(lambda block: b"")
    metadata, data = MetadataSpaceMap(work), DataSpaceMap(work)
    metadata.create(4000)
    data.create()
    data.counts.extend(2 * PER_BITMAP)
    data.commit()
    work.committed()
    before = [entry.block for entry in data.index]
    data.counts.inc(PER_BITMAP)
    data.commit()
    after = [entry.block for entry in data.index]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)
    assert [entry.free for entry in data.index] == [PER_BITMAP, PER_BITMAP - 1]
    assert data.index[1].none_free_before == 1


def test_a_broken_bitmap_is_refused() -> None:
    disk: dict[int, bytes] = {}
    work = Transaction(disk.__getitem__)
    metadata = MetadataSpaceMap(work)
    metadata.create(4000)
    metadata.commit()
    disk |= dict(work.images())
    bitmap = metadata.index[0].block
    disk[bitmap] = disk[bitmap][:-1] + b"x"
    with pytest.raises(Corrupt, match="bitmap check failed: csum"):
        MetadataSpaceMap(Transaction(disk.__getitem__)).open(metadata.root)


def test_a_bitmap_that_was_touched_moves_once() -> None:
    work = Transaction({}.__getitem__)
    metadata = MetadataSpaceMap(work)
    metadata.create(1000)
    metadata.commit()
    work.committed()
    metadata.touch(0)
    block = work.new(b"")
    metadata.commit()
    assert metadata.index[0].block == block - 1
    assert work.counts.allocated == 5


@pytest.mark.parametrize(
    ("root", "text"),
    [
        ((5000 * PER_BITMAP, 0), "1 bitmaps, 255 in the index, count 81600000 blocks"),
        ((2 * PER_BITMAP, 0), "1 bitmaps, 2 in the index, count 32640 blocks"),
    ],
)
def test_an_index_that_is_too_short_is_refused(root: tuple[int, int], text: str) -> None:
    """Or that names a bitmap again, which may not stand for all the blocks of the world."""
    disk: dict[int, bytes] = {}
    work = Transaction(disk.__getitem__)
    metadata = MetadataSpaceMap(work)
    metadata.create(4000)
    metadata.commit()
    entry = metadata.index[0]
    metadata.index = [entry] * 255
    metadata.counts.dirty.clear()
    metadata.commit()
    disk |= dict(work.images())
    with pytest.raises(Corrupt, match=text):
        MetadataSpaceMap(Transaction(disk.__getitem__)).open(struct.pack("<2Q", *root) + metadata.root[16:])


def test_how_many_blocks_are_allocated_is_counted() -> None:
    disk: dict[int, bytes] = {}
    work = Transaction(disk.__getitem__)
    metadata = MetadataSpaceMap(work)
    metadata.create(4000)
    metadata.commit()
    disk |= dict(work.images())
    again = Transaction(disk.__getitem__)
    blocks, _, *roots = struct.unpack("<4Q", metadata.root)
    MetadataSpaceMap(again).open(struct.pack("<4Q", blocks, 1 << 63, *roots))
    assert again.counts.allocated == work.counts.allocated
