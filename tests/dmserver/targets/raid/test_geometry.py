from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.raid.geometry import RAID10_OFFSET, Copied, Striped, recover, syndromes
from dmserver.targets.raid.params import TYPES
from dmserver.targets.raid.personality import Shape

PARITIES = [kind for kind in TYPES.values() if kind.parity]


@pytest.mark.parametrize("kind", PARITIES, ids=lambda kind: kind.name)
def test_each_device_is_in_a_row_once(kind) -> None:
    for devices in range(kind.parity + 2, 9):
        striped = Striped(devices, 8, kind.parity, kind.algorithm)
        for number in range(2 * devices):
            row = striped.row(number)
            parities = [row.p] if row.q is None else [row.p, row.q]
            assert sorted([*row.data, *parities]) == list(range(devices))


@pytest.mark.parametrize(
    ("name", "devices", "rows"),
    [
        ("raid4", 3, ["P01", "P23", "P45"]),
        ("raid5_n", 3, ["01P", "23P", "45P"]),
        ("raid5_la", 3, ["01P", "2P3", "P45"]),
        ("raid5_ra", 3, ["P01", "2P3", "45P"]),
        ("raid5_ls", 3, ["01P", "3P2", "P45"]),
        ("raid5_rs", 3, ["P01", "3P2", "45P"]),
        ("raid6_zr", 4, ["PQ01", "2PQ3", "45PQ", "Q67P"]),
        ("raid6_nr", 4, ["01PQ", "2PQ3", "PQ45", "Q67P"]),
        ("raid6_nc", 4, ["01QP", "3QP2", "QP45", "P67Q"]),
        ("raid6_ls_6", 4, ["01PQ", "3P2Q", "P45Q"]),
        ("raid6_n_6", 4, ["01PQ", "23PQ"]),
    ],
)
def test_layouts(name: str, devices: int, rows: list[str]) -> None:
    kind = TYPES[name]
    striped = Striped(devices, 8, kind.parity, kind.algorithm)
    for number, expected in enumerate(rows):
        row = striped.row(number)
        letters = {row.p: "P", row.q: "Q"}
        letters |= {device: str(number * striped.data + at) for at, device in enumerate(row.data)}
        assert "".join(letters[device] for device in range(devices)) == expected


@given(st.data(), st.sampled_from(PARITIES), st.integers(3, 8), st.integers(0, 20))
def test_lost_blocks_come_back(data: st.DataObject, kind, devices: int, number: int) -> None:
    striped = Striped(max(devices, kind.parity + 2), 8, kind.parity, kind.algorithm)
    row = striped.row(number)
    blocks = {device: data.draw(st.binary(min_size=16, max_size=16)) for device in row.data}
    blocks |= syndromes(row, blocks)
    for lost in combinations(range(striped.devices), kind.parity):
        assert recover(row, {device: block for device, block in blocks.items() if device not in lost}) == blocks
    too_many = list(row.data)[: kind.parity + 1]
    if len(too_many) > kind.parity:
        assert recover(row, {device: block for device, block in blocks.items() if device not in too_many}) is None


def test_q_is_a_sum_of_powers_of_two() -> None:
    row = Striped(4, 8, 2, 5).row(0)
    assert syndromes(row, {0: b"\x01\x80", 1: b"\x01\x80"}) == {2: b"\0\0", 3: bytes([1 ^ 2, 0x80 ^ 0x1D])}


def test_copies_side_by_side() -> None:
    assert Copied(2, 0, 2).locate(100) == ([(0, 100), (1, 100)], 1 << 63)
    assert Copied(2, 8, 1).locate(11) == ([(1, 3)], 5)
    assert Copied(4, 8, 2).locate(17) == ([(0, 9), (1, 9)], 7)
    assert Copied(3, 8, 2).locate(9) == ([(2, 1), (0, 9)], 7)


FAR, OFFSET, SETS = 1 | 2 << 8, 1 | 2 << 8 | RAID10_OFFSET, 1 << 18


@pytest.mark.parametrize(
    ("layout", "devices", "rows"),
    [
        (2 | 1 << 8, 3, ["001", "122"]),
        (FAR, 3, ["012", "345", "201", "534"]),
        (FAR | SETS, 4, ["0123", "4567", "1032", "5476"]),
        (FAR | SETS, 5, ["01234", "56789", "10423", "65978"]),
        (OFFSET, 3, ["012", "201", "345", "534"]),
        (OFFSET | SETS, 4, ["0123", "1032", "4567", "5476"]),
    ],
)
def test_layouts_of_copies(layout: int, devices: int, rows: list[str]) -> None:
    """Rows of devices, by the number of the chunk that is there."""
    geometry = Copied.of(Shape(10, layout, 8, devices), 8 * len(rows))
    found = [["-"] * devices for _ in rows]
    for number in range(geometry.size(8 * len(rows)) // 8):
        for device, sector in geometry.locate(number * 8)[0]:
            found[sector // 8][device] = str(number)
    assert ["".join(row) for row in found] == rows


@given(
    st.integers(2, 9), st.integers(2, 4), st.sampled_from(["near", "far", "offset"]), st.booleans(), st.integers(4, 40)
)
def test_copies_meet_nowhere(devices: int, copies: int, form: str, sets: bool, rows: int) -> None:
    copies = min(copies, devices)
    layout = copies | 1 << 8 if form == "near" else 1 | copies << 8 | (RAID10_OFFSET if form == "offset" else 0)
    shape = Shape(10, layout | (SETS if sets and form != "near" else 0), 8, devices)
    dev_sectors = rows * copies * 8
    geometry = Copied.of(shape, dev_sectors)
    taken: set[tuple[int, int]] = set()
    for number in range(geometry.size(dev_sectors) // 8):
        places, length = geometry.locate(number * 8 + 3)
        assert length == 5
        assert len({device for device, _ in places}) == copies
        assert all(sector < dev_sectors for _, sector in places)
        assert not taken.intersection(places)
        taken.update(places)
        if form != "far":
            start, end = geometry.first(number * 8), geometry.last(number * 8 + 8)
            assert all(start <= sector < end for _, sector in places)
