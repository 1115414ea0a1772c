"""Texts in and out, and the thread for those that are long."""

from __future__ import annotations

import errno
import threading

import pytest

from dmproto.errors import BadMessage
from dmproto.stream import JsonMessage, PlistMessage
from dmserver.texts import TextThread, decode, encode, is_long


@pytest.mark.parametrize("message", [PlistMessage(b"<plist><array/></plist>"), JsonMessage(b'{"a" 1}')])
def test_what_is_no_dictionary_is_told(message: PlistMessage | JsonMessage) -> None:
    wrong = decode(message, 1000)
    assert isinstance(wrong, BadMessage)
    assert wrong.errno == errno.EIO


def test_what_is_long() -> None:
    short, long = JsonMessage(b"{}"), JsonMessage(b"{" + b" " * 200000 + b"}")
    assert [is_long(short), is_long(long), is_long(long, {})] == [False, True, True]
    assert [is_long(short, {"cmd_data": [1] * count}) for count in (1, 100000)] == [False, True]


def test_a_reply_that_cannot_be_written_says_so() -> None:
    assert b"errno" in encode({"name": "a\0b"}, json=False)


def test_the_thread_does_one_after_another_and_tells_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    told: list[object] = []
    done = threading.Event()
    thread = TextThread(lambda call: call())

    def fail() -> None:
        raise RuntimeError("unforeseen")

    thread.run(lambda: 1, told.append, done.set)
    thread.run(fail, told.append, lambda: told.append("failed"))
    thread.run(lambda: 2, told.append, done.set)
    thread.run(lambda: 3, lambda _: done.set(), done.set)
    assert done.wait(30)
    thread.close()
    assert told == [1, "failed", 2]
    assert "unforeseen" in caplog.text


def test_a_closed_thread_calls_nobody() -> None:
    told: list[object] = []
    started, go, ended = threading.Event(), threading.Event(), threading.Event()
    thread = TextThread(lambda call: told.append(call))

    def work() -> None:
        started.set()
        go.wait(30)
        ended.set()

    thread.run(work, told.append, ended.set)
    assert started.wait(30)
    thread.close()
    go.set()
    assert ended.wait(30)
    assert told == []
