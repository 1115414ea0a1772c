from __future__ import annotations

import errno
from pathlib import Path

import pytest
from support.constructors import replay
from support.targets import Bench, FaultyDisk, log, message, status
from support.thin import POOL, make_pool, thin_tool, write

from dmserver.io.bio import Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import StatusType, TargetError
from dmserver.targets.linear import Linear
from dmserver.targets.thin.thin import Thin
from dmserver.targets.thin.thin_pool import ThinPool


def test_recorded_constructors() -> None:
    assert replay(Bench(), ThinPool, "t_thin") == 23


def test_words_that_no_feature_has() -> None:
    complaint = (errno.EINVAL, "Unrecognised pool feature requested")
    assert Bench().refusal(ThinPool, 8192, "1:1 1:2 128 0 1 bogus") == complaint


def test_pools_do_not_share_devices() -> None:
    bench = Bench()
    bench.load("pool", (ThinPool, 8192, "1:1 1:2 128 0"))
    assert bench.refusal(ThinPool, 8192, "1:1 1:3 128 0") == (errno.EBUSY, "metadata device already in use by a pool")
    pool = bench.mapper.by_name("pool")
    assert pool
    with pytest.raises(TargetError, match="data device already in use by a pool"):
        bench.table(pool, (ThinPool, 8192, "1:1 1:3 128 0"))
    with pytest.raises(TargetError, match="different pool cannot replace a pool"):
        bench.table(pool, (ThinPool, 8192, "1:4 1:2 128 0"))
    with pytest.raises(TargetError, match="Discard support cannot be disabled once enabled"):
        bench.table(pool, (ThinPool, 8192, "1:1 1:2 128 0 1 ignore_discard"))


def test_metadata_stay_when_the_pool_goes(tmp_path: Path) -> None:
    bench = Bench()
    pool = make_pool(bench, devices=(3,))
    thin = bench.load("thin", (Thin, 1024, "253:0 3"))
    write(bench, thin, 0, bytes(512))
    message(pool, "set_transaction_id 0 5")
    bench.remove(thin)
    bench.remove(pool)
    (tmp_path / "metadata").write_bytes(read_all(bench, 1))
    thin_tool("thin_check", str(tmp_path / "metadata"))
    dumped = thin_tool("thin_dump", str(tmp_path / "metadata"))
    assert 'transaction="5"' in dumped
    assert 'dev_id="3" mapped_blocks="1"' in dumped
    pool = bench.load("pool", (ThinPool, 8192, POOL))
    assert status(pool).startswith("5 214/2048 1/64 - rw ")


def read_all(bench: Bench, disk: int) -> bytes:
    data = bytearray(bench.disks[disk].bytes)
    assert not bench.disks[disk].read_into(memoryview(data), 0)
    return bytes(data)


@pytest.mark.parametrize(
    ("place", "number", "complaint"),
    [
        (8, errno.ENOTBLK, "sb_check failed: blocknr 1: wanted 0"),
        (32, errno.EILSEQ, "sb_check failed: magic 27022011: wanted 27022010"),
        (4000, errno.EILSEQ, "sb_check failed: csum"),
    ],
)
def test_a_broken_superblock(place: int, number: int, complaint: str) -> None:
    bench = Bench()
    bench.remove(make_pool(bench))
    flip(bench, place)
    assert bench.refusal(ThinPool, 8192, POOL) == (number, "Error creating metadata object")
    assert complaint in log(bench)[-3]
    assert log(bench)[-2:] == [
        "device-mapper: block manager: superblock validator check failed for block 0",
        "device-mapper: thin metadata: couldn't read superblock",
    ]


def test_a_broken_block() -> None:
    bench = Bench()
    bench.remove(make_pool(bench))
    flip(bench, 2 * 4096 + 4000)
    assert bench.refusal(ThinPool, 8192, POOL) == (errno.EILSEQ, "Error creating metadata object")
    assert "check failed: csum" in log(bench)[-1]


def flip(bench: Bench, place: int) -> None:
    """Change a bit of the metadata."""
    disk = bench.disks[1]
    byte = memoryview(bytearray(1))
    disk.open()
    disk.read_into(byte, place)
    byte[0] ^= 1
    disk.write_from(byte, place)


def test_a_metadata_device_that_is_too_large() -> None:
    bench = Bench()
    bench.disks[1] = FaultyDisk(1, "15G")
    make_pool(bench)
    assert not [line for line in log(bench) if "excess" in line]
    bench = Bench()
    bench.disks[1] = FaultyDisk(1, "17G")
    assert status(make_pool(bench)).startswith("0 4360/4161600 ")
    line = "device-mapper: thin: Metadata device ram1 is larger than 33292800 sectors: excess space will not be used."
    assert line in log(bench)


def test_metadata_of_another_block_size() -> None:
    bench = Bench()
    bench.remove(make_pool(bench))
    assert bench.refusal(ThinPool, 8192, "1:1 1:2 256 0") == (errno.EINVAL, "Error creating metadata object")
    line = "device-mapper: thin metadata: changing the data block size (from 128 to 256) is not supported"
    assert log(bench)[-1] == line


def test_growing() -> None:
    bench = Bench()
    bench.load("meta", (Linear, 8192, "1:1 0"))
    pool = bench.load("pool", (ThinPool, 8192, "253:0 1:2 128 0"))
    assert " 213/" not in status(pool)
    bench.suspend(pool)
    bench.load("meta", (Linear, 16384, "1:1 0"))
    bench.load("pool", (ThinPool, 16384, "253:0 1:2 128 0"))
    assert log(bench)[-2:] == [
        "device-mapper: thin: 253:1: growing the data device from 64 to 128 blocks",
        "device-mapper: thin: 253:1: growing the metadata device from 1024 to 2048 blocks",
    ]
    assert status(pool).startswith("0 213/2048 0/128 - rw ")


def test_a_metadata_snapshot_is_shown_and_readable(tmp_path: Path) -> None:
    bench = Bench()
    pool = make_pool(bench)
    thin = bench.load("thin", (Thin, 1024, "253:0 0"))
    write(bench, thin, 0, bytes(512))
    message(pool, "reserve_metadata_snap")
    held = status(pool).split()[3]
    write(bench, thin, 128, bytes(512))
    status(pool)
    (tmp_path / "metadata").write_bytes(read_all(bench, 1))
    assert 'mapped_blocks="2"' in thin_tool("thin_dump", str(tmp_path / "metadata"))
    assert 'mapped_blocks="1"' in thin_tool("thin_dump", f"-m{held}", str(tmp_path / "metadata"))
    message(pool, "release_metadata_snap")
    assert status(pool).split()[3] == "-"


@pytest.mark.parametrize(
    ("text", "number", "line"),
    [
        ("set_transaction_id x 1", errno.EINVAL, "set_transaction_id message: Unrecognised id x."),
        ("set_transaction_id 0 x", errno.EINVAL, "set_transaction_id message: Unrecognised new id x."),
        ("set_transaction_id 1 2", errno.EINVAL, "Failed to change transaction id from 1 to 2."),
        ("create_snap 0 0", errno.EEXIST, "Creation of new snapshot 0 of device 0 failed."),
        ("delete 0", errno.EBUSY, "Deletion of thin device 0 failed."),
    ],
)
def test_messages_that_are_refused(text: str, number: int, line: str) -> None:
    bench = Bench()
    pool = make_pool(bench)
    bench.load("thin", (Thin, 1024, "253:0 0"))
    with pytest.raises(TargetError) as refusal:
        message(pool, text)
    assert refusal.value.errno == number
    assert log(bench)[-1] == f"device-mapper: thin: {line}"


def test_a_read_only_pool() -> None:
    bench = Bench()
    bench.remove(make_pool(bench))
    pool = bench.load("pool", (ThinPool, 8192, "1:1 1:2 128 0 1 read_only"))
    assert status(pool) == "0 214/2048 0/64 - ro no_discard_passdown queue_if_no_space - 512 "
    assert status(pool, StatusType.TABLE) == "1:1 1:2 128 0 1 read_only "
    with pytest.raises(TargetError) as refusal:
        message(pool, "create_thin 9")
    assert refusal.value.errno == errno.EOPNOTSUPP
    thin = bench.load("thin", (Thin, 1024, "253:0 0"))
    with pytest.raises(OSError, match="Errno 5"):
        write(bench, thin, 0, bytes(512))


def test_a_read_only_pool_formats_nothing() -> None:
    refusal = (errno.EPERM, "Error creating metadata object")
    assert Bench().refusal(ThinPool, 8192, "1:1 1:2 128 0 1 read_only") == refusal


def test_a_commit_that_fails() -> None:
    """What was not committed is lost; the pool is read-only until it was checked."""
    bench = Bench()
    pool = make_pool(bench)
    thin = bench.load("thin", (Thin, 1024, "253:0 0"))
    write(bench, thin, 0, bytes(512))
    status(pool)
    write(bench, thin, 128, bytes(512))
    bench.disks[1].fail = lambda bio: bio.op is Op.WRITE and bio.sector != 0
    assert status(pool) == "0 214/2048 1/64 - ro no_discard_passdown queue_if_no_space needs_check 512 "
    assert log(bench)[-3:] == [
        "device-mapper: thin: 253:0: metadata operation 'dm_pool_commit_metadata' failed: error = -5",
        "device-mapper: thin: 253:0: aborting current metadata transaction",
        "device-mapper: thin: 253:0: switching pool to read-only mode",
    ]
    assert status(thin) == "128 127"
    bench.disks[1].fail = lambda bio: False
    bench.remove(thin)
    bench.remove(pool)
    pool = bench.load("pool", (ThinPool, 8192, POOL))
    assert "device-mapper: thin: 253:0: unable to switch pool to write mode until repaired." in log(bench)
    assert " ro no_discard_passdown queue_if_no_space needs_check " in status(pool)


def test_a_pool_whose_superblock_cannot_be_written_fails() -> None:
    bench = Bench()
    pool = make_pool(bench)
    thin = bench.load("thin", (Thin, 1024, "253:0 0"))
    write(bench, thin, 0, bytes(512))
    bench.disks[1].fail = lambda bio: bio.op is Op.WRITE
    status(pool)
    assert log(bench)[-2:] == [
        "device-mapper: thin: 253:0: failed to set 'needs_check' flag in metadata",
        "device-mapper: thin: 253:0: switching pool to fail mode",
    ]
    assert [status(pool), status(thin)] == ["Fail", "Fail"]
    assert bench.refusal(Thin, 1024, "253:0 0")[1] == "Couldn't open thin device, Pool is in fail mode"
    with pytest.raises(OSError, match="Errno 5"):
        write(bench, thin, 0, bytes(512))


def test_a_status_finds_out_that_the_metadata_device_is_gone() -> None:
    bench = Bench()
    pool = make_pool(bench)
    thin = bench.load("thin", (Thin, 1024, "253:0 0"))
    status(pool)
    bench.disks[1].fail = lambda bio: True
    assert pool.live
    assert pool.live.targets[0].status(StatusType.INFO).startswith("0 214/2048 ")
    assert [status(pool), status(thin)] == ["Fail", "Fail"]


def create(pool: DmDev, devices: range) -> None:
    for number in devices:
        message(pool, f"create_thin {number}")


def test_metadata_run_low_and_out() -> None:
    bench = Bench()
    bench.load("meta", (Linear, 400, "1:1 0"))
    pool = bench.load("pool", (ThinPool, 8192, "253:0 1:2 128 0"))
    assert status(pool).startswith("0 14/50 0/64 ")
    low = "device-mapper: thin: 253:1: reached low water mark for metadata device: sending event."
    create(pool, range(28))
    assert (log(bench).count(low), pool.event_nr) == (1, 1)
    with pytest.raises(TargetError):
        create(pool, range(28, 60))
    assert log(bench)[-2] == "device-mapper: thin: 253:1: switching pool to read-only mode"
    assert " ro " in status(pool)
    bench.suspend(pool)
    bench.load("meta", (Linear, 800, "1:1 0"))
    bench.load("pool", (ThinPool, 8192, "253:0 1:2 128 0"))
    assert "/100 0/64 - rw " in status(pool)
    message(pool, "create_thin 60")


def test_metadata_on_a_suspended_device_hold_nobody_up() -> None:
    bench = Bench()
    meta = bench.load("meta", (Linear, 16384, "1:1 0"))
    pool = bench.load("pool", (ThinPool, 8192, "253:0 1:2 128 0"))
    bench.suspend(meta)
    message(pool, "create_thin 0")
    assert " 0/64 - rw " in status(pool)
    with pytest.raises(TargetError) as refusal:
        message(pool, "create_thin 1")
    assert refusal.value.errno == errno.EAGAIN
    assert not bench.suspend(pool)
    bench.resume(meta)
    assert pool.io.in_flight == 0
    message(pool, "create_thin 1")
    assert status(pool).startswith("0 215/2048 0/64 - rw ")
