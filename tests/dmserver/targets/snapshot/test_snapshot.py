from __future__ import annotations

import errno
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.constructors import replay
from support.snapshots import SIZE, scene
from support.targets import Bench, discard, flush, pattern, read, start, status, write

from dmserver.io.bio import Op
from dmserver.model.dm_target import StatusType, TargetError
from dmserver.targets.linear import Linear
from dmserver.targets.snapshot.snapshot import Snapshot
from dmserver.targets.snapshot.snapshot_origin import SnapshotOrigin


def test_recorded_constructors() -> None:
    assert replay(Bench(), Snapshot, "t_snapshot") == 19


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("1:0 1:1 N 8 1 discard_passdown_origin", "discard_passdown_origin feature depends on discard_zeroes_cow"),
        ("1:0 1:1 N 8 3 a b c", "Invalid number of feature arguments"),
        ("1:0 1:1 N 8 2 discard_zeroes_cow bogus", "Unrecognised feature requested"),
        (
            "1:0 1:1 N 8 2 discard_passdown_origin bogus",
            "discard_passdown_origin feature depends on discard_zeroes_cow",
        ),
    ],
)
def test_refusals(params: str, message: str) -> None:
    assert Bench().refusal(Snapshot, SIZE, params) == (errno.EINVAL, message)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, SIZE - 1), st.integers(1, 40)), max_size=30),
    st.sampled_from(["P", "N", "PO"]),
    st.sampled_from([4, 8, 32]),
)
def test_origin_and_snapshot_are_two_devices(writes: list[tuple[bool, int, int]], kind: str, chunk: int) -> None:
    bench = Bench()
    devices = scene(bench, kind, chunk)
    models = [bytearray(pattern(1, 0, SIZE)) for _ in devices]
    for number, (to_snapshot, sector, count) in enumerate(writes):
        data = pattern(2 + number, sector, min(count, SIZE - sector))
        write(devices[to_snapshot], sector, data)
        models[to_snapshot][sector * 512 : sector * 512 + len(data)] = data
    for device, model in zip(devices, models, strict=True):
        assert read(device, 0, SIZE) == model
    if kind != "N":
        _, snap = devices
        used = status(snap)
        bench.remove(snap)
        again = bench.load("again", (Snapshot, SIZE, f"1:0 1:1 {kind} {chunk}"))
        assert status(again) == used
        assert read(again, 0, SIZE) == models[1]


def test_a_write_of_a_whole_chunk_is_not_copied() -> None:
    bench = Bench()
    _, snap = scene(bench)
    bench.disks[0].log.clear()
    write(snap, 8, pattern(9, 0, 8))
    assert bench.disks[0].log == []
    write(snap, 17, pattern(9))
    assert bench.disks[0].log == [(Op.READ, 16, 8)]


def test_a_suspension_waits_for_exceptions() -> None:
    bench = Bench()
    org, snap = scene(bench)
    bench.disks[1].slow = True
    start(org, Op.WRITE, 0, pattern(9))
    suspended = bench.suspend(snap)
    assert not suspended
    while bench.disks[1].held:
        bench.disks[1].finish()
    bench.work.run()
    assert suspended


def small_cow(bench: Bench, kind: str) -> tuple[Any, Any]:
    """Room for four chunks of data."""
    bench.load("cow", (Linear, 48, "1:1 0"))
    write(bench.disks[0], 0, pattern(1, 0, SIZE))
    snap = bench.load("snap", (Snapshot, SIZE, f"1:0 253:0 {kind} 8"))
    return bench.load("org", (SnapshotOrigin, SIZE, "1:0")), snap


def test_a_full_store_invalidates() -> None:
    bench = Bench()
    org, snap = small_cow(bench, "P")
    write(org, 0, pattern(9, 0, 32))
    assert status(snap) == "48/48 16"
    write(org, 32, pattern(9))
    assert (status(snap), snap.event_nr) == ("Invalid", 1)
    assert read(org, 32) == pattern(9)
    with pytest.raises(OSError, match="5"):
        read(snap, 0)
    assert read(bench.disks[1], 0)[:16] == b"SnAp" + bytes(4) + b"\1\0\0\0\x08\0\0\0"
    assert bench.mapper.events.lines[-1] == (
        "device-mapper: snapshots: Invalidating snapshot: Unable to allocate exception."
    )
    bench.remove(snap)
    snap = bench.load("again", (Snapshot, SIZE, "1:0 253:0 P 8"))
    assert status(snap) == "Invalid"


def test_overflow_keeps_what_is_there() -> None:
    bench = Bench()
    _, snap = small_cow(bench, "PO")
    for sector in (0, 8, 16, 24):
        write(snap, sector, pattern(9))
    with pytest.raises(OSError, match="5"):
        write(snap, 32, pattern(9))
    assert (status(snap), snap.event_nr) == ("Overflow", 0)
    assert read(snap, 24) == pattern(9)
    with pytest.raises(OSError, match="5"):
        write(snap, 0, pattern(9))


def test_an_error_of_the_cow_device_invalidates() -> None:
    bench = Bench()
    org, snap = scene(bench)
    bench.disks[1].fail = lambda bio: bio.op is Op.WRITE
    write(org, 0, pattern(9))
    assert status(snap) == "Invalid"
    assert "device-mapper: snapshots: Invalidating snapshot: Error reading/writing." in bench.mapper.events.lines
    assert "device-mapper: persistent snapshot: write header failed" in bench.mapper.events.lines
    assert read(org, 0) == pattern(9)


def test_flushes_go_to_the_cow_device() -> None:
    bench = Bench()
    _, snap = scene(bench)
    bench.disks[1].log.clear()
    flush(snap)
    assert bench.disks[1].log == [(Op.FLUSH, 0, 0)]


def test_discards_zero_the_exceptions() -> None:
    bench = Bench()
    for disk in bench.disks[:2]:
        disk.limits.discard = True
    write(bench.disks[0], 0, pattern(1, 0, SIZE))
    snap = bench.load("snap", (Snapshot, SIZE, "1:0 1:1 N 8 2 discard_zeroes_cow discard_passdown_origin"))
    assert snap.limits.discard_granularity == 4096
    write(snap, 8, pattern(9, 0, 16))
    bench.disks[0].log.clear()
    discard(snap, 4, 12)
    assert read(snap, 0, 24) == pattern(1, 0, 8)[:0] + read(bench.disks[0], 0, 8) + bytes(4096) + pattern(9, 8, 8)
    assert bench.disks[0].log[0] == (Op.DISCARD, 4, 12)


def test_a_second_table_takes_the_exceptions_over() -> None:
    bench = Bench()
    org, snap = scene(bench)
    write(snap, 3, pattern(9))
    bench.table(snap, (Snapshot, SIZE, "1:0 1:1 PO 16"))
    assert snap.inactive is not None
    assert snap.inactive.targets[0].status(StatusType.TABLE) == "1:0 1:1 PO 0"
    bench.resume(snap)
    assert status(snap, StatusType.TABLE) == "1:0 1:1 PO 8"
    write(org, 16, pattern(8))
    assert read(snap, 0, 24) == pattern(1, 0, 3) + pattern(9) + pattern(1, 4, 20)
    assert status(snap) == "32/16384 16"


def test_handover_wants_the_source_suspended() -> None:
    bench = Bench()
    _, snap = scene(bench)
    other = bench.mapper.create("other")
    bench.table(other, (Snapshot, SIZE, "1:0 1:1 P 8"))
    with pytest.raises(TargetError):
        bench.resume(other)
    assert bench.mapper.events.lines[-2] == (
        "device-mapper: snapshots: Unable to perform snapshot handover until source is suspended."
    )
    assert bench.refusal(Snapshot, SIZE, "1:0 1:1 P 8")[1] == "Snapshot cow pairing for exception table handover failed"
    bench.remove(snap)
    assert bench.mapper.events.lines[-1] == "device-mapper: snapshots: Cancelling snapshot handover."
    assert status(other) == "Invalid"


def test_measured_by_ima() -> None:
    _, snap = scene(Bench())
    assert snap.live.targets[0].ima_status() == (
        "target_name=snapshot,target_version=1.16.0,snap_origin_name=1:0,snap_cow_name=1:1,snap_valid=y,"
        "snap_merge_failed=n,snapshot_overflowed=n;"
    )


def test_a_handover_waits_for_exceptions_being_made() -> None:
    bench = Bench()
    org, snap = scene(bench)
    bench.table(snap, (Snapshot, SIZE, "1:0 1:1 P 8"))
    assert bench.suspend(snap)
    bench.disks[1].slow = True
    ended = start(org, Op.WRITE, 0, pattern(9))
    resuming = threading.Thread(target=bench.resume, args=(snap,))
    resuming.start()
    while resuming.is_alive():
        bench.disks[1].finish()
        resuming.join(0.01)
    assert ended == [0]
    assert read(snap, 0) == pattern(1)
    assert status(snap) == "24/16384 16"


def test_the_source_of_a_handover_cannot_be_resumed() -> None:
    bench = Bench()
    _, snap = scene(bench)
    other = bench.mapper.create("other")
    bench.table(other, (Snapshot, SIZE, "1:0 1:1 P 8"))
    assert bench.suspend(snap)
    with pytest.raises(TargetError):
        bench.resume(snap)
    assert bench.mapper.events.lines[-2] == (
        "device-mapper: snapshots: Unable to resume snapshot source until handover completes."
    )
    bench.resume(other)
    assert status(other) == "16/16384 16"
    bench.resume(snap)
    assert status(snap) == "Invalid"
