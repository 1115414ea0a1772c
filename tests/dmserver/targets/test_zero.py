from __future__ import annotations

import errno

from support.constructors import replay
from support.targets import Bench, flush, pattern, read, start, write

from dmserver.io.bio import Op
from dmserver.targets.zero import Zero


def test_recorded_constructors() -> None:
    assert replay(Bench(), Zero, "t_zero_error", "table_types") > 4


def test_reads_are_zero_and_writes_vanish() -> None:
    device = Bench().load("d", (Zero, 64, ""))
    write(device, 0, pattern(1))
    assert read(device, 0, 64) == bytes(64 * 512)
    flush(device)
    assert start(device, Op.DISCARD, 0) == [errno.EOPNOTSUPP]
