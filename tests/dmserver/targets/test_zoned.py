from __future__ import annotations

import errno

import pytest
from support.targets import Bench

from dmserver.targets.zoned import Zoned


@pytest.mark.parametrize(
    ("params", "number", "message"),
    [
        ("", errno.EINVAL, "Invalid argument count"),
        ("9:9", errno.ENXIO, "Get target device failed"),
        ("1:0", errno.EINVAL, "Invalid regular device"),
        ("1:0 1:1", errno.EINVAL, "First device must be a regular device"),
        ("1:0 9:9", errno.ENXIO, "Get target device failed"),
    ],
)
def test_no_disk_here_is_zoned(params: str, number: int, message: str) -> None:
    bench = Bench()
    assert bench.refusal(Zoned, 64, params) == (number, message)
    assert not bench.mapper.pdevs
