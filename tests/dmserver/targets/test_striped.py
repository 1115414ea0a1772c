from __future__ import annotations

import errno

import pytest
from support.targets import Bench, discard, flush, pattern, read, start, status, write

from dmserver.io.bio import Op
from dmserver.model.dm_target import StatusType
from dmserver.targets.striped import Striped


@pytest.mark.parametrize(
    ("length", "params", "message"),
    [
        (64, "2", "Not enough arguments"),
        (64, "0 8 1:0 0", "Invalid stripe count"),
        (64, "x 8 1:0 0", "Invalid stripe count"),
        (64, "0x2 8 1:0 0 1:1 0", "Invalid stripe count"),
        (64, "2 0 1:0 0 1:1 0", "Invalid chunk_size"),
        (64, "2 4294967296 1:0 0 1:1 0", "Invalid chunk_size"),
        (65, "2 8 1:0 0 1:1 0", "Target length not divisible by number of stripes"),
        (66, "2 8 1:0 0 1:1 0", "Target length not divisible by chunk size"),
        (64, "2 8 1:0 0", "Not enough destinations specified"),
        (64, "2 8 1:0 0 1:1 0 1:2 0", "Not enough destinations specified"),
        (64, "2 8 1:0 0 1:1 x", "Couldn't parse stripe destination"),
    ],
)
def test_refusals(length: int, params: str, message: str) -> None:
    assert Bench().refusal(Striped, length, params) == (errno.EINVAL, message)


def test_a_missing_device_is_told_with_its_errno() -> None:
    assert Bench().refusal(Striped, 64, "2 8 1:0 0 9:9 0") == (errno.ENXIO, "Couldn't parse stripe destination")


def test_chunks_take_turns() -> None:
    bench = Bench()
    device = bench.load("d", (Striped, 84, "3 7 1:0 100 1:1 200 1:2 300"))
    write(device, 0, pattern(1, 0, 84))
    for number, start_sector in enumerate((100, 200, 300)):
        chunks = b"".join(pattern(1, 7 * (3 * row + number), 7) for row in range(4))
        assert read(bench.disks[number], start_sector, 28) == chunks
    assert read(device, 5, 40) == pattern(1, 5, 40)
    assert status(device, StatusType.TABLE) == "3 7 1:0 100 1:1 200 1:2 300"
    assert status(device) == "3 1:0 1:1 1:2 1 AAA"


def test_flushes_go_everywhere_and_discards_where_the_range_lies() -> None:
    bench = Bench()
    for disk in bench.disks:
        disk.limits.discard = True
    device = bench.load("d", (Striped, 64, "2 8 1:0 0 1:1 100"))
    flush(device)
    discard(device, 4, 24)  # 4 of the first chunk, the next two, 4 of the fourth
    assert bench.disks[0].log == [(Op.FLUSH, 0, 0), (Op.DISCARD, 4, 12)]
    assert bench.disks[1].log == [(Op.FLUSH, 0, 0), (Op.DISCARD, 100, 12)]
    discard(device, 0, 8)
    assert bench.disks[0].log[-1] == (Op.DISCARD, 0, 8)
    assert len(bench.disks[1].log) == 2


def test_a_failing_stripe_is_shown_and_announced() -> None:
    bench = Bench()
    device = bench.load("d", (Striped, 64, "2 8 1:0 0 1:1 0"))
    bench.disks[1].fail = lambda bio: True
    assert start(device, Op.WRITE, 8, pattern(1)) == [errno.EIO]
    assert start(device, Op.WRITE, 0, pattern(1)) == [0]
    bench.work.run()
    assert status(device) == "2 1:0 1:1 1 AD"
    assert device.event_nr == 1


def test_limits_tell_of_chunks() -> None:
    device = Bench().load("d", (Striped, 64, "2 8 1:0 0 1:1 0"))
    assert (device.limits.io_min, device.limits.io_opt) == (8 * 512, 16 * 512)


def test_ima_status() -> None:
    device = Bench().load("d", (Striped, 64, "2 8 1:0 0 1:1 16"))
    assert device.live is not None
    assert device.live.targets[0].ima_status() == (
        "target_name=striped,target_version=1.6.0,stripes=2,chunk_size=8"
        ",stripe_0_device_name=1:0,stripe_0_physical_start=0,stripe_0_status=A"
        ",stripe_1_device_name=1:1,stripe_1_physical_start=16,stripe_1_status=A;"
    )
