from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.constructors import replay
from support.snapshots import SIZE, scene
from support.targets import Bench, flush, pattern, read, start, status, write

from dmserver.io.bio import Op
from dmserver.targets.snapshot.snapshot import Snapshot
from dmserver.targets.snapshot.snapshot_merge import SnapshotMerge
from dmserver.targets.snapshot.snapshot_origin import SnapshotOrigin


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
    for params in ("1:3 1:4 P 8", "1:5 1:6 N 8"):
        assert bench.refusal(SnapshotMerge, SIZE, params) == (
            errno.EINVAL,
            "Snapshot exception store does not support snapshot-merge.",
        )


def test_flushes_go_to_origin_and_cow_device_and_discards_nowhere() -> None:
    bench = Bench()
    for disk in bench.disks[:2]:
        disk.limits.discard = True
    org, snap = scene(bench)
    merge(bench, org, snap)
    bench.work.run()
    for disk in bench.disks[:2]:
        disk.log.clear()
    flush(org)
    assert [disk.log for disk in bench.disks[:2]] == [[(Op.FLUSH, 0, 0)]] * 2


def test_an_invalid_snapshot_cannot_be_merged() -> None:
    bench = Bench()
    org, snap = scene(bench)
    bench.disks[1].fail = lambda bio: bio.op is Op.WRITE and bio.sector > 0
    write(org, 0, pattern(9))
    assert status(snap) == "Invalid"
    bench.disks[1].fail = lambda bio: False
    merge(bench, org, snap)
    bench.work.run()
    assert status(org) == "Invalid"
    assert bench.mapper.events.lines[-1] == "device-mapper: snapshots: Snapshot is invalid: can't merge"
    assert read(org, 0) == pattern(9)


@pytest.mark.parametrize(
    ("disk", "op", "line"),
    [
        (1, Op.READ, "Read error: shutting down merge."),
        (0, Op.FLUSH, "Flush after merge failed: shutting down merge"),
        (1, Op.WRITE, "Write error in exception store: shutting down merge"),
    ],
)
def test_what_stops_a_merge(disk: int, op: Op, line: str) -> None:
    bench = Bench()
    org, snap = scene(bench)
    write(snap, 8, pattern(9, 0, 8))
    merge(bench, org, snap)
    bench.disks[disk].fail = lambda bio: bio.op is op
    bench.work.run()
    assert status(org) == "Merge failed"
    assert bench.mapper.events.lines[-1] == f"device-mapper: snapshots: {line}"


def test_writes_that_wait_fail_with_the_merge() -> None:
    bench = Bench()
    org, snap = scene(bench)
    write(snap, 8, pattern(9, 0, 8))
    merge(bench, org, snap)
    bench.disks[0].slow = True
    bench.work.run()
    ended = start(org, Op.WRITE, 9, pattern(7))
    bench.disks[0].fail = lambda bio: bio.op is Op.WRITE
    while bench.disks[0].held:
        bench.disks[0].finish()
    bench.work.run()
    assert ended == [errno.EIO]
    assert status(org) == "Merge failed"


def test_a_merge_that_removes_an_area_reads_the_one_before() -> None:
    bench = Bench()
    write(bench.disks[0], 0, pattern(1, 0, SIZE))
    snap = bench.load("snap", (Snapshot, SIZE, "1:0 1:1 P 1"))
    org = bench.load("org", (SnapshotOrigin, SIZE, "1:0"))
    for sector in range(0, 200, 2):
        write(snap, sector, pattern(2, sector))
    expected = read(snap, 0, SIZE)
    merge(bench, org, snap, "1:0 1:1 P 1")
    bench.work.run()
    assert status(org) == "2/16384 2"
    assert read(bench.disks[0], 0, SIZE) == expected
