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
    bitset.delete(root)
    assert work.counts.allocated == 0


def test_a_size_goes_by_words() -> None:
    bitset = Bitset(transaction())
    root = bitset.resize(bitset.empty(), 0, 3)
    root = bitset.resize(bitset.add(root, 63), 3, 70)
    assert list(bitset.members(root)) == [63]
    root = bitset.resize(bitset.add(root, 127), 70, 64)
    assert list(bitset.members(root)) == [63]


def test_what_changes_nothing_copies_nothing() -> None:
    work = transaction()
    bitset = Bitset(work)
    root = bitset.new(100, [7])
    work.committed()
    assert bitset.add(root, 7) == bitset.discard(root, 8) == root
    assert not work.fresh
