from __future__ import annotations

import errno
import struct

import pytest
from support.constructors import replay
from support.targets import Bench, FaultyDisk, discard, flush, pattern, read, start, status, write

from dmserver.io.bio import Op
from dmserver.model.dm_target import StatusType, TargetError
from dmserver.targets.log_writes import DISCARD, ENTRY, FLUSH, FUA, MARK, SUPER, LogWrites

Entry = tuple[int, int, int, bytes]


def logged(disk: FaultyDisk) -> list[Entry]:
    """What `replay-log` would find: (sector, sectors, flags, data or name)."""
    magic, version, count, size = SUPER.unpack(read(disk, 0)[: SUPER.size])
    assert (struct.pack("<Q", magic), version, size) == (b"rhswfsj\0", 1, 512)
    entries, at = [], 1
    for _ in range(count):
        block = read(disk, at)
        sector, sectors, flags, length = ENTRY.unpack(block[: ENTRY.size])
        data = block[ENTRY.size :][:length]
        at += 1
        if sectors and not flags & DISCARD:
            data = read(disk, at, sectors)
            at += sectors
        entries.append((sector, sectors, flags, data))
    return entries


def test_recorded_constructors() -> None:
    assert replay(Bench(), LogWrites, "t_verity_etc") == 6


def test_writes_are_logged_once_a_flush_made_them_durable() -> None:
    bench = Bench()
    device = bench.load("l", (LogWrites, 64, "1:0 1:1"))
    write(device, 3, pattern(1, 0, 2))
    bench.work.run()
    assert status(device) == "0 0"
    flush(device)
    write(device, 9, pattern(2), fua=True)
    write(device, 11, pattern(3))
    bench.work.run()
    assert status(device) == "3 6"
    bench.remove(device)
    assert logged(bench.disks[1]) == [
        (3, 2, 0, pattern(1, 0, 2)),
        (0, 0, FLUSH, b""),
        (9, 1, FUA, pattern(2)),
        (11, 1, 0, pattern(3)),
        (0, 0, MARK, b"dm-log-writes-end"),
    ]
    assert read(bench.disks[0], 3, 2) == pattern(1, 0, 2)


def test_a_write_that_ends_after_the_flush_began_is_not_part_of_it() -> None:
    bench = Bench()
    device = bench.load("l", (LogWrites, 64, "1:0 1:1"))
    bench.disks[0].slow = True
    flushed = start(device, Op.FLUSH, 0)
    written = start(device, Op.WRITE, 1, pattern(1))
    bench.disks[0].finish()
    assert (flushed, written) == ([0], [0])
    bench.work.run()
    assert status(device).startswith("1 ")
    bench.remove(device)
    assert [entry[2] for entry in logged(bench.disks[1])] == [FLUSH, 0, MARK]


def test_marks() -> None:
    bench = Bench()
    device = bench.load("l", (LogWrites, 64, "1:0 1:1"))
    target = device.live and device.live.targets[0]
    assert target
    target.message(["MARK", "x" * 600])
    bench.work.run()
    assert logged(bench.disks[1]) == [(0, 0, MARK, b"x" * (512 - 32 - 1))]
    for words in ([], ["mark"], ["mark", "a", "b"], ["bogus", "a"]):
        with pytest.raises(TargetError) as refusal:
            target.message(words)
        assert refusal.value.errno == errno.EINVAL


def test_discards_are_logged_though_the_device_cannot() -> None:
    bench = Bench()
    device = bench.load("l", (LogWrites, 64, "1:0 1:1"))
    discard(device, 8, 16)
    flush(device)
    bench.remove(device)
    assert logged(bench.disks[1])[0] == (8, 16, DISCARD, b"")


def test_a_log_that_is_full_or_fails_is_given_up() -> None:
    bench = Bench()
    lines: list[str] = []
    bench.mapper.events.on_log(lines.append)
    full = bench.load("full", (LogWrites, 64, "1:0 1:1"))
    write(full, 0, bytes(512), fua=True)
    bench.disks[1].fail = lambda bio: True
    write(full, 0, bytes(512), fua=True)
    bench.work.run()
    assert status(full).endswith(" logging_disabled")
    assert lines[-1] == "device-mapper: log-writes: Error writing log block, error=10."
    write(full, 1, pattern(1))
    assert read(full, 1) == pattern(1)
    bench.disks[2]._size = 3
    short = bench.load("short", (LogWrites, 64, "1:3 1:2"))
    write(short, 0, bytes(1024), fua=True)
    bench.work.run()
    assert status(short) == "0 3 logging_disabled"
    assert lines[-1] == "device-mapper: log-writes: Ran out of space on the logdev"


def test_table_and_devices() -> None:
    device = Bench().load("l", (LogWrites, 64, "1:0 1:1 more"))
    assert status(device, StatusType.TABLE) == "1:0 1:1"
