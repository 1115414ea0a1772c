from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.cache.discards import Discards


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 700))), st.sampled_from([32, 64, 96, 160]))
def test_only_what_is_discarded_as_a_whole_counts(ranges: list[tuple[int, int]], size: int) -> None:
    """Also when blocks have another size than before."""
    discards, later = Discards(64, 2000), Discards(size, 2000)
    sectors: set[int] = set()
    for begin, length in ranges:
        end = min(begin + length, 2000)
        discards.add(begin, end)
        sectors.update(range(begin, end))
    assert all({*range(64 * block, 64 * block + 64)} <= sectors for block in discards.members)
    later.load(64, sorted(discards.members))
    known = {sector for block in discards.members for sector in range(64 * block, 64 * block + 64)}
    whole = (block for block in range(2000 // size) if {*range(size * block, size * block + size)} <= known)
    assert later.members == set(whole)


def test_there_are_only_so_many_blocks() -> None:
    discards = Discards(64, 64 << 14)
    assert (discards.block_size, discards.blocks) == (64, 1 << 14)
    discards = Discards(64, (64 << 14) + 64)
    assert (discards.block_size, discards.blocks) == (128, (1 << 13) + 1)


def test_a_write_ends_it() -> None:
    discards = Discards(64, 1024)
    discards.add(0, 1024)
    discards.clear(130)
    assert 128 not in discards
    assert 127 in discards
