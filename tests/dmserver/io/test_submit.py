"""Handing bios over: in order, not nested; waiting, even from where others are handed over."""

from __future__ import annotations

from dmserver.io.bio import Bio, Op
from dmserver.io.disk import Disk
from dmserver.io.submit import run_flat, submit_and_wait


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
