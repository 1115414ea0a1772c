from __future__ import annotations

import errno

import pytest
from support.constructors import replay
from support.targets import Bench, pattern, read

from dmserver.targets.striped import Striped
from dmserver.targets.unstriped import Unstriped
from dmserver.targets.zero import Zero


def test_recorded_constructors() -> None:
    assert replay(Bench(), Unstriped, "t_multi_switch_constructors") == 7


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("0 16 0 1:0 0", "Invalid stripe count"),
        ("2 0 0 1:0 0", "Invalid chunk_size"),
        ("2 16 x 1:0 0", "Invalid stripe number"),
        ("2 16 3 1:0 0", "Please provide stripe between [0, # of stripes]"),
    ],
)
def test_refusals(params: str, message: str) -> None:
    assert Bench().refusal(Unstriped, 64, params) == (errno.EINVAL, message)


def test_each_stripe_is_what_was_on_its_device() -> None:
    bench = Bench()
    for number in range(2):
        bench.disks[number].submit_bio(_write(pattern(number + 1, 0, 64)))
    device = bench.load("striped", (Striped, 128, "2 16 1:0 0 1:1 0"))
    assert read(device, 0, 32) == pattern(1, 0, 16) + pattern(2, 0, 16)
    for stripe in range(2):
        one = bench.load(f"stripe {stripe}", (Unstriped, 64, f"2 16 {stripe} 253:0 0"))
        assert read(one, 0, 64) == pattern(stripe + 1, 0, 64)
    behind = bench.load("behind", (Zero, 24, ""), (Unstriped, 64, "2 16 1 253:0 0"))
    assert read(behind, 24, 64) == pattern(2, 0, 64)


def _write(data: bytes):  # type: ignore[no-untyped-def]  # a bio
    from dmserver.io.bio import Bio, Op

    return Bio(Op.WRITE, 0, len(data) // 512, memoryview(data))
