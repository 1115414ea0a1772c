from __future__ import annotations

import errno

import pytest
from support.persistent_data import transaction

from dmserver.targets.persistent_data.block import Corrupt
from dmserver.targets.persistent_data.btree import BTree
from dmserver.targets.persistent_data.transaction import PER_BITMAP, Counts


def test_blocks_come_in_order_and_again_after_a_commit() -> None:
    counts = Counts()
    counts.extend(3)
    assert [counts.allocate() for _ in range(3)] == [0, 1, 2]
    counts.dec(1)
    assert (counts.allocated, counts.free) == (2, 0)
    with pytest.raises(OSError, match="No space left") as full:
        counts.allocate()
    assert full.value.errno == errno.ENOSPC
    counts.committed()
    assert (counts.free, counts.allocate()) == (1, 1)


def test_large_counts() -> None:
    counts = Counts()
    counts.extend(2)
    for count in range(1, 6):
        counts.inc(1)
        assert counts[1] == count
    assert (counts.many, counts.low[1]) == ({1: 5}, 3)
    for count in range(4, -1, -1):
        counts.dec(1)
        assert counts[1] == count
    assert not counts.many
    with pytest.raises(Corrupt, match="block 1 is freed once more"):
        counts.dec(1)


def test_only_bitmaps_that_changed_are_dirty() -> None:
    counts = Counts()
    counts.extend(2 * PER_BITMAP)
    assert counts.dirty == {0, 1}
    counts.dirty.clear()
    counts.inc(PER_BITMAP)
    assert counts.dirty == {1}


def test_an_aborted_transaction_leaves_the_committed_blocks() -> None:
    work = transaction()
    tree = BTree(work, "<Q")
    root = tree.insert(tree.empty(), 1, 1)
    work.committed()
    tree.insert(root, 1, 2)
    work.abort()
    assert tree.lookup(root, 1) == 1


def test_blocks_that_are_not_counted() -> None:
    counts = Counts()
    counts.extend(2)
    counts.low[1] = 3  # and no number of its own
    for block in (1, 2):
        with pytest.raises(Corrupt, match=f"block {block} of 2 is not counted"):
            counts.inc(block)


def test_a_block_of_the_space_map_that_is_a_node_of_a_tree() -> None:
    work = transaction()
    root = BTree(work, "<Q").empty()
    with pytest.raises(Corrupt, match=f"block {root} is in use twice"):
        work.raw(root)
