from __future__ import annotations

import errno

import pytest
from support.targets import Bench, FaultyDisk, discard, flush, message, pattern, read, start, status, write
from support.writecache import ROOM, SIZE, load

from dmserver.io.bio import Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import StatusType, TargetError
from dmserver.targets.linear import Linear
from dmserver.targets.writecache.writecache import Writecache


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.disks[1] = FaultyDisk(1, f"{ROOM + 1}s")
    return bench


def counts(device: DmDev) -> list[int]:
    return [int(word) for word in status(device).split()]


INVALID = (errno.EINVAL, "Invalid optional argument")
BAD = (errno.EINVAL, "Bad arguments")


@pytest.mark.parametrize(
    ("params", "refusal"),
    [
        ("", BAD),
        ("s", BAD),
        ("s 1:0", BAD),
        ("s 1:0 1:1", BAD),
        ("p 1:0 1:1 4096 0", (errno.EOPNOTSUPP, "Persistent memory or DAX not supported on this system")),
        ("s 1:0 77:7 4096 0", (errno.ENXIO, "Cache data device lookup failed")),
        ("s 1:0 1:1 256 0", (errno.EINVAL, "Invalid block size")),
        ("s 1:0 1:1 8192 0", (errno.EINVAL, "Invalid block size")),
        ("s 1:0 1:1 x 0", (errno.EINVAL, "Invalid block size")),
        ("s 1:0 1:2 512 0", (errno.EINVAL, "Block size is smaller than device logical block size")),
        ("s 1:0 1:1 512 19", (errno.EINVAL, "Invalid number of feature args")),
        ("s 1:0 1:1 512 2 cleaner", (errno.EINVAL, "Invalid number of feature args")),
        ("s 1:0 1:1 512 1 start_sector", INVALID),
        ("s 1:0 1:1 512 2 start_sector 21", INVALID),
        ("s 1:0 1:1 512 2 low_watermark -1", INVALID),
        ("s 1:0 1:1 512 2 autocommit_time 3600001", INVALID),
        ("s 1:0 1:1 512 2 max_age 86400001", INVALID),
        ("s 1:0 1:1 512 2 pause_writeback 60001", INVALID),
        ("s 1:0 1:1 512 1 fua", INVALID),
        ("s 1:0 1:1 512 1 nofua", INVALID),
        (
            "s 1:0 1:1 512 2 low_watermark 51",
            (errno.EINVAL, "High watermark must be greater than or equal to low watermark"),
        ),
        ("s 1:0 1:1 512 2 start_sector 20", (errno.ENOSPC, "Invalid device size")),
    ],
)
def test_refusals(bench: Bench, params: str, refusal: tuple[int, str]) -> None:
    bench.disks[2].limits.logical_block_size = 4096
    assert bench.refusal(Writecache, SIZE, params) == refusal


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, 1, "Invalid magic in the superblock"),
        (4, 2, "Invalid version in the superblock"),
        (8, 1024, "Block size does not match superblock"),
        (16, ROOM + 1, "Memory area is too small"),
        (23, 1, "Overflow in size calculation"),
    ],
)
def test_superblocks_that_are_refused(bench: Bench, at: int, value: int, text: str) -> None:
    bench.remove(load(bench))
    image = bytearray(read(bench.disks[1], 0))
    image[at : at + 4] = value.to_bytes(4, "little")
    write(bench.disks[1], 0, bytes(image))
    assert bench.refusal(Writecache, SIZE, "s 1:0 1:1 512 0") == (errno.EINVAL, text)


def test_a_superblock_that_cannot_be_read(bench: Bench) -> None:
    bench.disks[1].fail = lambda bio: bio.op is Op.READ
    refusal = bench.refusal(Writecache, SIZE, "s 1:0 1:1 512 0")
    assert refusal == (errno.EIO, "Unable to read first block of metadata")


def test_the_table_line_tells_the_options_in_one_order(bench: Bench) -> None:
    options = "pause_writeback 0 CLEANER max_age 5 metadata_only writeback_jobs 3 high_watermark 60 low_watermark 40"
    device = bench.load("w", (Writecache, SIZE, f"S 1:0 1:1 512 12 {options}"))
    assert status(device, StatusType.TABLE) == (
        "s 1:0 1:1 512 12 high_watermark 60 low_watermark 40 writeback_jobs 3 max_age 5 cleaner metadata_only "
        "pause_writeback 0"
    )
    assert device.limits.io_min == 4096


# -- reads and writes -----------------------------------------------------------------------------------


def test_writes_stay_in_the_cache(bench: Bench) -> None:
    write(bench.disks[0], 0, pattern(1, 0, SIZE))
    device = load(bench)
    write(device, 5, pattern(2, 5, 2))
    assert read(bench.disks[0], 0, SIZE) == pattern(1, 0, SIZE)
    assert read(device, 0, 10) == pattern(1, 0, 5) + pattern(2, 5, 2) + pattern(1, 7, 3)
    assert counts(device) == [0, ROOM, ROOM - 2, 0, 10, 2, 2, 0, 0, 0, 2, 0, 0, 0]
    write(device, 5, pattern(3, 5, 2))
    flush(device)
    write(device, 5, pattern(4, 5, 1))
    assert counts(device) == [0, ROOM, ROOM - 2, 0, 10, 2, 5, 1, 1, 0, 3, 0, 1, 0]
    message(device, "flush")
    assert read(bench.disks[0], 4, 4) == pattern(1, 4) + pattern(4, 5) + pattern(3, 6) + pattern(1, 7)
    assert counts(device)[2] == ROOM


def test_a_write_that_begins_elsewhere_takes_new_blocks(bench: Bench) -> None:
    device = load(bench)
    write(device, 5, pattern(1, 5))
    flush(device)
    write(device, 4, pattern(2, 4, 3))
    assert counts(device)[2] == ROOM - 4
    assert read(device, 4, 3) == pattern(2, 4, 3)
    flush(device)
    assert counts(device)[2] == ROOM - 3
    assert read(device, 4, 3) == pattern(2, 4, 3)


def test_a_full_cache_is_gone_around(bench: Bench) -> None:
    device = load(bench, "4 high_watermark 100 low_watermark 100")
    write(device, 0, pattern(1, 0, ROOM + 4))
    assert counts(device)[2:4] == [0, 0]
    assert counts(device)[9] == 4
    assert read(bench.disks[0], ROOM, 4) == pattern(1, ROOM, 4)
    assert read(device, 0, ROOM + 4) == pattern(1, 0, ROOM + 4)


def test_a_target_that_begins_elsewhere(bench: Bench) -> None:
    device = bench.load("w", (Linear, 24, "1:2 0"), (Writecache, SIZE, "s 1:0 1:1 512 0"))
    write(device, 20, pattern(1, 20, 8))
    flush(device)
    assert read(device, 20, 8) == pattern(1, 20, 8)
    bench.remove(device)
    assert read(load(bench), 0, 4) == pattern(1, 24, 4)


def test_bios_must_be_aligned(bench: Bench) -> None:
    bench.disks[1] = FaultyDisk(1)
    device = bench.load("w", (Writecache, SIZE, "s 1:0 1:1 4096 0"))
    with pytest.raises(OSError, match="5"):
        write(device, 8, pattern(1, 8, 3))
    line = "device-mapper: writecache: I/O is not aligned, sector 8, size 1536, block size 4096"
    assert bench.mapper.events.lines[-1] == line


def test_discards_reach_the_origin(bench: Bench) -> None:
    bench.disks[0].limits.discard = True
    write(bench.disks[0], 0, pattern(1, 0, SIZE))
    device = load(bench)
    write(device, 8, pattern(2, 8, 4))
    discard(device, 0, 32)
    assert counts(device)[2] == ROOM
    assert counts(device)[13] == 32
    assert read(device, 0, 33) == bytes(32 * 512) + pattern(1, 32)


@pytest.mark.parametrize("option", ["cleaner", "metadata_only"])
def test_options_that_put_nothing_new_into_the_cache(bench: Bench, option: str) -> None:
    device = load(bench)
    write(device, 3, pattern(1, 3))
    device = load(bench, f"1 {option}")
    write(device, 2, pattern(2, 2, 2))
    assert read(device, 2, 2) == pattern(2, 2, 2)
    assert read(bench.disks[0], 2) == pattern(2, 2)
    bench.work.run()
    assert counts(device)[2] == ROOM - (option == "metadata_only")


def test_a_fua_write_is_committed_when_it_ends(bench: Bench) -> None:
    device = load(bench)
    write(device, 3, pattern(1, 3), fua=True)
    image = read(bench.disks[1], 0, ROOM + 1)
    bench.remove(device)
    write(bench.disks[1], 0, image)
    assert read(load(bench), 3) == pattern(1, 3)


# -- in the background ----------------------------------------------------------------------------------


def test_writeback_goes_from_one_watermark_to_the_other(bench: Bench) -> None:
    device = load(bench, "4 high_watermark 50 low_watermark 20")
    for sector in range(0, 18, 2):
        write(device, sector, pattern(1, sector))
    bench.work.run()
    assert counts(device)[2] == ROOM - 9
    write(device, 18, pattern(1, 18))
    bench.work.run()
    assert counts(device)[2] == 17
    assert read(bench.disks[0], 0) == pattern(1, 0)
    assert read(bench.disks[0], 18) == bytes(512)


def test_writeback_waits_until_writes_around_have_ended(bench: Bench) -> None:
    write(load(bench, "4 high_watermark 100 low_watermark 100"), 0, pattern(1, 0, ROOM))
    device = load(bench, "2 pause_writeback 2500")
    write(device, ROOM, pattern(1, ROOM))
    assert counts(device)[9] == 1
    bench.work.advance(2)
    assert counts(device)[2] == 0
    bench.work.advance(0.6)
    assert counts(device)[2] == ROOM


def test_a_commit_comes_after_a_while_or_so_many_blocks(bench: Bench) -> None:
    device = load(bench, "4 autocommit_time 500 autocommit_blocks 3")
    seq_count = read(bench.disks[1], 0)[24]
    write(device, 0, pattern(1, 0))
    bench.work.advance(0.4)
    assert read(bench.disks[1], 0)[24] == seq_count
    bench.work.advance(0.1)
    assert read(bench.disks[1], 0)[24] == seq_count + 1
    write(device, 10, pattern(1, 10, 3))
    bench.work.run()
    assert read(bench.disks[1], 0)[24] == seq_count + 2


def test_old_blocks_are_written_back(bench: Bench) -> None:
    device = load(bench, "2 max_age 16000")
    write(device, 0, pattern(1, 0))
    bench.work.advance(8)
    write(device, 9, pattern(1, 9))
    assert counts(device)[2] == ROOM - 2
    bench.work.advance(7)
    assert counts(device)[2] == ROOM - 1
    bench.work.advance(8)
    assert counts(device)[2] == ROOM


def test_what_is_being_written_back_gets_a_new_block(bench: Bench) -> None:
    device = load(bench, "4 high_watermark 100 low_watermark 100")
    write(device, 0, pattern(1, 0, ROOM - 1))
    flush(device)
    origin = bench.disks[0]
    origin.slow = True
    message(device, "cleaner")
    bench.work.run()
    assert counts(device)[2:4] == [1, ROOM - 1]
    write(device, 3, pattern(2, 3))
    ended = start(device, Op.WRITE, 4, pattern(2, 4))
    assert not ended
    assert counts(device)[11] == 1
    assert read(device, 3, 2) == pattern(2, 3) + pattern(1, 4)
    origin.finish()
    bench.work.run()
    assert ended == [0]
    assert read(device, 0, ROOM - 1) == pattern(1, 0, 3) + pattern(2, 3, 2) + pattern(1, 5, ROOM - 6)


def test_of_two_blocks_for_a_sector_the_older_is_copied_first(bench: Bench) -> None:
    device = load(bench)
    write(device, 5, pattern(1, 5))
    flush(device)
    write(device, 4, pattern(2, 4, 2))
    origin = bench.disks[0]
    origin.slow = True
    message(device, "cleaner")
    bench.work.run()
    assert counts(device)[2:4] == [ROOM - 3, 2]
    origin.held.reverse()
    origin.finish()
    bench.work.run()
    assert counts(device)[2] == ROOM
    assert read(origin, 4, 2) == pattern(2, 4, 2)


def test_a_block_is_not_read_before_it_was_written(bench: Bench) -> None:
    device = load(bench)
    disk = bench.disks[1]
    disk.slow = True
    written = start(device, Op.WRITE, 7, pattern(1, 7))
    done = start(device, Op.READ, 7, bytes(512))
    assert [bio.op for bio in disk.held] == [Op.WRITE]
    disk.finish()
    assert written == done == [0]
    assert read(device, 7) == pattern(1, 7)


# -- messages, suspensions, errors ----------------------------------------------------------------------


def test_statistics_can_be_cleared(bench: Bench) -> None:
    device = load(bench)
    write(device, 1, pattern(1, 1))
    message(device, "clear_stats")
    assert counts(device) == [0, ROOM, ROOM - 1, *[0] * 11]


def test_messages(bench: Bench) -> None:
    device = load(bench)
    write(device, 1, pattern(1, 1))
    message(device, "FLUSH_ON_SUSPEND")
    for text, number in (("flush 1", errno.EINVAL), ("bogus", errno.EINVAL)):
        with pytest.raises(TargetError) as refusal:
            message(device, text)
        assert refusal.value.errno == number
    bench.suspend(device)
    assert counts(device)[2] == ROOM
    assert read(bench.disks[0], 1) == pattern(1, 1)
    with pytest.raises(TargetError) as refusal:
        message(device, "flush")
    assert refusal.value.errno == errno.EBUSY
    bench.resume(device)
    write(device, 1, pattern(2, 1))
    bench.suspend(device)
    assert counts(device)[2] == ROOM - 1


def test_a_cleaner_is_empty_after_a_suspension(bench: Bench) -> None:
    device = load(bench)
    write(device, 0, pattern(1, 0, 4))
    message(device, "cleaner")
    write(device, 2, pattern(2, 2, 4))
    bench.suspend(device)
    assert counts(device)[2] == ROOM
    assert read(bench.disks[0], 0, 6) == pattern(1, 0, 2) + pattern(2, 2, 4)


def test_nothing_hangs_when_the_cache_device_is_suspended(bench: Bench) -> None:
    below = bench.load("below", (Linear, ROOM + 1, "1:1 0"))
    device = bench.load("w", (Writecache, SIZE, f"s 1:0 253:{below.minor} 512 0"))
    bench.suspend(below)
    with pytest.raises(TargetError) as refusal:
        message(device, "flush")
    assert refusal.value.errno == errno.EAGAIN
    again = bench.refusal(Writecache, SIZE, f"s 1:0 253:{below.minor} 512 0")
    assert again == (errno.EAGAIN, "Unable to read first block of metadata")
    ended = start(device, Op.WRITE, 1, pattern(1, 1))
    suspended = bench.suspend(device)
    bench.work.run()
    assert not ended
    assert not suspended
    bench.resume(below)
    bench.work.run()
    assert ended == [0]
    assert suspended
    bench.suspend(below)
    with pytest.raises(TargetError):
        bench.resume(device)
    bench.remove(device)


def test_after_an_error_writes_fail_and_reads_go_on(bench: Bench) -> None:
    device = load(bench)
    write(device, 1, pattern(1, 1))
    bench.disks[1].fail = lambda bio: bio.op is Op.FLUSH
    for use in (lambda: flush(device), lambda: write(device, 1, pattern(2, 1)), lambda: flush(device)):
        with pytest.raises(OSError, match="5"):
            use()
    assert read(device, 0, 3) == bytes(512) + pattern(1, 1) + bytes(512)
    assert counts(device)[0] == -5
    with pytest.raises(TargetError) as refusal:
        message(device, "flush")
    assert refusal.value.errno == errno.EIO
    assert list(bench.mapper.events.lines)[-1] == "device-mapper: writecache: error flushing metadata: -5"
