from __future__ import annotations

import errno
from typing import Any

import pytest
from support.constructors import replay
from support.targets import Bench, discard, flush, pattern, read, start, status, write

from dmserver.io.bio import Bio, Op
from dmserver.io.kcopyd import PIECE
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import StatusType
from dmserver.targets.mirror.mirror import Mirror


def writes(bio: Bio) -> bool:
    return bio.op is Op.WRITE


def reads(bio: Bio) -> bool:
    return bio.op is Op.READ


def suspends(bench: Bench, device: DmDev, *, noflush: bool = False) -> bool:
    """Suspend, and let the worker finish."""
    suspended = bench.suspend(device, noflush=noflush)
    bench.work.run()
    return bool(suspended)


def test_recorded_constructors() -> None:
    assert replay(Bench(), Mirror, "t_mirror") == 37


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("core 1 64 2 1:0 0 1:1 0 1 keep_log", "keep_log feature requires the handle_errors feature"),
        ("core 1 64 2 1:0 0 1:1 0 1 bogus", "Unrecognised feature requested"),
        ("core 1 64 2 1:0 0 1:1 0 x", "Invalid number of features"),
        ("core 1 64 2 1:0 0 1:1 0 1 handle_errors x", "Too many mirror arguments"),
        ("core 1 64 10 " + "1:0 0 " * 10, "Invalid number of mirrors"),
        ("disk 1 1:2 2 1:0 0 1:1 0", "Error creating mirror dirty log"),
    ],
)
def test_refusals(params: str, message: str) -> None:
    assert Bench().refusal(Mirror, 1024, params) == (errno.EINVAL, message)


def test_a_mirror_of_too_many_regions() -> None:
    bench = Bench()
    assert bench.refusal(Mirror, 1 << 33, "core 1 2 2 1:0 0 1:1 0")[1] == "Error creating mirror dirty log"
    assert bench.mapper.events.lines[-1] == (
        "device-mapper: dirty region log: region count exceeds limit of 4294967295"
    )


def test_a_log_device_that_is_too_small() -> None:
    bench = Bench()
    bench.load("tiny", (Mirror, 2, "core 1 2 2 1:3 0 1:4 0"))
    assert bench.refusal(Mirror, 1024, "disk 2 253:0 64 2 1:0 0 1:1 0") == (
        errno.EINVAL,
        "Error creating mirror dirty log",
    )
    assert bench.mapper.events.lines[-1] == (
        "device-mapper: dirty region log: log device 253:0 too small: need 1536 bytes"
    )


def test_resync_copies_the_first_leg_to_the_others() -> None:
    bench = Bench()
    write(bench.disks[0], 0, pattern(1, 0, 1000))
    device = bench.load("m", (Mirror, 1000, "core 1 64 3 1:0 0 1:1 100 1:2 200"))
    assert status(device) == "3 1:0 1:1 1:2 0/16 1 AAA 1 core"
    assert read(device, 0, 1000) == pattern(1, 0, 1000)
    bench.work.run()
    assert status(device) == "3 1:0 1:1 1:2 16/16 1 AAA 1 core"
    assert device.event_nr == 1
    for leg, offset in ((1, 100), (2, 200)):
        assert read(bench.disks[leg], offset, 1000) == pattern(1, 0, 1000)
        assert read(bench.disks[leg], offset + 1000) == bytes(512)


def test_regions_larger_than_a_piece_of_the_copy() -> None:
    bench = Bench()
    write(bench.disks[0], 0, pattern(1, 0, 3 * PIECE))
    bench.load("m", (Mirror, 4 * PIECE, f"core 1 {4 * PIECE} 2 1:0 0 1:1 0"))
    bench.work.run()
    assert read(bench.disks[1], 0, 4 * PIECE) == pattern(1, 0, 3 * PIECE) + bytes(512 * PIECE)


def test_nosync_copies_nothing_and_writes_go_everywhere() -> None:
    bench = Bench()
    write(bench.disks[0], 0, pattern(1))
    device = bench.load("m", (Mirror, 1024, "core 2 64 nosync 2 1:0 0 1:1 0"))
    bench.work.run()
    assert (status(device), device.event_nr) == ("2 1:0 1:1 16/16 1 AA 1 core", 0)
    assert read(bench.disks[1], 0) == bytes(512)
    write(device, 60, pattern(2, 0, 10))
    for disk in bench.disks[:2]:
        assert read(disk, 60, 10) == pattern(2, 0, 10)


def test_a_write_during_recovery_waits_for_it() -> None:
    bench = Bench()
    write(bench.disks[0], 0, pattern(1, 0, 64))
    device = bench.load("m", (Mirror, 64, "core 1 64 2 1:0 0 1:1 0"))
    bench.disks[1].slow = True
    bench.work.run()
    ended = start(device, Op.WRITE, 5, pattern(9))
    bench.work.run()
    suspended = bench.suspend(device)
    assert not ended
    assert not suspended
    bench.disks[1].finish()
    bench.work.run()
    assert ended == [0]
    assert suspended
    for disk in bench.disks[:2]:
        assert read(disk, 0, 7) == pattern(1, 0, 5) + pattern(9) + pattern(1, 6)


def test_a_write_to_a_region_yet_to_be_copied_is_copied_with_it() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 1 64 2 1:0 0 1:1 0"))
    write(device, 5, pattern(9))
    assert read(bench.disks[1], 5) == bytes(512)
    bench.work.run()
    assert read(bench.disks[1], 5) == pattern(9)


def test_a_read_error_turns_to_another_leg() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 2 64 nosync 2 1:0 0 1:1 0"))
    write(device, 5, pattern(9))
    bench.disks[0].fail = reads
    assert read(device, 5) == pattern(9)
    assert status(device) == "2 1:0 1:1 1/1 1 RA 1 core"
    bench.disks[1].fail = reads
    with pytest.raises(OSError, match="5"):
        read(device, 5)
    assert list(bench.mapper.events.lines) == [
        "device-mapper: raid1: Mirror read failed from 1:0. Trying alternative device.",
        "device-mapper: raid1: Mirror read failed from 1:1. Trying alternative device.",
        "device-mapper: raid1: All replicated volumes dead, failing I/O",
    ]


def test_a_read_error_turns_from_leg_to_leg() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 2 64 nosync 3 1:0 0 1:1 0 1:2 0"))
    bench.disks[0].fail = bench.disks[2].fail = reads
    assert read(device, 5) == bytes(512)
    assert list(bench.mapper.events.lines) == [
        "device-mapper: raid1: Mirror read failed from 1:0. Trying alternative device.",
        "device-mapper: raid1: Read failure on mirror device 1:2. Trying alternative device.",
    ]


def test_a_read_out_of_sync_has_the_default_leg_only() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 1 64 2 1:0 0 1:1 0"))
    bench.disks[0].fail = reads
    for _ in range(2):
        with pytest.raises(OSError, match="5"):
            read(device, 5)
    assert list(bench.mapper.events.lines) == [
        "device-mapper: raid1: Read failure on mirror device 1:0.  Failing I/O.",
        "device-mapper: raid1: Mirror read failed.",
        "device-mapper: raid1: Mirror read failed.",
    ]


def test_a_write_error_without_handle_errors_degrades() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 128, "core 2 64 nosync 2 1:0 0 1:1 0"))
    bench.disks[1].fail = writes
    ended = start(device, Op.WRITE, 5, pattern(9))
    bench.work.run()
    assert ended == [0]
    assert status(device) == "2 1:0 1:1 1/2 1 AD 1 core"
    assert device.event_nr == 0
    bench.disks[1].fail = lambda bio: False
    write(device, 6, pattern(8))
    assert read(bench.disks[1], 5, 2) == bytes(1024)
    assert read(device, 5, 2) == pattern(9) + pattern(8)


def test_handle_errors_holds_a_failed_write() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 2 8 nosync 2 1:0 0 1:1 0 1 handle_errors"))
    bench.disks[1].fail = writes
    ended = start(device, Op.WRITE, 0, pattern(9))
    bench.work.run()
    assert not ended
    assert (status(device), device.event_nr) == ("2 1:0 1:1 7/8 1 AD 1 core", 1)
    assert suspends(bench, device)
    assert ended == [errno.EIO]


def test_a_held_write_goes_to_the_better_table() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 2 8 nosync 2 1:0 0 1:1 0 1 handle_errors"))
    bench.disks[1].fail = writes
    ended = start(device, Op.WRITE, 0, pattern(9))
    bench.work.run()
    bench.table(device, (Mirror, 64, "core 2 8 nosync 2 1:0 0 1:2 0 1 handle_errors"))
    assert suspends(bench, device, noflush=True)
    assert not ended
    bench.resume(device)
    assert ended == [0]
    assert read(bench.disks[2], 0) == pattern(9)


def test_keep_log_goes_on_with_the_legs_left() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 2 8 nosync 2 1:0 0 1:1 0 2 handle_errors keep_log"))
    bench.disks[0].fail = writes
    ended = start(device, Op.WRITE, 0, pattern(9))
    bench.work.run()
    assert ended == [0]
    assert (status(device), device.event_nr) == ("2 1:0 1:1 7/8 1 DA 1 core", 1)
    assert read(device, 0) == pattern(9)


def test_all_legs_dead() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 2 8 nosync 2 1:0 0 1:1 0 1 handle_errors"))
    bench.disks[0].fail = bench.disks[1].fail = writes
    ended = start(device, Op.WRITE, 0, pattern(9))
    bench.work.run()
    assert ended == [errno.EIO]


def test_a_failed_recovery_leaves_the_region_out_of_sync() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 128, "core 1 64 2 1:0 0 1:1 0 1 handle_errors"))
    bench.disks[1].fail = lambda bio: bio.sector >= 64
    bench.work.run()
    assert (status(device), device.event_nr) == ("2 1:0 1:1 1/2 1 AS 1 core", 1)
    bench.disks[1].fail = lambda bio: False
    assert suspends(bench, device)
    bench.resume(device)
    bench.work.run()
    assert status(device) == "2 1:0 1:1 2/2 1 AA 1 core"


def test_flushes_and_discards_go_to_all_legs() -> None:
    bench = Bench()
    for disk in bench.disks[:2]:
        disk.limits.discard = True
    device = bench.load("m", (Mirror, 64, "core 2 8 nosync 2 1:0 0 1:1 4"))
    flush(device)
    discard(device, 8, 16)
    assert bench.disks[0].log == [(Op.FLUSH, 0, 0), (Op.DISCARD, 8, 16)]
    assert bench.disks[1].log == [(Op.FLUSH, 0, 0), (Op.DISCARD, 12, 16)]


# -- the disk log ---------------------------------------------------------------------------------------

HEADER = bytes.fromhex("7252694d 02000000 0800000000000000")


def log_bits(bench: Bench) -> int:
    image = read(bench.disks[2], 0, 3)
    assert image[:16] == HEADER
    assert not any(image[16:1024])
    return int.from_bytes(image[1024:], "little")


def disk_log(bench: Bench, sync: str = "", name: str = "m") -> Any:
    count = 3 if sync else 2
    return bench.load(name, (Mirror, 512, f"disk {count} 1:2 64{sync and ' '}{sync} 2 1:0 0 1:1 0"))


def test_the_disk_log_is_dirty_while_a_write_is_under_way() -> None:
    bench = Bench()
    device = disk_log(bench)
    assert log_bits(bench) == 0
    bench.work.run()
    assert log_bits(bench) == 0xFF
    assert status(device) == "2 1:0 1:1 8/8 1 AA 3 disk 1:2 A"
    assert status(device, StatusType.TABLE) == "disk 2 1:2 64 2 1:0 0 1:1 0"
    bench.disks[1].slow = True
    ended = start(device, Op.WRITE, 130, pattern(1))
    assert log_bits(bench) == 0xFF & ~(1 << 2)
    assert not ended
    bench.disks[1].finish()
    bench.work.run()
    assert ended == [0]
    assert log_bits(bench) == 0xFF


def test_only_what_was_dirty_is_copied_again() -> None:
    bench = Bench()
    device = disk_log(bench)
    bench.work.run()
    bench.remove(device)
    write(bench.disks[0], 0, pattern(1, 0, 512))
    image = bytearray(read(bench.disks[2], 0, 3))
    image[1024] = 0xF7
    write(bench.disks[2], 0, bytes(image))
    device = disk_log(bench)
    assert status(device) == "2 1:0 1:1 7/8 1 AA 3 disk 1:2 A"
    bench.work.run()
    assert read(bench.disks[1], 0, 512) == bytes(192 * 512) + pattern(1, 192, 64) + bytes(256 * 512)


@pytest.mark.parametrize(("sync", "bits"), [("sync", 0), ("nosync", 0xFF)])
def test_sync_arguments_overrule_the_log(sync: str, bits: int) -> None:
    bench = Bench()
    write(bench.disks[2], 0, HEADER + bytes(1008) + b"\x0f" + bytes(511))
    device = disk_log(bench, sync)
    assert log_bits(bench) == bits
    assert status(device, StatusType.TABLE) == f"disk 3 1:2 64 {sync} 2 1:0 0 1:1 0"


def test_a_log_device_that_fails() -> None:
    bench = Bench()
    device = disk_log(bench, "nosync")
    bench.disks[2].fail = writes
    write(device, 0, pattern(1))
    assert status(device) == "2 1:0 1:1 8/8 1 AA 3 disk 1:2 D"
    assert device.event_nr == 1
    assert read(bench.disks[1], 0) == pattern(1)


def test_a_new_log_device_that_cannot_be_read() -> None:
    bench = Bench()
    bench.disks[2].fail = reads
    device = disk_log(bench)
    assert status(device) == "2 1:0 1:1 0/8 1 AA 3 disk 1:2 D"
    assert (
        "device-mapper: dirty region log: 1:2: Failed to read header on dirty region log device"
        in bench.mapper.events.lines
    )


def test_measured_by_ima() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 2 8 nosync 2 1:0 0 1:1 0 1 handle_errors"))
    assert device.live is not None
    assert device.live.targets[0].ima_status() == (
        "target_name=mirror,target_version=1.14.0,nr_mirrors=2,mirror_device_0=1:0,mirror_device_0_status=A,"
        "mirror_device_1=1:1,mirror_device_1_status=A,handle_errors=y,keep_log=n,log_type_status=;"
    )


def test_a_log_device_that_cannot_flush() -> None:
    bench = Bench()
    bench.disks[2].fail = lambda bio: bio.op is Op.FLUSH
    device = disk_log(bench)
    assert status(device) == "2 1:0 1:1 0/8 1 AA 3 disk 1:2 F"
    assert list(bench.mapper.events.lines) == [
        "device-mapper: dirty region log: 1:2: Failed to write header on dirty region log device",
        "device-mapper: raid1: log resume failed",
    ]


def test_a_log_of_a_version_to_come() -> None:
    bench = Bench()
    write(bench.disks[2], 0, HEADER[:4] + b"\3\0\0\0" + HEADER[8:] + bytes(1008) + b"\xff" * 512)
    device = disk_log(bench)
    assert status(device) == "2 1:0 1:1 0/8 1 AA 3 disk 1:2 D"
    assert "device-mapper: dirty region log: incompatible disk log version" in bench.mapper.events.lines


def test_legs_that_cannot_flush_leave_every_region_dirty() -> None:
    bench = Bench()
    device = disk_log(bench, "nosync")
    bench.disks[1].fail = lambda bio: bio.op is Op.FLUSH
    write(device, 0, pattern(1))
    bench.work.run()
    assert log_bits(bench) == 0
    assert status(device) == "2 1:0 1:1 8/8 1 AF 3 disk 1:2 A"


def test_with_handle_errors_a_failed_log_holds_writes() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 512, "disk 3 1:2 64 nosync 2 1:0 0 1:1 0 1 handle_errors"))
    bench.disks[2].fail = writes
    ended = start(device, Op.WRITE, 0, pattern(9))
    bench.work.run()
    assert not ended
    assert read(bench.disks[0], 0) == bytes(512)
    bench.table(device, (Mirror, 512, "disk 3 1:3 64 nosync 2 1:0 0 1:1 0 1 handle_errors"))
    assert suspends(bench, device, noflush=True)
    bench.resume(device)
    assert ended == [0]
    assert read(bench.disks[1], 0) == pattern(9)


def test_after_a_leg_failed_writes_out_of_sync_are_held() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 128, "core 2 64 nosync 2 1:0 0 1:1 0 1 handle_errors"))
    bench.disks[1].fail = writes
    first = start(device, Op.WRITE, 0, pattern(9))
    bench.work.run()
    second = start(device, Op.WRITE, 5, pattern(9))
    bench.work.run()
    assert (first, second) == ([], [])
    assert suspends(bench, device)
    assert (first, second) == ([errno.EIO], [errno.EIO])


def test_a_failed_flush_without_handle_errors_counts_as_done() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 2 64 nosync 2 1:0 0 1:1 0"))
    bench.disks[1].fail = lambda bio: bio.op is Op.FLUSH
    ended = start(device, Op.FLUSH, 0)
    bench.work.run()
    assert ended == [0]
    assert status(device) == "2 1:0 1:1 1/1 1 AD 1 core"


def test_a_discard_that_fails_degrades_nothing() -> None:
    bench = Bench()
    for disk in bench.disks[:2]:
        disk.limits.discard = True
    device = bench.load("m", (Mirror, 64, "core 2 64 nosync 2 1:0 0 1:1 0"))
    bench.disks[1].fail = lambda bio: bio.op is Op.DISCARD
    with pytest.raises(OSError, match=str(errno.EOPNOTSUPP)):
        discard(device, 0, 8)
    assert status(device) == "2 1:0 1:1 1/1 1 AA 1 core"


def test_a_primary_leg_that_cannot_be_read_for_recovery() -> None:
    bench = Bench()
    device = bench.load("m", (Mirror, 64, "core 1 64 2 1:0 0 1:1 0 1 handle_errors"))
    bench.disks[0].fail = reads
    bench.work.run()
    assert status(device) == "2 1:0 1:1 0/1 1 SA 1 core"
    assert list(bench.mapper.events.lines) == [
        "device-mapper: raid1: Unable to read primary mirror during recovery",
        "device-mapper: raid1: Primary mirror (1:0) failed while out-of-sync: Reads may fail.",
    ]
