"""One device-mapper, two spellings: what is done through either looks the same through both."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmproto import linux, netbsd
from dmproto.commands import BY_NAME
from dmproto.flags import DmFlag
from dmproto.records import DeviceEntry, Header, Message, TargetMessage, TargetSpec
from dmproto.wire import huge_decode
from dmserver.host import Host, Personality

#: The flags that tell about a device.
TOLD = DmFlag.READONLY | DmFlag.SUSPEND | DmFlag.ACTIVE_PRESENT | DmFlag.INACTIVE_PRESENT

TABLES = (
    (TargetSpec(start=0, length=64, type="zero"),),
    (TargetSpec(start=0, length=128, type="linear", params="/dev/ram0 8"),),
    (
        TargetSpec(start=0, length=64, type="linear", params="/dev/ram1 0"),
        TargetSpec(start=64, length=64, type="error"),
    ),
    (TargetSpec(start=0, length=128, type="striped", params="2 16 /dev/ram0 0 /dev/ram1 64"),),
)


class Spelling(ABC):
    """A way to give a command to a host: the reply, or the errno it failed with."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.session = host.open()

    @abstractmethod
    def do(self, command: str, payload: Any = None, **header: Any) -> Message | int: ...

    def ok(self, command: str, payload: Any = None, **header: Any) -> Message:
        reply = self.do(command, payload, **header)
        assert isinstance(reply, Message), f"{command} {header}: errno {reply}"
        return reply


class Binary(Spelling):
    def do(self, command: str, payload: Any = None, **header: Any) -> Message | int:
        row = BY_NAME[command]
        request = linux.build(Message(command=row, header=Header(**header), payload=payload))
        answers: list[tuple[int, bytes]] = []
        self.host.ioctl(self.session, row.ioctl, request, lambda *answer: answers.append(answer))
        ((result, written),) = answers
        return linux.parse(written, row, reply=True) if result == 0 else -result


class Dictionary(Spelling):
    def do(self, command: str, payload: Any = None, **header: Any) -> Message | int:
        major = self.host.mapper.major
        request = netbsd.build(Message(command=BY_NAME[command], header=Header(**header), payload=payload), major=major)
        answers: list[dict[str, Any]] = []
        self.host.dictionary(self.session, request, answers.append)
        (reply,) = answers
        reply.pop("error", None)
        if number := reply.pop("errno", 0):
            return int(number)
        return netbsd.parse(reply, reply=True, major=major)


SPELLINGS: tuple[type[Spelling], ...] = (Binary, Dictionary)


@contextmanager
def host(personality: Personality) -> Iterator[Host]:
    opened = Host(personality)
    try:
        for number in range(2):
            opened.add_pdev(f"/dev/ram{number}=ram:1M,dev=1:{number}")
        yield opened
    finally:
        opened.close()


def seen(spelling: Spelling) -> list[tuple[Any, ...]]:
    """Every device as a client sees it: name, number, what its status tells, its tables and what they depend on."""
    listed = spelling.ok("LIST_DEVICES").payload or ()
    devices = []
    for entry in listed:
        assert isinstance(entry, DeviceEntry)
        status = spelling.ok("DEV_STATUS", name=entry.name).header
        tables = [_table(spelling, entry.name, which) for which in (0, DmFlag.QUERY_INACTIVE)]
        deps = spelling.ok("TABLE_DEPS", name=entry.name).payload or ()
        device = spelling.host.mapper.by_name(entry.name)
        assert device  # dictionaries tell no event number
        told = (status.flags & TOLD, status.target_count, status.open_count, device.event_nr, status.uuid)
        devices.append((entry.name, entry.dev, huge_decode(status.dev), told, tables, sorted(deps)))
    return sorted(devices)


def _table(spelling: Spelling, name: str, which: int) -> list[tuple[int, int, str, str]]:
    """Without the status of a target, which NetBSD's driver sets and Linux's does not."""
    specs = spelling.ok("TABLE_STATUS", name=name, flags=DmFlag.STATUS_TABLE | which).payload or ()
    return [(spec.start, spec.length, spec.type, spec.params) for spec in specs]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "load", "resume", "suspend", "rename", "clear", "remove"]),
        st.sampled_from("abc"),
        st.sampled_from("abc"),
        st.sampled_from(TABLES),
    ),
    max_size=30,
)


def perform(spelling: Spelling, step: tuple[str, str, str, Any]) -> None:
    """Do a step if both kernels take it."""
    what, name, other, table = step
    mapper = spelling.host.mapper
    device = mapper.by_name(name)
    if what == "create" and device is None:
        spelling.ok("DEV_CREATE", name=name, uuid=f"UUID-{name}" if mapper.by_uuid(f"UUID-{name}") is None else "")
    elif device is None:
        return
    elif what == "load":
        spelling.ok("TABLE_LOAD", table, name=name)
    elif what == "resume" and (device.live or device.inactive):
        spelling.ok("DEV_SUSPEND", name=name)
    elif what == "suspend" and device.live:
        spelling.ok("DEV_SUSPEND", name=name, flags=DmFlag.SUSPEND)
    elif what == "rename" and mapper.by_name(other) is None:
        spelling.ok("DEV_RENAME", other, name=name)
    elif what == "clear":
        spelling.ok("TABLE_CLEAR", name=name)
    elif what == "remove":
        spelling.ok("DEV_REMOVE", name=name)


@pytest.mark.parametrize("personality", ["auto", "linux"])
@given(steps=STEPS)
@settings(deadline=None, max_examples=60)
def test_both_spellings_do_and_show_the_same(personality: Personality, steps: list[tuple[str, str, str, Any]]) -> None:
    with host(personality) as first, host(personality) as second:
        for step in steps:
            perform(Binary(first), step)
            perform(Dictionary(second), step)
        views = [seen(spelling(one)) for one in (first, second) for spelling in SPELLINGS]
        assert views == views[:1] * 4


@pytest.mark.parametrize(
    ("command", "payload", "header", "expected"),
    [
        ("DEV_CREATE", None, {"name": "there"}, errno.EBUSY),
        ("DEV_CREATE", None, {"name": "a/b"}, errno.EINVAL),
        ("DEV_STATUS", None, {"name": "missing"}, errno.ENXIO),
        ("DEV_SUSPEND", None, {"name": "missing"}, errno.ENXIO),
        ("DEV_RENAME", "there", {"name": "there"}, errno.EBUSY),
        ("DEV_RENAME", "other", {"name": "missing"}, errno.ENXIO),
        ("TABLE_LOAD", (TargetSpec(start=8, length=8, type="zero"),), {"name": "there"}, errno.EINVAL),
        ("TABLE_LOAD", (TargetSpec(start=0, length=8, type="nosuch"),), {"name": "there"}, errno.EINVAL),
        (
            "TABLE_LOAD",
            (TargetSpec(start=0, length=8, type="linear", params="9:9 0"),),
            {"name": "there"},
            errno.ENXIO,
        ),
        ("TARGET_MSG", TargetMessage(sector=0, message="@stats_print 3"), {"name": "there"}, errno.ENOENT),
    ],
)
def test_both_spellings_fail_with_linuxs_errno(
    command: str, payload: Any, header: dict[str, Any], expected: int
) -> None:
    for spelling in SPELLINGS:
        with host("linux") as one:
            client = spelling(one)
            client.ok("DEV_CREATE", name="there")
            assert client.do(command, payload, **header) == expected
