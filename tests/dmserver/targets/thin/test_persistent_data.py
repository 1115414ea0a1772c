from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmserver.targets.thin.persistent_data import (
    BLOCK_SIZE,
    PER_BITMAP,
    BTree,
    Corrupt,
    Counts,
    Node,
    Transaction,
    checksum,
    seal,
    unseal,
)


def unreadable(block: int) -> bytes:
    raise AssertionError(f"block {block} was read")


def transaction(blocks: int = 4000) -> Transaction:
    found = Transaction(unreadable)
    found.counts.extend(blocks)
    return found


@pytest.mark.parametrize(("data", "expected"), [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA)])
def test_the_checksum_is_crc32c(data: bytes, expected: int) -> None:
    """The salt stands in for the inversion at the end, which the kernel leaves out."""
    assert checksum(data, 0xFFFFFFFF) == expected


def test_a_changed_block_is_found() -> None:
    image = seal(bytearray(BLOCK_SIZE), 7, 1)
    assert unseal(image, 7, 1, "node") == image
    with pytest.raises(Corrupt, match="node check failed: blocknr 7: wanted 8"):
        unseal(image, 8, 1, "node")
    with pytest.raises(Corrupt, match="node check failed: csum"):
        unseal(image[:-1] + b"x", 7, 1, "node")


# -- counts ---------------------------------------------------------------------------------------------


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


# -- trees ----------------------------------------------------------------------------------------------

KEYS = st.integers(0, 700)
CHANGES = st.lists(st.tuples(st.sampled_from(["insert", "insert", "insert", "remove", "clone", "commit"]), KEYS))


@given(CHANGES, st.permutations(range(600)), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_tree_is_a_sorted_dict(changes: list[tuple[str, int]], start: list[int], shrink: bool) -> None:
    """So is every copy of it, and all blocks are free in the end."""
    work = transaction()
    tree = BTree(work, "<Q")
    roots: list[tuple[int, dict[int, int]]] = [(tree.empty(), {})]
    for key in start:
        roots[0] = (tree.insert(roots[0][0], key, key), roots[0][1] | {key: key})
    if shrink:
        changes = [*changes, *(("remove", key) for key in start[: len(start) - 40])]
    for number, (what, key) in enumerate(changes):
        root, expected = roots.pop()
        if what == "insert":
            root = tree.insert(root, key, number)
            expected[key] = number
        elif what == "remove" and key in expected:
            root = tree.remove(root, key)
            del expected[key]
        elif what == "clone" and len(roots) < 4:
            work.counts.inc(root)
            roots.append((root, dict(expected)))
        elif what == "commit":
            work.committed()
        roots.append((root, expected))
    for root, expected in roots:
        assert list(tree.items(root)) == sorted(expected.items())
        assert tree.highest(root) == max(expected, default=None)
        for key in range(0, 700, 7):
            assert tree.lookup(root, key) == expected.get(key)
        assert list(tree.items(root, 100, 300)) == [(key, expected[key]) for key in range(100, 300) if key in expected]
    for root, _ in roots:
        tree.delete(root)
    assert work.counts.allocated == 0


def test_nodes_are_a_third_full_at_least() -> None:
    work = transaction()
    tree = BTree(work, "<Q")
    root = tree.empty()
    for key in range(3000):
        root = tree.insert(root, key, key)
    for key in range(0, 3000, 2):
        root = tree.remove(root, key)
    for key in range(1, 2500, 2):
        root = tree.remove(root, key)
    below = [page for block, page in work.pages.items() if work.counts[block] and block != root]
    assert below
    assert all(len(node.keys) >= node.max_entries // 3 for node in below if isinstance(node, Node))


def test_values_count_their_references() -> None:
    """A leaf that is copied refers to what its original refers to."""
    work = transaction()
    references = dict.fromkeys(range(10), 0)

    def count(value: int, by: int) -> None:
        references[value] += by

    tree = BTree(work, "<Q", lambda value: count(value, 1), lambda value: count(value, -1))
    root = tree.empty()
    for value in range(3):
        count(value, 1)
        root = tree.insert(root, value, value)
    work.counts.inc(root)
    copy = tree.insert(root, 3, 3)
    assert [references[value] for value in range(3)] == [2, 2, 2]
    copy = tree.remove(copy, 0)
    tree.delete(root)
    assert [references[value] for value in range(3)] == [0, 1, 1]


def test_removing_what_is_not_there() -> None:
    tree = BTree(transaction(), "<Q")
    with pytest.raises(KeyError):
        tree.remove(tree.empty(), 5)


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=100), st.booleans())
def test_nodes_pack(keys: list[int], leaf: bool) -> None:
    layout = BTree(transaction(), "<QQII" if leaf else "<Q").layout
    values = [(key, 1, 2, 3) if leaf else key for key in keys]
    node = Node(leaf, layout, sorted(keys), values)
    found = Node.unpack(node.pack(9), 9, layout)
    assert (found.leaf, found.keys, found.values) == (leaf, sorted(keys), values)


def test_a_node_of_another_tree_is_refused() -> None:
    layout = BTree(transaction(), "<Q").layout
    image = Node(True, layout, [1], [2]).pack(9)
    with pytest.raises(Corrupt, match="btree node 9: 1 of 252 entries of 8 bytes: expected 336 of 4 bytes"):
        Node.unpack(image, 9, BTree(transaction(), "<I").layout)


def test_an_aborted_transaction_leaves_the_committed_blocks() -> None:
    work = transaction()
    tree = BTree(work, "<Q")
    root = tree.insert(tree.empty(), 1, 1)
    work.committed()
    tree.insert(root, 1, 2)
    work.abort()
    assert tree.lookup(root, 1) == 1
