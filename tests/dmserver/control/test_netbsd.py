"""NetBSD's rules: every recording of the 2025 driver replays identically."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import netbsd_replay
from support.netbsd_replay import NetbsdReplay, Step

from dmproto import proplib
from dmserver.host import NETBSD_MAJOR, Host, Personality
from dmserver.io.bio import Bio, Op
from dmserver.model.minors import EverGrowing
from dmserver.targets.registry import TargetRegistry

#: Control steps that are answered by the kernel around the driver.
AROUND = ("media", "wedgeinfo", "diskinfo", "sync")

REGISTRY = TargetRegistry.installed()
SCENARIOS = list(netbsd_replay.scenarios())


@pytest.fixture
def replay() -> Iterator[NetbsdReplay]:
    host = Host("netbsd")
    yield NetbsdReplay(host)
    host.close()


@pytest.mark.parametrize(
    ("file", "scenario", "steps"), SCENARIOS, ids=[f"{file}-{scenario[:50]}" for file, scenario, _ in SCENARIOS]
)
def test_a_recording_replays_identically(replay: NetbsdReplay, file: str, scenario: str, steps: list[Step]) -> None:
    for step in steps:
        if netbsd_replay.skipped(file, step):
            continue
        control = step.get("control", "")
        if control.startswith(("read", "write")):
            if expected := netbsd_replay.transferred(step):
                went_well, data = replay.transfer(control)
                assert went_well == expected[0], step["label"]
                assert not went_well or control.startswith("write") or data == expected[1], step["label"]
            continue
        if control:
            if not control.startswith(AROUND):
                assert replay.control(control) == netbsd_replay.seen(step.get("out")), step["label"]
            continue
        failure, text = replay.request(netbsd_replay.request_text(step))
        assert failure == netbsd_replay.reply_errno(step), step["label"]
        if "crash" not in step:
            assert text == netbsd_replay.reply_text(step), step["label"]


# -- what `auto` mends (specs/netbsd-driver.md) -------------------------------------------------------------

#: Scenarios, by their first words, that answer otherwise when mended. All others do not.
MENDED = {
    "libdevmapper (lvm2 fork) shape": "remove_all and its like are known",
    "unsupported command 'remove_all'": "it is known",
    "rename onto an existing name": "EEXIST",
    "rename errors": "EEXIST",
    "name 128 twice": "no minor is taken",
    "identity is the path string": "a device is one however it is called",
    "path of 40 chars": "likewise",
    "stacked": "a device-mapper device is called by its name",
    "device on itself": "refused",
    "dm on itself": "refused",
    "second entry unknown target": "a reload that fails changes nothing",
    "failed reload after a good one": "likewise",
}


@pytest.mark.parametrize(
    ("file", "scenario", "steps"),
    [case for case in SCENARIOS if not case[1].startswith(tuple(MENDED))],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_nothing_else_is_mended(file: str, scenario: str, steps: list[Step]) -> None:
    """With NetBSD's numbers, since `auto` has Linux's."""
    host = Host("auto", major=NETBSD_MAJOR, registry=REGISTRY)
    host.mapper.minors = EverGrowing()
    replay = NetbsdReplay(host)
    for step in steps:
        control = step.get("control", "")
        if control.startswith(("pdevs", "targets", "priv", "limit")):
            assert replay.control(control) == netbsd_replay.seen(step.get("out")), step["label"]
        elif not control and not netbsd_replay.skipped(file, step):
            failure, text = replay.request(netbsd_replay.request_text(step))
            assert failure == netbsd_replay.reply_errno(step), step["label"]
            if "crash" not in step:
                assert text == netbsd_replay.reply_text(step), step["label"]
    host.close()


@pytest.fixture
def mended() -> Iterator[Host]:
    host = Host("auto")
    for name in ("ram0", "ram1"):
        host.add_pdev(f"/dev/{name}=ram:1M")
    yield host
    host.close()


def ask(host: Host, command: str, **keys: Any) -> dict[str, Any]:
    replies: list[dict[str, Any]] = []
    host.dictionary(host.open(), {"command": command, "version": [4, 0, 0], **keys}, replies.append)
    (reply,) = replies
    return reply


def target(kind: str, params: str = "", start: int = 0) -> dict[str, Any]:
    return {"start": start, "length": 8, "type": kind, "params": params}


def params(host: Host, name: str, flags: int = 0x10) -> list[str]:
    return [f"{entry['type']} {entry['params']}" for entry in ask(host, "table", name=name, flags=flags)["cmd_data"]]


def test_renaming_onto_a_name_loses_no_device(mended: Host) -> None:
    ask(mended, "create", name="a", uuid="ua")
    ask(mended, "create", name="b")
    assert ask(mended, "rename", name="a", cmd_data=["b"])["errno"] == errno.EEXIST
    assert "errno" not in ask(mended, "rename", name="a", cmd_data=["a"])
    assert "errno" not in ask(mended, "rename", uuid="ua", cmd_data=["c"])
    assert {entry["name"] for entry in ask(mended, "names")["cmd_data"]} == {"b", "c"}


@pytest.mark.parametrize(
    "entries",
    [
        [target("zero"), target("nosuch", start=8)],
        [target("linear", "/dev/ram1 0"), target("linear", "/dev/nosuch 0", start=8)],
        [target("linear", "/dev/ram1 0"), target("striped", "2 32 /dev/ram1 0", start=8)],
        [{"start": 0, "length": 8}],
    ],
)
def test_a_reload_that_fails_changes_nothing(mended: Host, entries: list[dict[str, Any]]) -> None:
    ask(mended, "create", name="a")
    ask(mended, "reload", name="a", cmd_data=[target("error")])
    ask(mended, "resume", name="a")
    ask(mended, "reload", name="a", cmd_data=[target("linear", "/dev/ram0 0")])
    before = params(mended, "a"), params(mended, "a", 0x1010), ask(mended, "pdevs"), ask(mended, "info", name="a")
    assert ask(mended, "reload", name="a", cmd_data=entries)["errno"]
    assert (
        params(mended, "a"),
        params(mended, "a", 0x1010),
        ask(mended, "pdevs"),
        ask(mended, "info", name="a"),
    ) == before


def test_a_failed_first_reload_leaves_a_resume_without_a_table(mended: Host) -> None:
    ask(mended, "create", name="a")
    ask(mended, "reload", name="a", cmd_data=[target("zero")])
    ask(mended, "resume", name="a")
    assert ask(mended, "reload", name="a", cmd_data=[target("nosuch")])["errno"] == errno.ENOENT
    assert "errno" not in ask(mended, "resume", name="a")
    assert params(mended, "a") == ["zero "]


def test_a_name_that_is_cut_to_one_that_exists_costs_no_minor(mended: Host) -> None:
    assert ask(mended, "create", name="m" * 128)["minor"] == 0
    refused = ask(mended, "create", name="m" * 128)
    assert (refused["errno"], "minor" in refused) == (errno.EEXIST, False)
    assert ask(mended, "create", name="b")["minor"] == 1


def test_a_suspended_device_holds_io(mended: Host) -> None:
    ask(mended, "create", name="a")
    ask(mended, "reload", name="a", cmd_data=[target("zero")])
    ask(mended, "resume", name="a")
    ask(mended, "suspend", name="a")
    ended: list[int] = []
    data = memoryview(bytearray(512))
    mended.mapper.devices[0].submit_bio(Bio(Op.READ, 0, 1, data, lambda bio: ended.append(bio.error)))
    assert ended == []
    ask(mended, "resume", name="a")
    assert ended == [0]


def test_a_read_only_table_takes_no_writes(mended: Host) -> None:
    ask(mended, "create", name="a")
    ask(mended, "reload", name="a", flags=1, cmd_data=[target("zero")])
    ask(mended, "resume", name="a")
    assert mended.mapper.devices[0].read_only


@pytest.mark.parametrize("path", ["/dev//ram0", "/dev/./ram0", "1:0", "/dev" + "/" * 40 + "ram0"])
def test_a_device_is_one_however_it_is_called(mended: Host, path: str) -> None:
    ask(mended, "create", name="a")
    table = [target("linear", "/dev/ram0 0"), target("linear", f"{path} 8", 8)]
    assert "errno" not in ask(mended, "reload", name="a", cmd_data=table)
    (pdev,) = ask(mended, "pdevs")["cmd_data"]
    assert (pdev["path"], pdev["ref_cnt"]) == ("/dev/ram0", 2)


def test_a_device_cannot_stand_on_itself_or_on_what_is_not_there(mended: Host) -> None:
    ask(mended, "create", name="a")
    ask(mended, "reload", name="a", cmd_data=[target("zero")])
    for path in ("/dev/mapper/a", "/dev/dm-0", "/dev/dm-7", "/dev/mapper/dm7"):
        assert ask(mended, "reload", name="a", cmd_data=[target("linear", f"{path} 0")])["errno"] == errno.ENOENT, path


def test_minor_0_is_a_minor_when_nothing_else_tells_a_device(mended: Host) -> None:
    ask(mended, "create", name="a")
    ask(mended, "create", name="b")
    assert ask(mended, "deps", minor=0)["name"] == "a"
    assert ask(mended, "deps", minor=0, name="b")["minor"] == 1
    assert ask(mended, "deps", minor="0")["errno"] == errno.ENOENT
    assert ask(mended, "deps", minor=0, name="nosuch")["errno"] == errno.ENOENT


def test_linux_clients_are_told_of_changes(mended: Host) -> None:
    actions: list[str] = []
    mended.mapper.events.on_uevent(lambda event: actions.append(f"{event.action} {event.devpath.split('/')[-1]}"))
    numbers = [mended.mapper.events.global_nr]
    for command, keys in [
        ("create", {}),
        ("reload", {"cmd_data": [target("zero")]}),
        ("resume", {}),
        ("rename", {"cmd_data": ["b"]}),
        ("remove", {"name": "b"}),
    ]:
        assert "errno" not in ask(mended, command, **{"name": "a", **keys})
        numbers.append(mended.mapper.events.global_nr)
    assert [after > before for before, after in pairwise(numbers)] == [True, False, True, True, True]
    assert actions == ["add 253:0", "add dm-0", "change dm-0", "change dm-0", "remove 253:0", "remove dm-0"]


def test_target_types_that_netbsd_lacks_may_be_used(mended: Host) -> None:
    ask(mended, "create", name="a")
    assert "errno" not in ask(mended, "reload", name="a", cmd_data=[target("delay", "/dev/ram0 0 0")])
    assert params(mended, "a", 0x1010) == ["delay 1:0 0 0"]


# -- any dictionary -----------------------------------------------------------------------------------------

VERBS = [
    "create",
    "reload",
    "reload",
    "resume",
    "suspend",
    "remove",
    "rename",
    "clear",
    "info",
    "table",
    "deps",
    "names",
]
NAMES = st.sampled_from(["a", "b", "", "x" * 128, "é"])
SCALARS: st.SearchStrategy[Any] = st.one_of(
    NAMES, st.integers(-2, 2**32), st.integers(0, 2**63 - 1), st.booleans(), st.binary(max_size=2)
)
PARAMS = st.sampled_from(
    ["", "/dev/ram0 0", "/dev/ram1 5x", "1:0 0", "2 8 /dev/ram0 0 /dev/ram1 0", "2 8 /dev/ram0", "/dev/mapper/dm1 0"]
)
ENTRIES = st.one_of(
    SCALARS,
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(st.sampled_from(["linear", "striped", "zero", "error", "nosuch"]), SCALARS),
            "start": SCALARS,
            "length": SCALARS,
            "params": st.one_of(PARAMS, PARAMS, SCALARS),
        },
    ),
)
REQUESTS = st.fixed_dictionaries(
    {
        "command": st.sampled_from(VERBS),
        "version": st.just([4, 0, 0]),
    },
    optional={
        "name": st.one_of(NAMES, NAMES, SCALARS),
        "uuid": SCALARS,
        "minor": SCALARS,
        "flags": st.one_of(st.sampled_from([0, 1, 0x10, 0x1000]), SCALARS),
        "cmd_data": st.one_of(st.lists(ENTRIES, max_size=3), st.lists(ENTRIES, max_size=3), SCALARS),
    },
)


@pytest.mark.parametrize("personality", ["auto", "netbsd"])
@settings(max_examples=40, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=12))
def test_every_dictionary_is_answered_once_and_references_add_up(
    personality: Personality, requests: list[dict[str, Any]]
) -> None:
    """Whatever is asked: one answer that can be externalized, and each device counted as often as tables use it."""
    host = Host(personality, registry=REGISTRY)
    for name in ("ram0", "ram1"):
        host.add_pdev(f"/dev/{name}=ram:64k")
    lost: Counter[str] = Counter()
    for request in requests:
        before = list(host.mapper.devices.values())
        tables = {device: [table for table in device.slots if table] for device in before}
        reply = ask(host, request.pop("command"), **request)
        proplib.dumps(reply)
        if personality == "netbsd" and reply["command"] == "rename":
            for device in set(before) - set(host.mapper.devices.values()):
                lost.update(pdev.number for table in tables[device] for pdev in table.pdevs.elements())
        used = Counter(lost)
        for device in host.mapper.devices.values():
            for table in device.slots:
                used.update(pdev.number for pdev in (table.pdevs.elements() if table else ()))
        counted = Counter({pdev.number: 0 for pdev in host.mapper.pdevs})
        for pdev in host.mapper.pdevs:
            counted[pdev.number] += pdev.ref_cnt
        assert counted == used
    host.close()
