from __future__ import annotations

import errno
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.constructors import replay
from support.snapshots import SIZE, scene
from support.targets import Bench, pattern, read, start, status, write

from dmserver.io.bio import Op
from dmserver.targets.snapshot import Snapshot
from dmserver.targets.snapshot_merge import SnapshotMerge


def test_recorded_constructors() -> None:
    assert replay(Bench(), SnapshotMerge, "t_snapshot") == 2


def merge(bench: Bench, org: Any, snap: Any, params: str = "1:0 1:1 P 8") -> None:
    """As LVM does: the merge takes the place of the origin."""
    bench.table(org, (SnapshotMerge, SIZE, params))
    bench.suspend(org)
    bench.suspend(snap)
    bench.resume(org)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 40)), max_size=12))
def test_a_merge_brings_the_snapshot_back(writes: list[tuple[int, int]]) -> None:
    bench = Bench()
    org, snap = scene(bench)
    for number, (sector, count) in enumerate(writes):
        write(snap, sector, pattern(2 + number, sector, min(count, SIZE - sector)))
        write(org, sector, pattern(100 + number, sector))
    expected = read(snap, 0, SIZE)
    merge(bench, org, snap)
    assert read(org, 0, SIZE) == expected
    bench.work.run()
    assert status(org) == "16/16384 16"
    assert read(org, 0, SIZE) == expected
    assert read(bench.disks[0], 0, SIZE) == expected
    assert read(bench.disks[1], 8, 8) == bytes(4096)


def test_another_snapshot_keeps_what_a_merge_overwrites() -> None:
    bench = Bench()
    org, snap = scene(bench)
    other = bench.load("other", (Snapshot, SIZE, "1:0 1:2 P 4"))
    write(snap, 16, pattern(9, 0, 20))
    merge(bench, org, snap)
    bench.work.run()
    assert read(bench.disks[0], 16, 20) == pattern(9, 0, 20)
    assert read(other, 0, SIZE) == pattern(1, 0, SIZE)


def test_writes_to_the_chunks_under_way_wait() -> None:
    bench = Bench()
    org, snap = scene(bench)
    write(snap, 8, pattern(9, 0, 8))
    merge(bench, org, snap)
    bench.disks[0].slow = True
    bench.work.run()
    ended = start(org, Op.WRITE, 9, pattern(7))
    assert not ended
    while bench.disks[0].held:
        bench.disks[0].finish()
    bench.work.run()
    assert ended == [0]
    assert read(bench.disks[0], 8, 3) == pattern(9) + pattern(7) + pattern(9, 2)


def test_a_suspension_stops_the_merge_and_a_resume_goes_on() -> None:
    bench = Bench()
    org, snap = scene(bench)
    for sector in (64, 32, 0):
        write(snap, sector, pattern(9, sector, 8))
    merge(bench, org, snap)
    bench.disks[0].slow = True
    bench.work.run()
    suspended = bench.suspend(org)
    while bench.disks[0].held:
        bench.disks[0].finish()
    bench.work.run()
    assert suspended
    assert status(org) == "32/16384 16"
    bench.resume(org)
    bench.work.run()
    assert status(org) == "16/16384 16"


def test_a_failed_merge() -> None:
    bench = Bench()
    org, snap = scene(bench)
    write(snap, 8, pattern(9, 0, 8))
    merge(bench, org, snap)
    bench.disks[0].fail = lambda bio: bio.op is Op.WRITE
    bench.work.run()
    assert status(org) == "Merge failed"
    assert bench.mapper.events.lines[-1] == "device-mapper: snapshots: Write error: shutting down merge."


def test_merge_refusals() -> None:
    bench = Bench()
    org, snap = scene(bench)
    bench.load("other", (Snapshot, SIZE, "1:0 1:2 P 8"))
    merge(bench, org, snap)
    assert bench.refusal(SnapshotMerge, SIZE, "1:0 1:2 P 8")[1] == "A snapshot is already merging."
    bench.load("n", (Snapshot, SIZE, "1:3 1:4 N 8"))
    assert bench.refusal(SnapshotMerge, SIZE, "1:3 1:4 N 8") == (
        errno.EINVAL,
        "Snapshot exception store does not support snapshot-merge.",
    )
