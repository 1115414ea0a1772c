"""The loop: descriptors, timers, signals, calls from other threads."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator

import pytest

from dmserver.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for fd in ends:
        os.close(fd)


def test_a_readable_descriptor_calls_back(loop: Loop, pipe: tuple[int, int]) -> None:
    got: list[bytes] = []

    def readable(events: int) -> None:
        assert events & select.EPOLLIN
        got.append(os.read(pipe[0], 10))
        loop.stop()

    loop.add(pipe[0], select.EPOLLIN, readable)
    os.write(pipe[1], b"hello")
    loop.run()
    assert got == [b"hello"]


def test_a_removed_descriptor_is_not_called_in_the_same_round(loop: Loop) -> None:
    first, second = os.pipe(), os.pipe()
    called: list[int] = []

    def readable(mine: int, other: int) -> None:
        called.append(mine)
        loop.remove(other)
        loop.stop()

    loop.add(first[0], select.EPOLLIN, lambda events: readable(first[0], second[0]))
    loop.add(second[0], select.EPOLLIN, lambda events: readable(second[0], first[0]))
    os.write(first[1], b"1")
    os.write(second[1], b"2")
    loop.run()
    assert len(called) == 1
    for fd in first + second:
        os.close(fd)


def test_modify_changes_what_is_waited_for(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    loop.add(pipe[1], 0, lambda events: (seen.append(events), loop.stop())[1])
    loop.call_soon_threadsafe(lambda: loop.modify(pipe[1], select.EPOLLOUT))
    loop.run()
    assert seen == [select.EPOLLOUT]


def test_calls_from_another_thread_run_in_order_in_the_loops_thread(loop: Loop) -> None:
    ran: list[tuple[int, int]] = []

    def work() -> None:
        for number in range(100):
            loop.call_soon_threadsafe(lambda number=number: ran.append((number, threading.get_ident())))
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=work)
    thread.start()
    loop.run()
    thread.join()
    assert ran == [(number, threading.get_ident()) for number in range(100)]


def test_timers_run_in_order_of_their_time_and_can_be_cancelled(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_later(0.002, lambda: ran.append("second"))
    loop.call_later(0.001, lambda: ran.append("first"))
    loop.call_later(0.0015, lambda: ran.append("never"))()
    loop.call_later(0.003, loop.stop)
    loop.run()
    assert ran == ["first", "second"]


def test_a_signal_runs_its_callback_in_the_loop(loop: Loop) -> None:
    got: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: (got.append("usr1"), loop.stop())[1])
    loop.call_soon_threadsafe(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    loop.run()
    assert got == ["usr1"]


def test_a_call_that_fails_is_logged_and_the_rest_runs(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.call_soon_threadsafe(lambda: [][0])
    loop.call_later(0, lambda: [][1])
    loop.call_later(0.001, loop.stop)
    loop.run()
    assert caplog.text.count("IndexError") == 2
