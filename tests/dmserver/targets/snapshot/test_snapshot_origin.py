from __future__ import annotations

import errno

from support.constructors import replay
from support.snapshots import SIZE, scene
from support.targets import Bench, pattern, read, start, write

from dmserver.io.bio import Op
from dmserver.targets.snapshot.snapshot import Snapshot
from dmserver.targets.snapshot.snapshot_origin import SnapshotOrigin


def test_recorded_constructors() -> None:
    assert replay(Bench(), SnapshotOrigin, "t_snapshot") == 3


def test_refusal() -> None:
    assert Bench().refusal(SnapshotOrigin, SIZE, "") == (errno.EINVAL, "origin: incorrect number of arguments")


def test_an_origin_resumed_before_its_snapshot_keeps_the_first_chunk_of_a_write() -> None:
    bench = Bench()
    write(bench.disks[0], 0, pattern(1, 0, SIZE))
    org = bench.load("org", (SnapshotOrigin, SIZE, "1:0"))
    snap = bench.load("snap", (Snapshot, SIZE, "1:0 1:1 P 8"))
    write(org, 0, pattern(9, 0, 16))
    assert read(snap, 0, 16) == pattern(1, 0, 8) + pattern(9, 8, 8)
    bench.suspend(org)
    bench.resume(org)
    write(org, 16, pattern(9, 16, 16))
    assert read(snap, 16, 16) == pattern(1, 16, 16)


def test_snapshots_of_one_origin_with_chunks_of_their_own() -> None:
    bench = Bench()
    org, snap = scene(bench)
    other = bench.load("other", (Snapshot, SIZE, "1:0 1:2 P 32"))
    bench.suspend(org)
    bench.resume(org)
    write(org, 5, pattern(9, 5, 100))
    write(other, 0, pattern(8))
    assert read(org, 0, SIZE) == pattern(1, 0, 5) + pattern(9, 5, 100) + pattern(1, 105, SIZE - 105)
    assert read(snap, 0, SIZE) == pattern(1, 0, SIZE)
    assert read(other, 0, SIZE) == pattern(8) + pattern(1, 1, SIZE - 1)


def test_an_origin_write_waits_for_the_copy() -> None:
    bench = Bench()
    org, snap = scene(bench)
    bench.disks[1].slow = True
    ended = start(org, Op.WRITE, 0, pattern(9))
    assert not ended
    assert read(bench.disks[0], 0) == pattern(1)
    assert read(snap, 0) == pattern(1)
    while bench.disks[1].held:
        bench.disks[1].finish()
    assert ended == [0]
    assert read(bench.disks[0], 0) == pattern(9)
    assert read(snap, 0) == pattern(1)


def test_an_origin_write_waits_for_reads_through_the_snapshot() -> None:
    bench = Bench()
    org, snap = scene(bench)
    bench.disks[0].slow = True
    reading = start(snap, Op.READ, 0, bytes(512))
    (held,) = bench.disks[0].held
    bench.disks[0].held.clear()
    bench.disks[0].slow = False
    writing = start(org, Op.WRITE, 0, pattern(9))
    assert (reading, writing) == ([], [])
    bench.disks[0].submit_bio(held)
    assert (reading, writing) == ([0], [0])
    assert bytes(held.data or b"") == pattern(1)


def test_only_writes_are_cut_at_chunks() -> None:
    bench = Bench()
    org, _ = scene(bench)
    bench.disks[0].log.clear()
    assert read(org, 4, 20) == pattern(1, 4, 20)
    write(org, 4, pattern(9, 4, 20))
    assert [entry for entry in bench.disks[0].log if entry[2] != 8 or entry[0] is Op.WRITE] == [
        (Op.READ, 4, 20),
        (Op.WRITE, 4, 4),
        (Op.WRITE, 8, 8),
        (Op.WRITE, 16, 8),
    ]
