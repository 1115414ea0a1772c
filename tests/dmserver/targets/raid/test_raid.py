from __future__ import annotations

import errno
from random import Random

import pytest
from support.targets import Bench, FaultyDisk, discard, flush, pattern, read, start, status, write

from dmserver.io.bio import Bio, Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import SECTOR_SIZE, StatusType, TargetError
from dmserver.targets.linear import Linear
from dmserver.targets.raid.raid import Raid
from dmserver.targets.raid.super import BITMAP_AT, MAX_SECTOR, Bitmap, Superblock

SIZE = 4096
#: Whole chunks of two and of three devices.
LONG = 6144
MIRROR = "raid1 3 0 region_size 64 2 1:2 1:0 1:3 1:1"
FIVE = "raid5_ls 1 64 3 1:3 1:0 1:4 1:1 1:5 1:2"
SIX = "raid6_zr 1 64 5 1:5 1:0 1:6 1:1 1:7 1:2 1:8 1:3 1:9 1:4"
TEN = "raid10 3 64 raid10_copies 2 4 1:4 1:0 1:5 1:1 1:6 1:2 1:7 1:3"
FAR = "raid10 3 64 raid10_format far 4 1:4 1:0 1:5 1:1 1:6 1:2 1:7 1:3"
OFFSET = "raid10 4 64 raid10_format offset raid10_use_near_sets 3 1:4 1:0 1:5 1:1 1:6 1:2"
#: Sets with metadata devices, and how many devices each may lose.
REDUNDANT = [(MIRROR, 1), (FIVE, 1), (SIX, 2), (TEN, 1), (FAR, 1), (OFFSET, 1)]


def written(bio: Bio) -> bool:
    return bio.op in (Op.WRITE, Op.FLUSH)


def reading(bio: Bio) -> bool:
    return bio.op is Op.READ


def synced(params: str = MIRROR, size: int = SIZE) -> tuple[Bench, DmDev]:
    """A raid that its first resync has made equal."""
    bench = Bench()
    device = bench.load("r", (Raid, size, params))
    bench.work.advance(60)
    return bench, device


def legs(bench: Bench, params: str) -> list[FaultyDisk]:
    words = params.split()
    paths = words[3 + int(words[1]) :][1::2]
    return [bench.disks[int(path[2:])] for path in paths if path != "-"]


def message(device: DmDev, *words: str) -> str | None:
    assert device.live is not None
    return device.live.targets[0].message(words)


def superblock(bench: Bench, disk: int) -> Superblock:
    found = Superblock.unpack(read(bench.disks[disk], 0))
    assert found is not None
    return found


def dirty(bench: Bench, disk: int) -> list[int]:
    found = Bitmap.unpack(read(bench.disks[disk], BITMAP_AT, 8))
    assert found is not None
    return [region for region, bit in enumerate(found.dirty) if bit]


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ("raid10_near_far 1 64 2 - 1:0 - 1:1", "Unrecognised raid_type"),
        ("raid10_far 1 64 2 - 1:0 - 1:1", "Failed to run raid array"),
        ("raid10 3 64 raid10_format OFFSET 2 - 1:0 - 1:1", "Failed to run raid array"),
        ("raid10 3 64 delta_disks -1 3 1:2 1:0 1:3 1:1 1:5 1:4", "Bogus raid10 data copies or delta disks"),
        ("raid10 3 64 raid10_format x 2 - 1:0 - 1:1", "Invalid 'raid10_format' value given"),
        ("raid1 3 0 raid10_format near 2 - 1:0 - 1:1", "'raid10_format' is an invalid parameter for this RAID type"),
        (
            "raid10 2 64 raid10_use_near_sets 2 - 1:0 - 1:1",
            "RAID10 format 'near' and 'raid10_use_near_sets' are incompatible",
        ),
        (
            "raid10 3 64 raid10_use_near_sets raid10_use_near_sets 2 - 1:0 - 1:1",
            "Only one 'raid10_use_new_sets' argument allowed",
        ),
        ("raid1 0 2 - 1:0 - 1:1", "Bad numerical argument given in raid params"),
        ("raid1 0 2", "Cannot understand number of raid devices parameters"),
        ("raid6_zr 2 64 nosync 4 - 1:0 - 1:1 - 1:2 - 1:3", "Invalid flags combination"),
        ("raid1 3 0 journal_dev 1:2 2 - 1:0 - 1:1", "'journal_dev' is an invalid parameter for this RAID type"),
        ("raid5_ls 3 64 journal_dev 77:7 3 - 1:0 - 1:1 - 1:2", "raid4/5/6 journal device lookup failure"),
        (
            "raid5_ls 3 64 journal_mode writeback 3 - 1:0 - 1:1 - 1:2",
            "raid4/5/6 'journal_mode' is invalid without 'journal_dev'",
        ),
        ("raid5_ls 5 64 journal_dev 1:3 journal_mode x 3 - 1:0 - 1:1 - 1:2", "Invalid 'journal_mode' argument"),
        ("raid5_ls 3 64 data_offset 8191 3 - 1:0 - 1:1 - 1:2", "Bogus data_offset value"),
        ("raid5_ls 3 64 delta_disks 0 3 - 1:0 - 1:1 - 1:2", "Too many delta_disk requested"),
        ("raid5_ls 3 64 stripe_cache 32769 3 - 1:0 - 1:1 - 1:2", "Failed to set raid4/5/6 stripe cache size"),
        ("raid5_ls 3 8 stripe_cache 16 3 - 1:0 - 1:1 - 1:2", "Failed to set raid4/5/6 stripe cache size"),
        ("raid1 5 0 write_mostly 1 write_mostly 1 2 - 1:0 - 1:1", "Can't set all raid1 devices to write_mostly"),
        ("raid5_ls 1 4 3 - 1:0 - 1:1 - 1:2", "Chunk size value is too small"),
        ("raid5_ls 1 x 3 - 1:0 - 1:1 - 1:2", "Bad numerical argument given for chunk_size"),
        ("raid6_zr 1 64 2 - 1:0 - 1:1", "Insufficient number of devices"),
        ("raid1 3 0 sync sync 2 - 1:0 - 1:1", "Only one 'sync' argument allowed"),
        ("raid1 3 0 sync nosync 2 - 1:0 - 1:1", "sync and nosync are mutually exclusive"),
        ("raid1 4 0 sync rebuild 1 2 - 1:0 - 1:1", "sync/nosync and rebuild are mutually exclusive"),
        ("raid1 3 0 rebuild 2 2 - 1:0 - 1:1", "Invalid rebuild index given"),
        ("raid1 5 0 write_mostly 0 write_mostly 1 2 - 1:0 - 1:1", "Can't set all raid1 devices to write_mostly"),
        ("raid1 3 0 region_size x 2 - 1:0 - 1:1", "Bad numerical argument given in raid params"),
        ("raid1 3 0 region_size 8192 2 - 1:0 - 1:1", "Supplied region size is too large"),
        ("raid1 3 0 stripe_cache 8 2 - 1:0 - 1:1", "Inappropriate argument: stripe_cache"),
        ("raid0 3 64 daemon_sleep 8 2 - 1:0 - 1:1", "Invalid flags combination"),
        ("raid5_ls 3 64 write_mostly 1 3 - 1:0 - 1:1 - 1:2", "write_mostly option is only valid for RAID1"),
        ("raid5_ls 1 64 4 - 1:0 - 1:1 - 1:2 - 1:3", "Target length not divisible by number of data devices"),
        ("raid1 1 0 2 - 1:0", "Cannot understand number of raid devices parameters"),
        ("raid1 1 0 2 1:9 - - 1:1", "No data device supplied with metadata device"),
        ("raid1 3 0 rebuild 0 2 - - - 1:1", "Drive designated for rebuild not specified"),
        ("raid1 1 0 2 - 1:0 - 77:7", "RAID device lookup failure"),
    ],
)
def test_refusals(params: str, text: str) -> None:
    assert Bench().refusal(Raid, SIZE, params)[1] == text


def test_all_devices_missing() -> None:
    assert Bench().refusal(Raid, SIZE, "raid1 1 0 2 - - - -") == (errno.EINVAL, "Invalid rdev size")
    assert Bench().refusal(Raid, SIZE, "raid5_ls 1 64 3 - 1:0 - - - -") == (errno.EIO, "Failed to run raid array")


@pytest.mark.parametrize(
    ("params", "table", "lines"),
    [
        ("raid1 1 64 2 - 1:0 - 1:1", "raid1 1 0 2 - 1:0 - 1:1", ["Ignoring chunk size parameter for RAID 1"]),
        (
            "raid5_ls 5 64 stripe_cache 17 region_size 64 3 - 1:0 - 1:1 - 1:2",
            "raid5_ls 5 64 stripe_cache 32 region_size 64 3 - 1:0 - 1:1 - 1:2",
            ["Adjusting requested 17 stripe cache entries to 32 to suit stripe size", "32 stripe cache entries"],
        ),
        (
            "raid4 5 64 region_size 64 data_offset 0 3 - 1:0 - 1:1 - 1:2",
            "raid4 5 64 region_size 64 data_offset 0 3 - 1:0 - 1:1 - 1:2",
            [],
        ),
    ],
)
def test_parameters_that_are_adjusted(params: str, table: str, lines: list[str]) -> None:
    bench = Bench()
    device = bench.mapper.create("r")
    bench.table(device, (Raid, SIZE, params))
    assert device.inactive is not None
    assert device.inactive.targets[0].status(StatusType.TABLE) == table
    told = [line for line in bench.mapper.events.lines if "md" not in line and "default region size" not in line]
    assert told == [f"device-mapper: raid: {line}" for line in lines]


def test_discards_need_all_devices_and_no_parity() -> None:
    bench = Bench()
    for disk in bench.disks[:2]:
        disk.limits.discard = True
    for params, can in (
        ("raid1 1 0 2 - 1:0 - 1:1", True),
        ("raid1 1 0 3 - 1:0 - 1:1 - -", False),
        ("raid5_ls 1 64 2 - 1:0 - 1:1", False),
    ):
        device = bench.load("r", (Raid, SIZE, params))
        assert device.limits.discard == can
    assert list(bench.mapper.events.lines)[-2:] == [
        "device-mapper: raid: raid456 discard support disabled due to discard_zeroes_data uncertainty.",
        "device-mapper: raid: Set dm-raid.devices_handle_discard_safely=Y to override.",
    ]


def test_a_journal_that_is_too_small() -> None:
    bench = Bench()
    bench.load("tiny", (Linear, 8191, "1:9 0"))
    params = "raid5_ls 3 64 journal_dev 253:0 3 - 1:0 - 1:1 - 1:2"
    assert bench.refusal(Raid, SIZE, params) == (errno.ENOSPC, "No space for raid4/5/6 journal")


def test_a_check_asked_for_while_suspended_begins_with_the_resume() -> None:
    bench, device = synced()
    bench.suspend(device)
    for word in ("idle", "frozen", "check"):
        message(device, word)
    with pytest.raises(TargetError) as refusal:
        message(device, "bogus")
    assert refusal.value.errno == errno.EINVAL
    bench.resume(device)
    assert status(device).split()[4] == "check"


def test_devices_that_are_too_small() -> None:
    assert Bench().refusal(Raid, 16385, "raid1 1 0 2 - 1:0 - 1:1")[1] == "Component device(s) too small"


def test_a_new_raid_becomes_equal() -> None:
    bench = Bench()
    write(bench.disks[0], 0, pattern(1, 0, SIZE))
    device = bench.load("r", (Raid, SIZE, MIRROR))
    assert status(device) == "raid1 2 aa 0/4096 resync 0 0 -"
    assert device.event_nr == 0
    bench.work.advance(60)
    assert status(device) == "raid1 2 AA 4096/4096 idle 0 0 -"
    assert status(device, StatusType.TABLE) == MIRROR
    assert device.event_nr == 1
    assert read(bench.disks[1], 0, SIZE) == pattern(1, 0, SIZE)
    assert superblock(bench, 3).resync_offset == MAX_SECTOR


@pytest.mark.parametrize(("params", "most"), REDUNDANT)
def test_data_survive_the_loss_of_devices(params: str, most: int) -> None:
    """Random writes and reads, with devices failing on the way, against what a plain disk would hold."""
    size = 2 * LONG
    bench, device = synced(params, size)
    random = Random(7)
    model = bytearray(read(device, 0, size))
    for turn in range(60):
        if turn % 20 == 19 and turn // 20 < most:
            legs(bench, params)[turn // 20 * 2 % 3].fail = lambda bio: True
        at = random.randrange(size - 200)
        data = random.randbytes(random.randrange(1, 200) * SECTOR_SIZE)
        write(device, at, data)
        model[at * SECTOR_SIZE : at * SECTOR_SIZE + len(data)] = data
        at = random.randrange(size - 200)
        assert read(device, at, 200) == model[at * SECTOR_SIZE :][: 200 * SECTOR_SIZE]
    assert read(device, 0, size) == model
    assert status(device).split()[2].count("D") == most


@pytest.mark.parametrize(("params", "most"), REDUNDANT)
def test_a_lost_device_is_rebuilt(params: str, most: int) -> None:
    bench, device = synced(params, LONG)
    write(device, 0, pattern(5, 0, LONG))
    first, second = legs(bench, params)[:2]
    first.fail = lambda bio: True
    write(device, 0, pattern(6, 0, LONG))
    assert status(device).split()[2].startswith("D")
    first.fail = lambda bio: False
    bench.load("r", (Raid, LONG, params))  # the superblocks tell that it failed
    assert status(device).split()[2].startswith("aA")
    assert status(device).split()[4] == "recover"
    bench.work.advance(60)
    assert set(status(device).split()[2]) == {"A"}
    second.fail = lambda bio: True
    assert read(device, 0, LONG) == pattern(6, 0, LONG)


def test_a_failed_leg() -> None:
    bench, device = synced()
    bench.disks[1].fail = written
    write(device, 100, pattern(9))
    bench.work.run()
    assert status(device) == "raid1 2 AD 4096/4096 idle 0 0 -"
    assert device.event_nr == 2
    assert superblock(bench, 2).failed == {1}
    assert list(bench.mapper.events.lines)[-2:] == [
        "md/raid1:mdX: Disk failure on ram1, disabling device.",
        "md/raid1:mdX: Operation continuing on 1 devices.",
    ]
    bench.disks[0].fail = written  # the last one is kept
    with pytest.raises(OSError, match="write"):
        write(device, 100, pattern(9))
    assert status(device).split()[2] == "AD"


def test_a_failed_leg_that_can_be_read_again() -> None:
    bench, device = synced()
    bench.disks[1].fail = written
    write(device, 100, pattern(9))
    bench.disks[1].fail = lambda bio: False
    assert bench.suspend(device)
    bench.resume(device)
    assert status(device) == "raid1 2 Aa 0/4096 recover 0 0 -"
    bench.work.advance(60)
    assert status(device) == "raid1 2 AA 4096/4096 idle 0 0 -"
    assert superblock(bench, 2).failed == frozenset()
    assert read(bench.disks[1], 100) == pattern(9)


def test_reads_go_round_a_bad_sector_and_mend_it() -> None:
    bench, device = synced()
    write(device, 0, pattern(3, 0, 8))
    bench.disks[0].fail = reading
    assert read(device, 0, 8) == pattern(3, 0, 8)
    assert status(device).split()[2] == "AA"
    assert (Op.WRITE, 0, 8) in bench.disks[0].log[-2:]
    bench.disks[0].fail = lambda bio: True
    assert read(device, 0, 8) == pattern(3, 0, 8)
    assert status(device).split()[2] == "DA"


def test_write_mostly_devices_are_not_read() -> None:
    bench = Bench()
    device = bench.load("r", (Raid, SIZE, "raid1 4 0 nosync write_mostly 0 2 - 1:0 - 1:1"))
    bench.disks[0].log.clear()
    read(device, 0, 4000)
    assert not bench.disks[0].log


def test_flush_and_discard_reach_all() -> None:
    bench = Bench()
    for disk in bench.disks:
        disk.limits.discard = True
    device = bench.load("r", (Raid, SIZE, MIRROR))
    bench.work.advance(60)
    flush(device)
    discard(device, 8, 8)
    for disk in bench.disks[:2]:
        assert disk.log[-2:] == [(Op.FLUSH, 0, 0), (Op.DISCARD, 8, 8)]


def test_the_bitmap_tells_what_an_unclean_stop_left() -> None:
    bench, device = synced()
    write(device, 640, pattern(4))
    assert dirty(bench, 2) == dirty(bench, 3) == [10]
    write(bench.disks[1], 640, pattern(5))  # as if the second copy had not been written
    write(bench.disks[1], 64, pattern(5))
    crashed = Bench()
    crashed.disks = bench.disks
    device = crashed.load("r", (Raid, SIZE, MIRROR))
    crashed.work.advance(60)
    assert read(bench.disks[1], 640) == pattern(4)
    assert read(bench.disks[1], 64) == pattern(5)  # a clean region is not looked at
    assert crashed.suspend(device)
    assert dirty(bench, 2) == []


def test_a_removal_is_a_clean_stop() -> None:
    bench = Bench()
    device = bench.load("r", (Raid, SIZE, MIRROR))
    write(device, 640, pattern(4))
    bench.work.advance(60)
    bench.remove(device)
    assert dirty(bench, 2) == []
    assert superblock(bench, 2).resync_offset == MAX_SECTOR


def test_nobody_waits_for_metadata_devices_that_are_suspended() -> None:
    bench = Bench()
    meta = bench.load("meta", (Linear, 8192, "1:2 0"))
    params = "raid1 3 0 region_size 64 2 253:0 1:0 1:3 1:1"
    device = bench.load("r", (Raid, SIZE, params))
    bench.work.advance(60)
    assert bench.suspend(device)
    bench.suspend(meta)
    with pytest.raises(TargetError) as refusal:
        bench.resume(device)
    assert refusal.value.errno == errno.EAGAIN
    assert bench.refusal(Raid, SIZE, params)[0] == errno.EAGAIN
    bench.remove(device)


def test_a_write_waits_for_the_bitmap() -> None:
    bench, device = synced()
    bench.disks[2].slow = True
    ended = start(device, Op.WRITE, 0, pattern(1))
    assert not ended
    assert read(bench.disks[0], 0) != pattern(1)
    bench.disks[2].finish()
    assert ended == [0]
    assert read(bench.disks[0], 0) == read(bench.disks[1], 0) == pattern(1)


def test_a_raid10_without_a_whole_chunk_has_nothing_to_make_equal() -> None:
    bench, device = synced(TEN, 8)
    assert status(device) == "raid10 4 AAAA 0/0 idle 0 0 -"
    bench.remove(device)


def test_a_resync_that_is_interrupted_as_it_ends() -> None:
    bench = Bench()
    device = bench.load("r", (Raid, SIZE, MIRROR))
    bench.disks[2].slow = True
    bench.work.advance(60)  # all is equal, and the superblocks are to tell
    suspended = bench.suspend(device)
    bench.disks[2].finish()
    bench.work.run()
    assert suspended
    bench.resume(device)
    bench.work.advance(60)
    assert status(device) == "raid1 2 AA 4096/4096 idle 0 0 -"


def test_an_interrupted_resync_goes_on() -> None:
    bench = Bench()
    device = bench.load("r", (Raid, SIZE, MIRROR))
    bench.work.advance(2048 / 2 / 200000 * 1.5)
    assert status(device) == "raid1 2 aa 2048/4096 resync 0 0 -"
    assert bench.suspend(device)
    assert status(device) == "raid1 2 aa 2048/4096 frozen 0 0 -"
    assert superblock(bench, 2).resync_offset == 2048
    bench.resume(device)
    bench.work.advance(60)
    assert status(device) == "raid1 2 AA 4096/4096 idle 0 0 -"


@pytest.mark.parametrize(("params", "mismatches"), [(MIRROR, 256), (FIVE, 16), (SIX, 16), (TEN, 128)])
def test_check_and_repair(params: str, mismatches: int) -> None:
    """What differs is counted in blocks of 64 KiB, in raid10 not longer than a chunk; under parity, of 4 KiB."""
    bench, device = synced(params, LONG)
    for sector in (0, 1024 + 10):
        write(legs(bench, params)[0], sector, pattern(2))
    message(device, "check")
    assert status(device).split()[4] == "check"
    bench.work.advance(60)
    assert int(status(device).split()[5]) == mismatches
    message(device, "repair")
    bench.work.advance(60)
    message(device, "check")
    bench.work.advance(60)
    assert status(device).split()[5] == "0"


def test_messages() -> None:
    _, device = synced()
    message(device, "frozen")
    assert status(device).split()[4] == "frozen"
    message(device, "check")
    for words, number in ((["repair"], errno.EBUSY), (["bogus"], errno.EBUSY)):
        with pytest.raises(TargetError) as refusal:
            message(device, *words)
        assert refusal.value.errno == number
    message(device, "idle")
    assert status(device).split()[4] == "idle"
    with pytest.raises(TargetError) as refusal:
        message(device, "bogus")
    assert refusal.value.errno == errno.EINVAL


def test_what_is_measured() -> None:
    _, device = synced("raid10_near 3 64 raid10_copies 2 4 1:4 1:0 1:5 1:1 1:6 1:2 1:7 1:3")
    assert device.live is not None
    assert status(device).startswith("raid10 4 AAAA ")
    assert device.live.targets[0].ima_status() == (
        "target_name=raid,target_version=1.15.1,raid_type=raid10,raid_disks=4,raid_state=idle,"
        "raid_device_0_status=A,raid_device_1_status=A,raid_device_2_status=A,raid_device_3_status=A;"
    )


def test_the_speed_limit() -> None:
    bench = Bench()
    device = bench.load("r", (Raid, SIZE, "raid1 3 0 max_recovery_rate 1024 2 1:2 1:0 1:3 1:1"))
    bench.work.advance(1.5)
    assert status(device).split()[3] == "2048/4096"
    bench.work.advance(1)
    assert status(device).split()[3] == "4096/4096"


def test_a_raid_grows() -> None:
    bench, device = synced()
    write(device, 0, pattern(2, 0, SIZE))
    bench.load("r", (Raid, 2 * SIZE, MIRROR))
    assert status(device) == "raid1 2 aa 4096/8192 resync 0 0 -"
    bench.work.advance(60)
    assert status(device) == "raid1 2 AA 8192/8192 idle 0 0 -"
    assert read(device, 0, SIZE) == pattern(2, 0, SIZE)


def test_other_regions_ask_for_no_resync() -> None:
    bench, device = synced()
    bench.load("r", (Raid, SIZE, MIRROR.replace("64", "128")))
    assert status(device) == "raid1 2 AA 4096/4096 idle 0 0 -"
    bench.load("r", (Raid, 2 * SIZE, MIRROR.replace("raid1 3 0 region_size 64", "raid1 4 0 nosync region_size 256")))
    assert status(device) == "raid1 2 AA 8192/8192 idle 0 0 -"


def test_mirrors_come_and_go() -> None:
    bench, device = synced()
    write(device, 0, pattern(2, 0, SIZE))
    bench.load("r", (Raid, SIZE, "raid1 3 0 rebuild 2 3 1:2 1:0 1:3 1:1 1:5 1:4"))
    assert status(device) == "raid1 3 AAa 0/4096 recover 0 0 -"
    bench.work.advance(60)
    assert status(device) == "raid1 3 AAA 4096/4096 idle 0 0 -"
    bench.load("r", (Raid, SIZE, "raid1 1 0 2 1:5 1:4 1:3 1:1"))
    bench.work.advance(60)
    assert status(device) == "raid1 2 AA 4096/4096 idle 0 0 -"
    assert "device-mapper: raid: raid device #2 now at position #0" in bench.mapper.events.lines
    assert read(bench.disks[4], 0, SIZE) == pattern(2, 0, SIZE)


def test_superblocks_that_do_not_fit() -> None:
    bench, device = synced()
    bench.remove(device)
    assert bench.refusal(Raid, SIZE, "raid6_zr 1 64 4 1:2 1:0 1:3 1:1 - 1:4 - 1:5")[1] == "takeover not possible"
    injected = "raid1 1 0 2 1:2 1:0 1:4 1:1"
    assert bench.refusal(Raid, SIZE, injected)[1] == "Unable to assemble array: Invalid superblocks"
    device = bench.load("r", (Raid, SIZE, "raid1 3 0 rebuild 1 2 1:2 1:0 1:4 1:1"))
    assert status(device) == "raid1 2 Aa 0/4096 recover 0 0 -"


def test_what_lies_behind_the_last_whole_chunk() -> None:
    bench = Bench()
    device = bench.load("r", (Raid, 4000, "raid5_ls 2 64 nosync 3 - 1:0 - 1:1 - 1:2"))
    write(device, 3960, pattern(1, 0, 8))
    with pytest.raises(OSError, match="read"):
        read(device, 3992, 8)
