"""Handing bios over: in order, not nested; waiting, even from where others are handed over."""

from __future__ import annotations

import errno
from collections.abc import Callable

from support.targets import Bench

from dmserver.io.bio import Bio, Op
from dmserver.io.disk import Disk
from dmserver.io.submit import is_suspended, run_flat, submit_and_wait, wait_for
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import do_io
from dmserver.targets.era.era import Era
from dmserver.targets.linear import Linear


def test_bios_submitted_while_one_is_started_wait_for_it() -> None:
    order: list[str] = []

    def start(name: str, *children: str) -> None:
        def run(bio: Bio) -> None:
            order.append(f"{name} begins")
            for child in children:
                start(child)
            order.append(f"{name} ends")

        run_flat(run, Bio(Op.READ, 0, 0))

    start("top", "a", "b")
    assert order == ["top begins", "top ends", "a begins", "a ends", "b begins", "b ends"]


def test_an_exception_leaves_nothing_behind() -> None:
    def fail(bio: Bio) -> None:
        raise ZeroDivisionError

    for _ in range(2):
        try:
            run_flat(fail, Bio(Op.READ, 0, 0))
        except ZeroDivisionError:
            continue
        raise AssertionError("it waits for the one that failed")


def test_waiting_where_bios_are_started() -> None:
    disk = Disk("/dev/ram0", (1, 0), "ram:4k")
    data = memoryview(bytearray(512))
    errors: list[int] = []
    run_flat(lambda _: errors.append(submit_and_wait(disk, Op.READ, 0, 1, data)), Bio(Op.READ, 0, 0))
    assert errors == [0]


def linear(bench: Bench, name: str, *below: str) -> DmDev:
    """A device on others, each of one sector."""
    return bench.load(name, *((Linear, 1, f"{dev} 0") for dev in below))


def test_what_is_suspended_underneath() -> None:
    bench = Bench()
    low = linear(bench, "low", "1:0")
    top = linear(bench, "top", "1:1", "253:0")
    assert not is_suspended(top)
    bench.suspend(low)
    assert is_suspended(top)


def test_devices_that_are_there_more_than_once_are_looked_at_once() -> None:
    bench = Bench()
    below = ["1:0", "1:1"]
    for _ in range(50):
        below = ["{}:{}".format(*linear(bench, f"{side}{below}", *below).dev) for side in "ab"]
    assert not is_suspended(bench.mapper.devices[99])


def test_a_device_that_is_mapped_onto_itself_might_wait_for_itself() -> None:
    bench = Bench()
    linear(bench, "self", "1:0")
    assert is_suspended(linear(bench, "self", "253:0"))


def test_the_metadata_device_of_a_target_counts() -> None:
    bench = Bench()
    low = linear(bench, "low", *["1:1"] * 1024)
    era = bench.load("era", (Era, 64, "253:0 1:0 8"))
    assert not is_suspended(era)
    bench.suspend(low)
    assert is_suspended(era)


def test_waiting_for_a_device_ends_when_it_is_suspended() -> None:
    bench = Bench()
    device = linear(bench, "device", "1:0")
    bench.suspend(device)
    begun: list[Callable[[int], None]] = []
    assert wait_for(begun.append, device) == errno.EAGAIN
    assert len(begun) == 1
    assert wait_for(lambda done: done(errno.EIO), device) == errno.EIO


def test_a_target_that_waits_where_bios_are_started() -> None:
    device = linear(Bench(), "device", "1:0")
    errors: list[int] = []
    data = memoryview(bytearray(512))
    run_flat(lambda _: errors.append(do_io(Op.READ, device, 0, data)), Bio(Op.READ, 0, 0))
    assert errors == [0]


def test_a_very_deep_stack_is_not_looked_at_to_its_end() -> None:
    bench = Bench()
    device = linear(bench, "0", "1:0")
    for level in range(1, 1100):
        device = linear(bench, f"{level}", f"253:{device.minor}")
    assert not is_suspended(device)
