from __future__ import annotations

import errno

import pytest
from support.constructors import replay
from support.targets import Bench, flush, pattern, read, status, write

from dmserver.model.dm_target import StatusType
from dmserver.targets.flakey import REQ_FUA, Flakey


def test_recorded_constructors() -> None:
    assert replay(Bench(), Flakey, "t_delay_flakey_constructors") == 13


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("1:0 0 0 0", "Total (up + down) interval is zero"),
        ("1:0 0 4294967295 2", "Interval overflow"),
        ("1:0 0 1 1 2 drop_writes drop_writes", "Feature drop_writes duplicated"),
        ("1:0 0 1 1 2 corrupt_bio_byte 1 r 1 0", "Insufficient feature arguments"),
        ("1:0 0 1 1 3 corrupt_bio_byte 1 r 1 0 drop_writes", "Insufficient feature arguments"),
        ("1:0 0 1 1 1 corrupt_bio_byte", "Feature corrupt_bio_byte requires parameters"),
        ("1:0 0 1 1 1 bogus", "Unrecognised flakey feature requested"),
        ("1:0 0 1 1 5 corrupt_bio_byte 1 w 256 0", "Invalid corrupt value to write into bio byte (0-255)"),
        (
            "1:0 0 1 1 6 error_writes corrupt_bio_byte 1 w 1 0",
            "error_writes is incompatible with corrupt_bio_byte with the WRITE flag set",
        ),
    ],
)
def test_refusals(params: str, message: str) -> None:
    assert Bench().refusal(Flakey, 64, params) == (errno.EINVAL, message)


def test_intervals_follow_the_clock() -> None:
    bench = Bench()
    device = bench.load("f", (Flakey, 64, "1:0 8 2 3"))
    for second in range(12):
        if second % 5 < 2:
            write(device, 0, pattern(second))
            assert read(bench.disks[0], 8) == pattern(second)
        else:
            with pytest.raises(OSError, match="5"):
                read(device, 0)
            with pytest.raises(OSError, match="5"):
                flush(device)
        bench.work.advance(1)


def test_drop_writes() -> None:
    bench = Bench()
    device = bench.load("f", (Flakey, 64, "1:0 8 0 1 1 drop_writes"))
    write(device, 0, pattern(1))
    assert read(device, 0) == bytes(512)


def test_error_writes() -> None:
    bench = Bench()
    device = bench.load("f", (Flakey, 64, "1:0 8 0 1 1 error_writes"))
    with pytest.raises(OSError, match="5"):
        write(device, 0, pattern(1))
    assert read(device, 0) == bytes(512)


@pytest.mark.parametrize("direction", ["r", "w"])
def test_corrupt_bio_byte(direction: str) -> None:
    bench = Bench()
    device = bench.load("f", (Flakey, 64, f"1:0 8 0 1 5 corrupt_bio_byte 100 {direction} 165 0"))
    data = pattern(1)
    write(device, 0, data)
    bad = data[:99] + b"\xa5" + data[100:]
    assert read(device, 0) == bad
    assert read(bench.disks[0], 8) == (bad if direction == "w" else data)
    assert data == pattern(1)
    assert status(device, StatusType.TABLE) == f"1:0 8 0 1 5 corrupt_bio_byte 100 {direction} 165 0 "


def test_corruption_asks_for_flags() -> None:
    bench = Bench()
    device = bench.load("f", (Flakey, 64, f"1:0 8 0 1 5 corrupt_bio_byte 1 w 165 {REQ_FUA}"))
    write(device, 0, pattern(1))
    assert read(device, 0)[0] == 0
    write(device, 0, pattern(1), fua=True)
    assert read(device, 0)[0] == 165
