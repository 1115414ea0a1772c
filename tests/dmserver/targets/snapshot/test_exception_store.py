"""The persistent store against its format: what it writes is read back by the struct definitions, and by itself."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.targets import Bench, read, write

from dmserver.io.bio import Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_table import DmTable
from dmserver.model.dm_target import TargetError
from dmserver.targets.snapshot.exception_store import PersistentStore
from dmserver.targets.snapshot.snapshot import Snapshot

CHUNK = 8
PAIRS = CHUNK * 512 // 16


def opened(bench: Bench, device: DmDev, chunk_size: str = "8") -> PersistentStore:
    table = DmTable(device, bench.resolve)
    target = table.add_target(Snapshot, 0, 16384, ["1:0", "1:1", "P", chunk_size])
    assert isinstance(target, Snapshot)
    store = target.store
    assert isinstance(store, PersistentStore)
    return store


def commit(store: PersistentStore, olds: list[int]) -> list[bool]:
    told: list[bool] = []
    news = [store.prepare() for _ in olds]
    for old, new in zip(olds, news, strict=True):
        assert new is not None
        store.commit(old, new, True, told.append)
    store.pump()
    return told


def on_disk(bench: Bench) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Header and exceptions, by the rules of the format."""
    magic, *header = struct.unpack("<4sIII", read(bench.disks[1], 0)[:16])
    assert magic == b"SnAp"
    pairs: list[tuple[int, int]] = []
    for area in range(100):
        chunk = read(bench.disks[1], (1 + area * (PAIRS + 1)) * CHUNK, CHUNK)
        found = [pair for pair in struct.iter_unpack("<QQ", chunk) if pair[1]]
        pairs += found
        if len(found) < PAIRS:
            break
    return tuple(header), pairs


def test_a_new_store() -> None:
    bench = Bench()
    write(bench.disks[1], CHUNK, b"\xff" * 512 * CHUNK)
    store = opened(bench, bench.mapper.create("x"))
    assert on_disk(bench) == ((1, 1, CHUNK), [])
    assert store.usage() == (16, 16)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1 << 40), max_size=300), min_size=1, max_size=4))
def test_what_is_committed_is_read_back(batches: list[list[int]]) -> None:
    bench = Bench()
    store = opened(bench, bench.mapper.create("x"))
    for batch in batches:
        assert all(commit(store, batch))
    olds = [old for batch in batches for old in batch]
    _, pairs = on_disk(bench)
    assert [old for old, _ in pairs] == olds
    data_chunks = [chunk for chunk in range(2, len(olds) + 100) if chunk % (PAIRS + 1) != 1]
    assert [new for _, new in pairs] == data_chunks[: len(olds)]
    store.target.dtr()
    again = opened(bench, bench.mapper.create("y"))
    assert again.usage() == store.usage()
    assert again.target.complete == dict(pairs)


def test_usage_counts_the_areas() -> None:
    bench = Bench()
    store = opened(bench, bench.mapper.create("x"))
    commit(store, list(range(255)))
    assert store.usage() == ((2 + 255) * CHUNK, 2 * CHUNK)
    commit(store, [255])
    assert store.usage() == ((2 + 256 + 1) * CHUNK, 3 * CHUNK)


def test_the_area_follows_its_data() -> None:
    bench = Bench()
    store = opened(bench, bench.mapper.create("x"))
    bench.disks[1].log.clear()
    commit(store, [7])
    assert bench.disks[1].log == [(Op.FLUSH, 0, 0), (Op.WRITE, CHUNK, CHUNK)]


def test_commits_meanwhile_go_together() -> None:
    bench = Bench()
    store = opened(bench, bench.mapper.create("x"))
    bench.disks[1].slow = True
    first, second, third = (commit(store, [old]) for old in (1, 2, 3))
    assert (first, second, third) == ([], [], [])
    while bench.disks[1].held:
        bench.disks[1].finish()
    assert (first, second, third) == ([True], [True], [True])
    assert on_disk(bench)[1] == [(1, 2), (2, 3), (3, 4)]


def test_a_failed_area_write_is_told() -> None:
    bench = Bench()
    store = opened(bench, bench.mapper.create("x"))
    bench.disks[1].fail = lambda bio: bio.op is Op.WRITE
    assert commit(store, [1]) == [False]
    assert not store.valid


def test_a_full_device() -> None:
    bench = Bench()
    store = opened(bench, bench.mapper.create("x"), "2048")
    assert [store.prepare() for _ in range(7)] == [2, 3, 4, 5, 6, 7, None]


@pytest.mark.parametrize(
    ("header", "expected", "line"),
    [
        ((0x12345678, 1, 1, 8), errno.ENXIO, "Invalid or corrupt snapshot"),
        ((0x70416E53, 1, 2, 8), errno.EINVAL, "unable to handle snapshot disk version 2"),
        ((0x70416E53, 1, 1, 7), errno.EINVAL, "invalid on-disk chunk size 7: Chunk size is not a power of 2."),
        ((0x70416E53, 1, 1, 1 << 23), errno.EINVAL, "invalid on-disk chunk size 8388608: Chunk size is too high."),
    ],
)
def test_what_cannot_be_read(header: tuple[int, ...], expected: int, line: str) -> None:
    bench = Bench()
    write(bench.disks[1], 0, struct.pack("<IIII", *header).ljust(512, b"\0"))
    with pytest.raises(TargetError, match="Failed to read snapshot metadata") as refusal:
        opened(bench, bench.mapper.create("x"))
    assert refusal.value.errno == expected
    assert bench.mapper.events.lines[-1] == f"device-mapper: persistent snapshot: {line}"


@pytest.mark.parametrize(("sector", "line"), [(0, "write_header failed"), (8, "zero_disk_area(0) failed")])
def test_a_device_that_cannot_be_written(sector: int, line: str) -> None:
    bench = Bench()
    bench.disks[1].fail = lambda bio: bio.op is Op.WRITE and bio.sector == sector
    assert bench.refusal(Snapshot, 64, "1:0 1:1 P 8") == (errno.EIO, "Failed to read snapshot metadata")
    assert list(bench.mapper.events.lines) == [f"device-mapper: persistent snapshot: {line}"]


def test_no_chunk_size_means_16_kib() -> None:
    bench = Bench()
    assert opened(bench, bench.mapper.create("x"), "0").chunk_size == 32


@pytest.mark.parametrize("size", ["3", "x", "-1", "8388608"])
def test_chunk_sizes_refused(size: str) -> None:
    refusal = Bench().refusal(Snapshot, 64, f"1:0 1:1 P {size}")
    assert refusal == (errno.EINVAL, "Couldn't create exception store")


def test_a_transient_store_needs_a_chunk_size() -> None:
    assert Bench().refusal(Snapshot, 64, "1:0 1:1 N 0") == (errno.EINVAL, "Chunk size not set")


def test_merging_goes_backwards_through_the_areas() -> None:
    bench = Bench()
    store = opened(bench, bench.mapper.create("x"))
    commit(store, [*range(1000, 1254), 20, 21, 22, 5])
    merged: list[tuple[int, int, int, int]] = []
    while True:
        store.prepare_merge(lambda *run: merged.append(run))
        if not merged[-1][1]:
            break
        store.commit_merge(merged[-1][1], lambda error: None)
    assert merged == [(0, 1, 5, 260), (0, 1, 22, 259), (0, 2, 21, 257), (0, 254, 1253, 255), (0, 0, 0, 0)]
    assert on_disk(bench)[1] == []
    assert store.usage() == (16, 16)
