from __future__ import annotations

import pytest
from support.targets import Bench, message, pattern, read, status, write

from dmserver.model.dm_dev import DmDev
from dmserver.targets.raid.params import TYPES
from dmserver.targets.raid.personality import Shape
from dmserver.targets.raid.raid import Raid
from dmserver.targets.raid.takeover import can_take_over

#: Whole chunks of two, three and four devices.
SIZE = 1536


def disks(*numbers: int) -> str:
    """The devices of a table: metadata on 1:5 and on, data on 1:0 and on."""
    return f"{len(numbers)} " + " ".join(f"1:{5 + number} 1:{number}" for number in numbers)


def converted(first: str, second: str) -> tuple[Bench, DmDev]:
    """A raid with a pattern on it, and another table over it."""
    bench = Bench()
    device = bench.load("r", (Raid, SIZE, first))
    bench.work.advance(60)
    write(device, 0, pattern(1, 0, SIZE))
    bench.load("r", (Raid, SIZE, second))
    return bench, device


def shape(name: str, devices: int, layout: int | None = None) -> Shape:
    kind = TYPES[name]
    return Shape(kind.level, kind.algorithm if layout is None else layout, 0 if kind.level == 1 else 64, devices)


@pytest.mark.parametrize(
    ("first", "second", "health"),
    [
        (f"raid0 1 64 {disks(0, 1)}", f"raid5_n 3 64 rebuild 2 {disks(0, 1, 2)}", "AAa"),
        (f"raid0 1 64 {disks(0, 1)}", f"raid6_n_6 5 64 rebuild 2 rebuild 3 {disks(0, 1, 2, 3)}", "AAaa"),
        (f"raid0 1 64 {disks(0, 1)}", f"raid10 5 64 rebuild 1 rebuild 3 {disks(0, 2, 1, 3)}", "AaAa"),
        (f"raid5_n 1 64 {disks(0, 1, 2)}", f"raid0 1 64 {disks(0, 1)}", "AA"),
        (f"raid5_n 1 64 {disks(0, 1, 2)}", f"raid6_n_6 3 64 rebuild 3 {disks(0, 1, 2, 3)}", "AAAa"),
        (f"raid5_ls 1 64 {disks(0, 1, 2)}", f"raid6_ls_6 3 64 rebuild 3 {disks(0, 1, 2, 3)}", "AAAa"),
        (f"raid6_ra_6 1 64 {disks(0, 1, 2, 3)}", f"raid5_ra 1 64 {disks(0, 1, 2)}", "AAA"),
        (f"raid6_n_6 1 64 {disks(0, 1, 2, 3)}", f"raid0 1 64 {disks(0, 1)}", "AA"),
        (f"raid1 1 0 {disks(0, 1)}", f"raid5_n 1 64 {disks(0, 1)}", "AA"),
        (f"raid5_n 1 64 {disks(0, 1)}", f"raid1 1 0 {disks(0, 1)}", "AA"),
        (f"raid1 1 0 {disks(0, 1)}", f"raid10 1 64 {disks(0, 1)}", "AA"),
        (f"raid10 1 64 {disks(0, 1)}", f"raid1 1 0 {disks(0, 1)}", "AA"),
        (f"raid10 1 64 {disks(0, 1)}", f"raid5_n 1 64 {disks(0, 1)}", "AA"),
        (f"raid10 1 64 {disks(0, 1, 2, 3)}", f"raid0 1 64 {disks(0, 2)}", "AA"),
        (f"raid1 1 0 {disks(0, 1)}", f"raid1 3 0 rebuild 2 {disks(0, 1, 2)}", "AAa"),
    ],
)
def test_another_level_takes_over(first: str, second: str, health: str) -> None:
    bench, device = converted(first, second)
    assert status(device).split()[0] == second.split()[0]
    assert status(device).split()[2] == health
    assert read(device, 0, SIZE) == pattern(1, 0, SIZE)
    write(device, 64, pattern(2, 64, 256))
    bench.work.advance(60)
    assert set(status(device).split()[2]) == {"A"}
    expected = pattern(1, 0, 64) + pattern(2, 64, 256) + pattern(1, 320, SIZE - 320)
    assert read(device, 0, SIZE) == expected
    if not second.startswith("raid0"):
        message(device, "check")
        bench.work.advance(60)
        assert status(device).split()[5] == "0"
        bench.disks[0].fail = lambda bio: True
        assert read(device, 0, SIZE) == expected


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        (shape("raid0", 2), shape("raid5_ls", 3)),
        (shape("raid0", 2), shape("raid1", 2)),
        (shape("raid0", 2), shape("raid10", 3, 0x102)),
        (shape("raid1", 3), shape("raid5_n", 3)),
        (shape("raid1", 2), shape("raid6_n_6", 4)),
        (shape("raid5_ls", 3), shape("raid1", 3)),
        (shape("raid5_ls", 3), shape("raid6_zr", 4)),
        (shape("raid5_ls", 2), shape("raid10", 2, 0x102)),
        (shape("raid6_zr", 4), shape("raid5_n", 3)),
        (shape("raid6_n_6", 4), shape("raid10", 4, 0x102)),
        (shape("raid10", 4, 0x102), shape("raid1", 4)),
        (shape("raid10", 4, 0x102), shape("raid5_n", 4)),
        (shape("raid10_offset", 2, 0x10201), shape("raid1", 2)),
    ],
)
def test_what_cannot_be_taken_over(now: Shape, wanted: Shape) -> None:
    assert not can_take_over(now, wanted)


def test_a_takeover_is_refused() -> None:
    bench = Bench()
    device = bench.load("r", (Raid, SIZE, f"raid5_ls 1 64 {disks(0, 1, 2)}"))
    assert bench.refusal(Raid, SIZE, f"raid6_ls_6 3 64 rebuild 3 {disks(0, 1, 2, 3)}")[1] == "takeover not possible"
    bench.work.advance(60)
    bench.remove(device)
    assert bench.refusal(Raid, SIZE, f"raid6_zr 3 64 rebuild 3 {disks(0, 1, 2, 3)}")[1] == "takeover not possible"
    reordered = f"raid6_ls_6 3 64 rebuild 3 {disks(1, 0, 2, 3)}"
    assert bench.refusal(Raid, SIZE, reordered)[1] == "Cannot change device positions in raid set"
