"""What is known stays known while nothing changes, and no longer."""

from __future__ import annotations

from typing import Any

import pytest
from support.linux_client import LinuxClient

from dmproto.commands import BY_NAME
from dmproto.linux import build
from dmproto.records import Header, Message
from dmproto.stream import binary_request
from dmserver.answers import Answers
from dmserver.control.session import Session

COMMAND = BY_NAME["DEV_STATUS"]


@pytest.fixture
def client() -> LinuxClient:
    client = LinuxClient()
    client.ok("DEV_CREATE", name="vol1")
    return client


@pytest.fixture
def answers(client: LinuxClient) -> Answers:
    return Answers(client.mapper, client.control.quick)


def request(size: int = 312, **header: Any) -> tuple[int, bytes, bytes]:
    """Ioctl number, buffer and whole message."""
    buffer = build(Message(command=COMMAND, header=Header(**header), size=size))
    return COMMAND.ioctl, buffer, binary_request(COMMAND.ioctl, buffer)


def test_an_answer_is_known_until_something_changes(client: LinuxClient, answers: Answers) -> None:
    asked = request(name="vol1")
    assert answers.get(asked[-1]) is None
    found = answers.find(client.session, *asked)
    assert found is not None
    assert answers.get(asked[-1]) is found
    client.mapper.devices[0].event()
    assert answers.get(asked[-1]) is None
    again = answers.find(client.session, *asked)
    assert again not in (None, found)
    client.mapper.devices[0].open()
    assert answers.get(asked[-1]) is None


def test_a_device_that_is_not_there_or_no_more_is_for_the_long_way(client: LinuxClient, answers: Answers) -> None:
    asked = request(name="vol1")
    assert answers.find(client.session, *asked) is not None
    client.ok("DEV_REMOVE", name="vol1")
    assert answers.get(asked[-1]) is None
    assert answers.find(client.session, *asked) is None


def test_many_answers_take_bounded_memory(client: LinuxClient, answers: Answers) -> None:
    messages = [request(name="vol1", event_nr=number) for number in range(3000)]
    for message in messages:
        assert answers.find(client.session, *message) is not None
    known = [message for message in messages if answers.get(message[-1]) is not None]
    assert 0 < len(known) <= 1024


def test_those_who_may_not_ask_are_not_answered(answers: Answers) -> None:
    assert answers.find(Session(privileged=False), *request(name="vol1")) is None


def test_a_long_request_is_answered_and_not_kept(client: LinuxClient, answers: Answers) -> None:
    asked = request(size=16384, name="vol1")
    assert answers.find(client.session, *asked) is not None
    assert answers.get(asked[-1]) is None
