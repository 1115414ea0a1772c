from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.persistent_data import transaction

from dmserver.targets.persistent_data.bitset import Bitset

SIZE = 70000
MEMBERS = st.integers(0, SIZE - 1)


@given(st.sets(MEMBERS), st.lists(st.tuples(st.booleans(), MEMBERS)))
def test_a_bitset_is_a_set(members: set[int], changes: list[tuple[bool, int]]) -> None:
    work = transaction()
    bitset = Bitset(work)
    root = bitset.new(SIZE, members)
    for on, member in changes:
        root = (bitset.add if on else bitset.discard)(root, member)
        (members.add if on else members.discard)(member)
    assert list(bitset.members(root)) == sorted(members)
    assert all(bitset.has(root, member) is (member in members) for _, member in changes)
    bitset.delete(root)
    assert work.counts.allocated == 0


def test_new_words_are_filled() -> None:
    bitset = Bitset(transaction())
    root = bitset.resize(bitset.empty(), 0, 3)
    root = bitset.resize(root, 3, 70, default=True)
    assert list(bitset.members(root)) == list(range(64, 128))
    root = bitset.resize(root, 70, 64)
    assert not list(bitset.members(root))


def test_what_changes_nothing_copies_nothing() -> None:
    work = transaction()
    bitset = Bitset(work)
    root = bitset.new(100, [7])
    work.committed()
    assert bitset.add(root, 7) == bitset.discard(root, 8) == root
    assert not work.fresh
