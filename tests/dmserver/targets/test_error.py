from __future__ import annotations

import errno

import pytest
from support.constructors import replay
from support.targets import Bench, flush, pattern, read, write

from dmserver.targets.error import Error
from dmserver.targets.zero import Zero


def test_recorded_constructors() -> None:
    assert replay(Bench(), Error, "t_zero_error", "table_types") == 6


def test_everything_fails_but_a_flush() -> None:
    device = Bench().load("d", (Zero, 8, ""), (Error, 8, "whatever"))
    assert read(device, 0, 8) == bytes(4096)
    for bad in (lambda: read(device, 8), lambda: read(device, 7, 2), lambda: write(device, 15, pattern(1))):
        with pytest.raises(OSError, match=r"Bio") as caught:
            bad()
        assert caught.value.errno == errno.EIO
    flush(device)
