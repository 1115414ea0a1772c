from __future__ import annotations

import errno
import random

import pytest
from support.linux_client import LinuxClient
from support.targets import Bench, FaultyDisk, log, message, pattern, read, start, status
from support.thin import make_pool, write

from dmproto.flags import DmFlag
from dmproto.records import TargetMessage, TargetSpec
from dmserver.io.bio import Bio, Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import StatusType
from dmserver.targets.thin.thin import Thin
from dmserver.targets.thin.thin_pool import ThinPool

BLOCK = 128


def thin(bench: Bench, number: int = 0, size: int = 4096, more: str = "") -> DmDev:
    return bench.load(f"thin{number}", (Thin, size, f"253:0 {number}{more}"))


def later(bench: Bench, device: DmDev, op: Op, sector: int, count: int) -> list[int]:
    """Submit a DISCARD, and let the worker run."""
    ended: list[int] = []
    device.submit_bio(Bio(op, sector, count, None, lambda bio: ended.append(bio.error), bdev=device))
    bench.work.run()
    return ended


def read_soon(bench: Bench, device: DmDev, sector: int, count: int) -> bytes:
    data = bytearray(count * 512)
    ended: list[int] = []
    device.submit_bio(Bio(Op.READ, sector, count, memoryview(data), lambda bio: ended.append(bio.error), bdev=device))
    bench.work.run()
    assert ended == [0]
    return bytes(data)


@pytest.mark.parametrize(
    ("params", "number", "text"),
    [
        ("253:0", errno.EINVAL, "Invalid argument count"),
        ("77:7 0", errno.ENXIO, "Error opening pool device"),
        ("253:0 0 77:7", errno.ENXIO, "Error opening origin device"),
        ("253:0 16777216", errno.EINVAL, "Invalid device id"),
        ("1:0 0", errno.EINVAL, "Couldn't get pool mapped device"),
        ("253:0 0 253:0", errno.EINVAL, "Error setting origin device"),
        ("253:1 0", errno.EINVAL, "Couldn't find pool object"),
        ("253:0 9", errno.ENODATA, "Couldn't open thin internal device"),
    ],
)
def test_refusals(params: str, number: int, text: str) -> None:
    bench = Bench()
    make_pool(bench)
    thin(bench)
    assert bench.refusal(Thin, 128, params) == (number, text)


def test_a_suspended_pool_lets_no_device_begin() -> None:
    bench = Bench()
    pool = make_pool(bench)
    bench.suspend(pool)
    assert bench.refusal(Thin, 128, "253:0 0")[1] == "Unable to activate thin device while pool is suspended"


def test_the_devices_of_a_suspended_pool_are_suspended_internally() -> None:
    client = LinuxClient()
    client.device("pool", (TargetSpec(start=0, length=16384, type="thin-pool", params="1:0 1:1 128 0"),))
    client.ok("TARGET_MSG", TargetMessage(sector=0, message="create_thin 0"), name="pool")
    table = (TargetSpec(start=0, length=128, type="thin", params="253:0 0"),)
    for name in ("kept", "cleared"):
        client.device(name, table) if name == "kept" else client.ok("DEV_CREATE", name=name)

    def suspended() -> list[DmFlag]:
        flags = [client.ok("DEV_STATUS", name=name).header.flags for name in ("kept", "cleared")]
        return [each & DmFlag.INTERNAL_SUSPEND for each in flags]

    client.ok("TABLE_LOAD", table, name="cleared")
    client.ok("DEV_SUSPEND", name="pool", flags=DmFlag.SUSPEND)
    assert suspended() == [DmFlag.INTERNAL_SUSPEND] * 2
    client.ok("TABLE_CLEAR", name="cleared")
    client.ok("DEV_SUSPEND", name="pool")
    assert not any(suspended())
    client.control.mapper.work.close()  # type: ignore[attr-defined]  # it is a ThreadWork


def test_new_blocks_are_zeroed_unless_that_is_skipped() -> None:
    for params, rest in (("1:1 1:2 128 0", bytes(512)), ("1:1 1:2 128 0 1 skip_block_zeroing", b"x" * 512)):
        bench = Bench()
        bench.disks[2].open()
        bench.disks[2].write_from(memoryview(b"x" * 65536), 0)
        make_pool(bench, params)
        device = thin(bench)
        write(bench, device, 3, pattern(1, 3))
        assert read(device, 3) == pattern(1, 3)
        assert read(device, 4) == rest


def test_a_write_of_a_whole_block_is_all_that_is_written() -> None:
    bench = Bench()
    make_pool(bench)
    device = thin(bench)
    bench.disks[2].log.clear()
    write(bench, device, BLOCK, pattern(1, BLOCK, BLOCK))
    assert bench.disks[2].log == [(Op.WRITE, 0, BLOCK)]
    assert read(device, BLOCK, BLOCK) == pattern(1, BLOCK, BLOCK)


def test_bios_for_a_block_that_is_prepared_wait_in_order() -> None:
    bench = Bench()
    make_pool(bench)
    device = thin(bench)
    bench.disks[2].slow = True
    first = start(device, Op.WRITE, 0, pattern(1))
    second = start(device, Op.WRITE, 0, pattern(2))
    bench.work.run()
    bench.disks[2].finish()
    bench.work.run()
    assert (first, second) == ([0], [0])
    assert read(device, 0) == pattern(2)
    assert status(device) == "128 127"


@pytest.mark.parametrize("seed", range(3))
def test_devices_and_snapshots_hold_what_was_written(seed: int) -> None:
    """Each is a list of sectors, whatever blocks it shares; also after the pool was closed and opened."""
    dice = random.Random(seed)
    bench = Bench()
    pool = make_pool(bench, blocks=100)
    sectors = 8 * BLOCK
    devices = {0: thin(bench, 0, sectors)}
    expected = {0: bytearray(sectors * 512)}
    for turn in range(120):
        number = dice.choice(list(devices))
        device, sector = devices[number], dice.randrange(sectors - 4)
        what = dice.random()
        if what < 0.6:
            data = pattern(turn + 1, sector, 4)
            write(bench, device, sector, data)
            expected[number][sector * 512 : (sector + 4) * 512] = data
        elif what < 0.7:
            block = sector // BLOCK
            assert later(bench, device, Op.DISCARD, block * BLOCK, BLOCK) == [0]
            expected[number][block * 65536 : (block + 1) * 65536] = bytes(65536)
        elif what < 0.8 and len(devices) < 5:
            new = len(devices)
            bench.suspend(device)
            message(pool, f"create_snap {new} {number}")
            bench.resume(device)
            devices[new] = thin(bench, new, sectors)
            expected[new] = bytearray(expected[number])
        elif what < 0.85:
            bench.work.advance(2)
        elif what < 0.88:
            for each in devices.values():
                bench.remove(each)
            bench.remove(pool)
            pool = make_pool(bench, blocks=100, devices=())
            devices = {each: thin(bench, each, sectors) for each in devices}
        for each, other in devices.items():
            assert read_soon(bench, other, 0, sectors) == expected[each]


def test_a_flush_commits_first() -> None:
    bench = Bench()
    make_pool(bench)
    device = thin(bench)
    write(bench, device, 0, pattern(1))
    bench.disks[1].log.clear()
    bench.disks[2].log.clear()
    assert later(bench, device, Op.FLUSH, 0, 0) == [0]
    assert bench.disks[1].log[-2:] == [(Op.FLUSH, 0, 0), (Op.WRITE, 0, 8)]
    assert bench.disks[2].log == [(Op.FLUSH, 0, 0)] * 2
    bench.disks[1].log.clear()
    assert later(bench, device, Op.FLUSH, 0, 0) == [0]
    assert not bench.disks[1].log


def test_changes_are_committed_after_a_second() -> None:
    bench = Bench()
    make_pool(bench)
    device = thin(bench)
    bench.disks[1].log.clear()
    write(bench, device, 0, pattern(1))
    assert not bench.disks[1].log
    bench.work.advance(1)
    assert (Op.WRITE, 0, 8) in bench.disks[1].log


def test_a_flush_whose_commit_fails() -> None:
    bench = Bench()
    make_pool(bench)
    device = thin(bench)
    write(bench, device, 0, pattern(1))
    bench.disks[1].fail = lambda bio: bio.op is Op.WRITE
    assert later(bench, device, Op.FLUSH, 0, 0) == [errno.EIO]


def test_a_copy_that_fails_maps_nothing() -> None:
    bench = Bench()
    make_pool(bench)
    device = thin(bench)
    bench.disks[2].fail = lambda bio: bio.op is Op.WRITE
    with pytest.raises(OSError, match="Errno 5"):
        write(bench, device, 0, pattern(1))
    assert status(device) == "0 -"


# -- space ----------------------------------------------------------------------------------------------


def full(params: str = "1:1 1:2 128 1") -> tuple[Bench, DmDev, DmDev]:
    """A pool of two blocks, both in use."""
    bench = Bench()
    pool = make_pool(bench, params, blocks=2)
    device = thin(bench)
    for sector in (0, BLOCK):
        write(bench, device, sector, pattern(1, sector))
    return bench, pool, device


def test_low_water_and_no_space() -> None:
    bench, pool, device = full()
    low = "device-mapper: thin: 253:0: reached low water mark for data device: sending event."
    assert (log(bench)[-1], pool.event_nr) == (low, 1)
    ended = start(device, Op.WRITE, 2 * BLOCK, pattern(1))
    bench.work.run()
    assert not ended
    assert log(bench)[-1] == "device-mapper: thin: 253:0: switching pool to out-of-data-space (queue IO) mode"
    assert pool.event_nr == 2
    assert " 2/2 - out_of_data_space no_discard_passdown queue_if_no_space " in status(pool)
    assert read(device, 0) == pattern(1)
    bench.load("pool", (ThinPool, 3 * BLOCK, "1:1 1:2 128 1"))
    bench.work.run()
    assert ended == [0]
    assert read(device, 2 * BLOCK) == pattern(1)


def test_after_a_minute_without_space_bios_fail() -> None:
    bench, _, device = full()
    ended = start(device, Op.WRITE, 2 * BLOCK, pattern(1))
    bench.work.advance(59)
    assert not ended
    bench.work.advance(1)
    assert ended == [errno.ENOSPC]
    assert log(bench)[-1] == "device-mapper: thin: 253:0: switching pool to out-of-data-space (error IO) mode"


def test_error_if_no_space() -> None:
    bench, pool, device = full("1:1 1:2 128 0 1 error_if_no_space")
    with pytest.raises(OSError, match="Errno 28"):
        write(bench, device, 2 * BLOCK, pattern(1))
    assert " out_of_data_space no_discard_passdown error_if_no_space " in status(pool)


def test_a_discard_makes_room() -> None:
    bench, pool, device = full()
    ended = start(device, Op.WRITE, 2 * BLOCK, pattern(1))
    bench.work.run()
    assert later(bench, device, Op.DISCARD, 0, BLOCK) == [0]
    bench.work.advance(1)
    assert ended == [0]
    assert " 2/2 - rw " in status(pool)
    assert read_soon(bench, device, 0, 1) == bytes(512)


def test_a_status_without_flush_does_not_commit() -> None:
    bench, pool, device = full()
    assert pool.live is not None
    (target,) = pool.live.targets
    assert later(bench, device, Op.DISCARD, 0, BLOCK) == [0]
    assert " 2/2 - " in target.status(StatusType.INFO)
    assert " 1/2 - " in status(pool)


def test_a_suspension_without_flush_takes_bios_back() -> None:
    bench, pool, device = full()
    ended = start(device, Op.WRITE, 2 * BLOCK, pattern(1))
    bench.work.run()
    assert bench.suspend(device, noflush=True) == [True]
    assert not ended
    bench.suspend(pool)
    bench.load("pool", (ThinPool, 3 * BLOCK, "1:1 1:2 128 1"))
    bench.resume(device)
    bench.work.run()
    assert ended == [0]


def test_bios_wait_while_the_pool_is_suspended() -> None:
    bench, pool, device = full()
    bench.suspend(pool)
    ended = start(device, Op.READ, 0, bytes(512))
    bench.work.run()
    assert not ended
    bench.resume(pool)
    bench.work.run()
    assert ended == [0]


def test_a_freed_block_is_not_used_again_before_those_who_read_it_are_done() -> None:
    bench = Bench()
    make_pool(bench, blocks=2)
    device = thin(bench)
    write(bench, device, 0, pattern(1))
    bench.disks[2].slow = True
    slow = start(device, Op.READ, 0, bytes(512))
    (held,), bench.disks[2].held, bench.disks[2].slow = bench.disks[2].held, [], False
    assert later(bench, device, Op.DISCARD, 0, BLOCK) == [0]
    bench.work.advance(1)
    for sector in (0, BLOCK):
        start(device, Op.WRITE, sector, pattern(2))
        bench.work.run()
        if not slow:
            bench.disks[2].submit_bio(held)
            assert held.data is not None
            assert held.data.tobytes() == pattern(1)
            bench.work.advance(1)
    assert slow == [0]
    assert status(device) == "256 255"


# -- discards -------------------------------------------------------------------------------------------


class Discarding(FaultyDisk):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.limits.discard = True


def test_discards_are_passed_down_but_for_what_is_shared() -> None:
    bench = Bench()
    bench.disks[2] = Discarding(2)
    pool = make_pool(bench)
    assert " discard_passdown " in status(pool)
    device = thin(bench)
    for sector in (0, BLOCK):
        write(bench, device, sector, pattern(1))
    message(pool, "create_snap 1 0")
    write(bench, device, 0, pattern(2))
    bench.disks[2].log.clear()
    assert later(bench, device, Op.DISCARD, 0, 2 * BLOCK) == [0]
    assert [entry for entry in bench.disks[2].log if entry[0] is Op.DISCARD] == [(Op.DISCARD, 2 * BLOCK, BLOCK)]
    assert " 2/64 " in status(pool)
    assert read_soon(bench, thin(bench, 1), 0, 1) == pattern(1)


def test_parts_of_blocks_are_not_unmapped() -> None:
    bench = Bench()
    make_pool(bench)
    device = thin(bench)
    write(bench, device, 0, pattern(1))
    assert later(bench, device, Op.DISCARD, 1, 2 * BLOCK - 1) == [0]
    assert read(device, 0) == pattern(1)


def test_a_pool_that_ignores_discards() -> None:
    bench = Bench()
    make_pool(bench, "1:1 1:2 128 0 1 ignore_discard")
    assert later(bench, thin(bench), Op.DISCARD, 0, BLOCK) == [errno.EOPNOTSUPP]


# -- the external origin --------------------------------------------------------------------------------


def test_an_external_origin_that_ends_within_a_block() -> None:
    bench = Bench()
    origin = bench.disks[3] = FaultyDisk(3, "100K")
    origin.open()
    origin.write_from(memoryview(pattern(3, 0, 200)), 0)
    make_pool(bench)
    device = thin(bench, more=" 1:3")
    assert read_soon(bench, device, 198, 4) == pattern(3, 198, 2) + bytes(1024)
    assert read_soon(bench, device, 300, 1) == bytes(512)
    write(bench, device, 130, pattern(4, 130))
    assert read(device, 128, 128) == pattern(3, 128, 2) + pattern(4, 130) + pattern(3, 131, 69) + bytes(56 * 512)
    write(bench, device, 256, pattern(4, 256))
    assert read(device, 256, 2) == pattern(4, 256) + bytes(512)
    assert read_soon(bench, device, 0, 128) == pattern(3, 0, 128)
