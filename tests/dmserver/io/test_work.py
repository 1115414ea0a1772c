from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dmserver.io.work import ThreadWork

PATIENCE = 30.0


@pytest.fixture
def work() -> Iterator[ThreadWork]:
    work = ThreadWork()
    yield work
    work.close()


def test_work_runs_in_order_in_one_other_thread(work: ThreadWork) -> None:
    done: list[tuple[int, int]] = []
    for number in range(20):
        work.queue(lambda number=number: done.append((number, threading.get_ident())))
    last = threading.Event()
    work.queue(last.set)
    assert last.wait(PATIENCE)
    assert [number for number, _ in done] == list(range(20))
    assert {thread for _, thread in done} & {threading.get_ident()} == set()
    assert len({thread for _, thread in done}) == 1


def test_later_work_waits_for_its_time(work: ThreadWork) -> None:
    order: list[str] = []
    both = threading.Event()
    begun = work.now()

    def late() -> None:
        order.append("late")
        assert work.now() - begun >= 0.05
        both.set()

    work.later(0.05, late)
    work.queue(lambda: order.append("soon"))
    assert both.wait(PATIENCE)
    assert order == ["soon", "late"]


def test_work_that_raises_does_not_stop_the_rest(work: ThreadWork, caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise ZeroDivisionError("on purpose")

    after = threading.Event()
    work.queue(fails)
    work.queue(after.set)
    assert after.wait(PATIENCE)
    assert "on purpose" in caplog.text


def test_work_may_queue_work(work: ThreadWork) -> None:
    second = threading.Event()
    work.queue(lambda: work.queue(second.set))
    assert second.wait(PATIENCE)


def test_closing_drops_what_is_not_due() -> None:
    work = ThreadWork()
    ran: list[int] = []
    work.later(3600, lambda: ran.append(1))
    work.close()
    assert not ran
