"""How limits stack (`blk_stack_limits`)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.io.limits import QueueLimits


def limits(**fields: int) -> QueueLimits:
    made = QueueLimits()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


BIG = {"logical_block_size": 4096, "physical_block_size": 4096, "io_min": 4096}

FINE = {"physical_block_size": 4096, "io_min": 4096}


@pytest.mark.parametrize(
    ("below", "start", "aligned", "expected"),
    [
        ({}, 3, True, {}),
        (BIG, 0, True, BIG),
        (BIG, 8, True, BIG),
        (BIG, 1, False, BIG | {"alignment_offset": 3584}),
        (FINE, 1, True, FINE | {"alignment_offset": 3584}),
        ({"io_min": 65536, "io_opt": 196608}, 0, True, {"io_min": 65536, "io_opt": 196608}),
        ({"io_opt": 1000}, 0, False, {}),
        ({"io_min": 1000}, 0, False, {}),
        ({"discard_granularity": 4096, "rotational": True}, 0, True, {"discard_granularity": 4096, "rotational": True}),
    ],
)
def test_stacking(below: dict[str, int], start: int, aligned: bool, expected: dict[str, int]) -> None:
    top = QueueLimits()
    assert top.stack(limits(**below), start) is aligned
    told = {name: value for name, value in vars(top).items() if value != getattr(QueueLimits, name)}
    assert told == expected


@given(st.lists(st.tuples(st.sampled_from([512, 1024, 4096]), st.integers(0, 64)), max_size=5))
def test_blocks_never_shrink(stack: list[tuple[int, int]]) -> None:
    top = QueueLimits()
    for size, start in stack:
        top.stack(limits(logical_block_size=size, physical_block_size=size, io_min=size), start)
    assert top.logical_block_size == max([512, *(size for size, _ in stack)])
    assert top.physical_block_size % top.logical_block_size == 0
