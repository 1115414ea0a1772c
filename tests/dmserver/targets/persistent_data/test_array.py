from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.persistent_data import transaction

from dmserver.targets.persistent_data.array import Array, ArrayBlock
from dmserver.targets.persistent_data.block import Corrupt
from dmserver.targets.persistent_data.btree import BTree
from dmserver.targets.persistent_data.transaction import Transaction

SIZES = st.integers(0, 3000)
CHANGES = st.lists(st.tuples(st.sampled_from(["resize", "set", "set", "clone", "commit"]), SIZES), max_size=30)


@given(SIZES, CHANGES, st.sampled_from("IQ"))
@settings(deadline=None)
def test_an_array_is_a_list(size: int, changes: list[tuple[str, int]], code: str) -> None:
    """So is every copy of it; all its blocks but the last are full, and all are free in the end."""
    work = transaction()
    array = Array(work, code)
    arrays = [(array.new(range(size)), list(range(size)))]
    for number, (what, at) in enumerate(changes):
        root, expected = arrays.pop()
        if what == "resize":
            root = array.resize(root, len(expected), at)
            expected = expected[:at] + [0] * (at - len(expected))
        elif what == "set" and expected:
            root = array.set(root, at % len(expected), number)
            expected[at % len(expected)] = number
        elif what == "clone" and len(arrays) < 4:
            work.counts.inc(root)
            arrays.append((root, expected.copy()))
        elif what == "commit":
            work.committed()
        arrays.append((root, expected))
    for root, expected in arrays:
        assert list(array.values(root)) == expected
        assert all(array.get(root, index) == expected[index] for index in range(0, len(expected), 7))
    for root, _ in arrays:
        array.delete(root)
    assert work.counts.allocated == 0


def test_blocks_are_read_as_they_were_written() -> None:
    work = transaction()
    array = Array(work, "I")
    root = array.new(range(2500))
    disk = dict(work.images())
    assert list(Array(Transaction(disk.__getitem__), "I").values(root)) == list(range(2500))


def test_a_change_copies_one_block() -> None:
    work = transaction()
    array = Array(work, "Q")
    root = array.new(range(3 * array.per_block))
    work.committed()
    root = array.set(root, 0, 1)
    assert len(work.fresh) == 2
    assert array.set(root, 1, 2) == root
    assert len(work.fresh) == 2


@pytest.mark.parametrize("index", [3, 600])
def test_there_is_nothing_behind_the_end(index: int) -> None:
    array = Array(transaction(), "Q")
    root = array.new(range(3))
    with pytest.raises(Corrupt, match=f"array {root}: no "):
        array.get(root, index)
    with pytest.raises(Corrupt, match=f"array {root}: no "):
        array.set(root, index, 1)
    with pytest.raises(Corrupt, match="btree: no key"):
        array.resize(root, index + 600, index)


def test_blocks_of_other_values_are_refused() -> None:
    image = ArrayBlock("Q", [1]).pack(9)
    assert ArrayBlock.unpack(image, 9, "Q").values == [1]
    with pytest.raises(Corrupt, match="array block 9: 1 of 509 values of 8 bytes: expected values of 4 bytes"):
        ArrayBlock.unpack(image, 9, "I")
    with pytest.raises(Corrupt, match="array_block check failed: blocknr 9: wanted 8"):
        ArrayBlock.unpack(image, 8, "Q")


def test_a_block_that_is_there_twice_is_refused() -> None:
    """A few blocks must not become billions of values."""
    work = transaction()
    array, tree = Array(work, "I"), BTree(work, "<Q")
    block = work.new(ArrayBlock("I", [1, 2]))
    root = tree.insert(tree.insert(tree.empty(), 0, block), 1, block)
    with pytest.raises(Corrupt, match=f"array {root}: block {block} is in it twice"):
        array.read(root)


def test_a_block_that_is_something_else_is_refused() -> None:
    work = transaction()
    root = Array(work, "Q").new([1, 2])
    with pytest.raises(Corrupt, match="is something else than a block of an array, too"):
        Array(work, "I").read(root)
