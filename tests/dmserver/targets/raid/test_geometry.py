from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.raid.geometry import Near, Striped, recover, syndromes, xor
from dmserver.targets.raid.params import TYPES

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
    assert xor([b"\x0f", b"\xf0", b"\x01"]) == b"\xfe"


def test_near_copies() -> None:
    assert Near(2, 0, 2).locate(100) == ([(0, 100), (1, 100)], 1 << 63)
    assert Near(2, 8, 1).locate(11) == ([(1, 3)], 5)
    assert Near(4, 8, 2).locate(17) == ([(0, 9), (1, 9)], 7)
    assert Near(3, 8, 2).locate(9) == ([(2, 1), (0, 9)], 7)
