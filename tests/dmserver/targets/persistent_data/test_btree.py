from __future__ import annotations

from struct import Struct

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.persistent_data import transaction

from dmserver.targets.persistent_data.block import Corrupt
from dmserver.targets.persistent_data.btree import BTree, Node

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
    with pytest.raises(Corrupt, match="btree: no key 5 in its leaf"):
        tree.remove(tree.empty(), 5)
    root = tree.empty()
    for key in range(1, 1000):
        root = tree.insert(root, key, key)
    with pytest.raises(Corrupt, match="btree: no child for key 0"):
        tree.remove(root, 0)


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=100), st.booleans())
def test_nodes_pack(keys: list[int], leaf: bool) -> None:
    assume(leaf or keys)
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


def test_nodes_that_go_round_in_circles_are_refused() -> None:
    work = transaction()
    tree = BTree(work, "<Q")
    leaf = tree.insert(tree.empty(), 0, 0)
    inner = Struct("<Q")
    circle = work.new(Node(False, inner, [0], [leaf]))
    work.pages[circle] = Node(False, inner, [0], [circle])
    twice = work.new(Node(False, inner, [0, 1], [leaf, leaf]))
    deep = leaf
    for _ in range(100):
        deep = work.new(Node(False, inner, [0], [deep]))
    for root in (circle, twice, deep):
        with pytest.raises(Corrupt, match="expected to be met once, and no deeper than 64 nodes"):
            list(tree.items(root))


def test_an_inner_node_without_children_is_refused() -> None:
    inner = Struct("<Q")
    with pytest.raises(Corrupt, match="btree node 9: expected children"):
        Node.unpack(Node(False, inner, [], []).pack(9), 9, inner)


def test_a_block_that_is_something_else_is_refused() -> None:
    work = transaction()
    pair = BTree(work, "<IQ")
    for block in (work.new(b""), pair.insert(pair.empty(), 1, (2, 3))):
        with pytest.raises(Corrupt, match=f"block {block} is something else than a node of a tree, too"):
            BTree(work, "<Q").lookup(block, 1)


def test_neighbours_of_two_kinds_are_refused() -> None:
    work = transaction()
    tree = BTree(work, "<Q")
    leaves = [tree.insert(tree.empty(), key, key) for key in range(2)]
    inner = work.new(Node(False, tree.layout, [1], [leaves[1]]))
    root = work.new(Node(False, tree.layout, [0, 1], [leaves[0], inner]))
    with pytest.raises(Corrupt, match="only one of them is a leaf"):
        tree.remove(root, 0)
