from __future__ import annotations

import pytest

from dmserver.targets.writecache.cache import Cache, Entry
from dmserver.targets.writecache.layout import FREE, Metadata


@pytest.fixture
def cache() -> Cache:
    metadata = Metadata(4, 4096)
    metadata.forget()
    found = Cache(metadata)
    assert not found.load(0, pytest.fail)
    return found


def allocate(cache: Cache, sector: int) -> Entry:
    entry = cache.allocate(sector, 0)
    assert entry is not None
    return entry


def commit(cache: Cache) -> None:
    entries = cache.prepare_commit()
    cache.commit()
    cache.release_older(entries)


def test_blocks_are_taken_in_a_circle(cache: Cache) -> None:
    entries = [allocate(cache, sector) for sector in (80, 0, 40)]
    assert [entry.index for entry in entries] == [0, 1, 2]
    cache.release(entries[0])
    assert [allocate(cache, 8).index, allocate(cache, 16).index] == [3, 0]
    assert cache.allocate(24, 0) is None
    assert cache.free == 0
    cache.release(entries[2])
    assert cache.allocate(24, 0, 1) is None
    assert cache.allocate(24, 0, 2) is not None


def test_a_newer_block_hides_the_older_until_it_goes(cache: Cache) -> None:
    old = allocate(cache, 8)
    commit(cache)
    assert cache.take_run(old) == [old]
    new = allocate(cache, 8)
    assert (cache.find(8), new.older, cache.cached(0, 16)) == (new, old, [new, old])
    cache.release(new)
    assert cache.find(8) is old
    cache.copied([old], keep=False)
    assert (cache.find(8), cache.free, cache.writing) == (None, 4, 0)


def test_a_commit_takes_the_place_of_older_blocks(cache: Cache) -> None:
    committed = allocate(cache, 8)
    commit(cache)
    superseded, newest = allocate(cache, 8), allocate(cache, 8)
    assert newest.older is superseded
    commit(cache)
    assert (cache.find(8), newest.older, cache.free) == (newest, None, 3)
    assert [seq for _, seq in cache.metadata.entries()] == [FREE, FREE, 1, FREE]
    assert committed.seq_count == 0


def test_runs_follow_each_other_on_both_devices(cache: Cache) -> None:
    entries = [allocate(cache, sector) for sector in (8, 16, 32, 24)]
    commit(cache)
    assert cache.take_run(entries[0]) == entries[:2]
    assert cache.take_run(entries[3]) == [entries[3]]
    assert (list(cache.lru.values()), cache.writing) == ([entries[2]], 3)


def test_what_is_not_cached(cache: Cache) -> None:
    allocate(cache, 24)
    assert [cache.uncached(0, 64), cache.uncached(0, 16), cache.uncached(32, 64)] == [24, 16, 64]
    assert [entry.sector for entry in cache.cached(0, 1 << 40)] == [24]


def test_only_what_was_committed_is_taken_up(cache: Cache) -> None:
    for sector in (8, 16):
        allocate(cache, sector)
    commit(cache)
    allocate(cache, 24)
    again = Cache(cache.metadata)
    assert again.load(5, pytest.fail)
    assert [(entry.sector, entry.age) for entry in again.lru.values()] == [(8, 5), (16, 5)]
    assert [seq for _, seq in cache.metadata.entries()] == [0, 0, FREE, FREE]
    assert (again.free, again.seq_count) == (2, 1)
    assert not Cache(cache.metadata).load(5, pytest.fail)


@pytest.mark.parametrize(("first", "second", "kept"), [(1, 2, 1), (2, 1, 0)])
def test_of_two_blocks_the_later_counts(first: int, second: int, kept: int) -> None:
    metadata = Metadata(2, 4096)
    metadata.seq_count = 3
    metadata.put(0, 8, first)
    metadata.put(1, 8, second)
    cache = Cache(metadata)
    assert cache.load(0, pytest.fail)
    assert [entry.index for entry in cache.cached(0, 64)] == [kept]


def test_two_blocks_that_are_alike() -> None:
    metadata = Metadata(2, 4096)
    metadata.seq_count = 3
    metadata.put(0, 8, 1)
    metadata.put(1, 8, 1)
    complaints: list[str] = []
    Cache(metadata).load(0, complaints.append)
    assert complaints == ["two identical entries, position 1, sector 8, sequence 1"]
