from __future__ import annotations

from support.constructors import replay
from support.targets import Bench, pattern, read, start, status

from dmserver.io.bio import Op
from dmserver.targets.delay import Delay


def test_recorded_constructors() -> None:
    assert replay(Bench(), Delay, "t_delay_flakey_constructors") == 10


def test_reads_and_writes_have_delays_of_their_own() -> None:
    bench = Bench()
    device = bench.load("d", (Delay, 64, "1:0 10 0 1:1 20 250"))
    assert read(device, 0) == bytes(512)
    ended = start(device, Op.WRITE, 3, pattern(1))
    assert status(device) == "0 1 0"
    bench.work.advance(0.24)
    assert not ended
    bench.work.advance(0.02)
    assert ended == [0]
    assert status(device) == "0 0 0"
    assert read(bench.disks[1], 23) == pattern(1)


def test_flushes_take_the_last_class() -> None:
    bench = Bench()
    device = bench.load("d", (Delay, 64, "1:0 0 0 1:1 0 0 1:2 0 100"))
    ended = start(device, Op.FLUSH, 0)
    assert status(device) == "0 0 1"
    bench.work.advance(0.1)
    assert ended == [0]
    assert bench.disks[2].log == [(Op.FLUSH, 0, 0)]


def test_a_suspension_lets_go_of_what_is_held() -> None:
    bench = Bench()
    device = bench.load("d", (Delay, 64, "1:0 0 60000"))
    ended = start(device, Op.WRITE, 0, pattern(1))
    suspended = bench.suspend(device)
    assert ended == [0]
    assert suspended
    bench.resume(device)
    assert not start(device, Op.WRITE, 0, pattern(1))
