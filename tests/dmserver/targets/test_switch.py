from __future__ import annotations

import pytest
from support.constructors import replay
from support.targets import Bench, pattern, read, write

from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import TargetError
from dmserver.targets.switch import Switch


def test_recorded_constructors() -> None:
    assert replay(Bench(), Switch, "t_multi_switch_constructors") == 10


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def device(bench: Bench) -> DmDev:
    """Ten regions of 8 sectors, the last one cut short, on three paths that each hold a pattern of their own."""
    for number in range(3):
        write(bench.disks[number], 0, pattern(number, 0, 80))
    return bench.load("d", (Switch, 78, "3 8 0 1:0 0 1:1 0 1:2 0"))


def paths(device: DmDev) -> list[int]:
    """Which disk each region is read from."""
    return [read(device, 8 * region)[7] for region in range(10)]


def send(device: DmDev, text: str) -> None:
    assert device.live is not None
    assert device.live.targets[0].message(text.split()) is None


def test_regions_take_turns_at_first(device: DmDev) -> None:
    assert paths(device) == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert read(device, 4, 8) == pattern(0, 4, 4) + pattern(1, 8, 4)


def test_mappings_name_regions_follow_on_and_repeat(device: DmDev) -> None:
    send(device, "set_region_mappings 0:2 :2 5:1 :0 R2,2")
    assert paths(device) == [2, 2, 2, 0, 1, 1, 0, 1, 0, 0]
    send(device, "SET_REGION_MAPPINGS 9:1")
    assert paths(device)[9] == 1
    send(device, "set_region_mappings 10000000000000009:2")
    assert paths(device)[9] == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("bogus", "Unrecognised message received."),
        ("set_region_mappings 1", "invalid set_region_mappings argument: '1'"),
        ("set_region_mappings 1:", "invalid set_region_mappings argument: '1:'"),
        ("set_region_mappings a:0", "invalid set_region_mappings region number: 10 >= 10"),
        ("set_region_mappings 0:3", "invalid set_region_mappings device: 3 >= 3"),
        ("set_region_mappings R,1", "invalid set_region_mappings argument: 'R,1'"),
        ("set_region_mappings 0:0 R2,1", "invalid set_region_mappings cycle length: 1 > 0"),
        ("set_region_mappings R0,1", "invalid set_region_mappings cycle length: 18446744073709551615 > 0"),
        ("set_region_mappings 9:0 R1,1", "invalid set_region_mappings region number: 9 + 1 >= 10"),
    ],
)
def test_refused_messages(bench: Bench, device: DmDev, text: str, complaint: str) -> None:
    with pytest.raises(TargetError):
        send(device, text)
    assert bench.mapper.events.lines[-1] == f"device-mapper: switch: {complaint}"
