import struct

import pytest
from support.vectors import records

from dmproto import libdm, netbsd, proplib
from dmproto.commands import BY_VERB
from dmproto.errors import NotSayable
from dmproto.flags import DmFlag
from dmproto.objects import same
from dmproto.proplib import Unsigned
from dmproto.records import Header, Message, TargetSpec
from dmproto.wire import huge_encode

TASKS = list(records("netbsd/libdevmapper_tasks.jsonl"))
OPTIONS = {
    "ro": DmFlag.READONLY,
    "noflush": DmFlag.NOFLUSH,
    "skip_lockfs": DmFlag.SKIP_LOCKFS,
    "inactive": DmFlag.QUERY_INACTIVE,
}


def message(verb, words):
    """The binary request that Linux's libdevmapper makes of a recorded task."""
    command = BY_VERB[verb]
    told = [word.partition("=")[::2] for word in words]
    one = dict(told)
    flags = DmFlag.EXISTS | sum(OPTIONS[name] for name, _ in told if name in OPTIONS)
    flags |= {"suspend": DmFlag.SUSPEND, "table": DmFlag.STATUS_TABLE}.get(verb, 0)
    dev = 0
    if "minor" in one:
        dev = huge_encode((int(one.get("major", netbsd.DM_MAJOR)), int(one["minor"])))
        flags |= DmFlag.PERSISTENT_DEV
    targets = []
    for name, value in told:
        if name == "target":
            start, length, kind, params = value.split(",", 3)
            targets.append(TargetSpec(start=int(start), length=int(length), type=kind, params=params))
    payload = tuple(targets) if verb == "reload" else one.get("newname")
    header = Header(flags=int(flags), dev=dev, name=one.get("name", ""), uuid=one.get("uuid", ""))
    return Message(command=command, header=header, payload=payload)


def steps(task):
    """The commands of one task: creating with targets is three."""
    verb, *words = task["task"]
    if verb != "create" or not any(word.startswith("target=") for word in words):
        return [(verb, words)]
    name = [word for word in words if not word.startswith(("uuid=", "minor="))]
    return [("create", [word for word in words if not word.startswith("target=")]), ("reload", name), ("resume", name)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task['step']}-{task['task'][0]}")
def test_requests_are_those_that_were_recorded(task):
    # the requests of a client that then crashed are as good as any
    for (verb, words), exchange in zip(steps(task), task["exchanges"], strict=False):
        recorded = proplib.loads(exchange["request"].encode())
        if verb == "resume" and recorded["cmd_data"]:
            # a create task's targets, which the driver does not look at and DM_DEV_SUSPEND has no place for
            recorded["cmd_data"] = []
        assert same(libdm.request(message(verb, words)), recorded)


def test_a_foreign_major_cannot_be_said():
    with pytest.raises(NotSayable, match="dev: major 7, expected device-mapper's 253"):
        libdm.request(message("create", ["name=badmajor", "major=7", "minor=9"]))


@pytest.mark.parametrize(
    "task",
    [task for task in TASKS if task.get("dm_ioctl_hex")],  # else the client crashed, or asked nothing
    ids=lambda task: f"{task['step']}-{task['task'][0]}",
)
def test_buffers_are_those_that_were_recorded(task):
    recorded = bytes.fromhex(task["dm_ioctl_hex"])
    reply = proplib.loads(task["exchanges"][-1]["reply"].encode())
    assert libdm.dm_ioctl(reply) == recorded.ljust(16384, b"\0")


def test_deps_take_the_major_of_the_first_and_end_at_0():
    reply = {"command": "deps", "cmd_data": [Unsigned(0x401), Unsigned(0x10A82C), Unsigned(0), Unsigned(0x10)]}
    data = libdm.dm_ioctl(reply)
    assert int.from_bytes(data[20:24], "little") == 2
    assert data[312:344] == struct.pack("<II3Q", 2, 0, 0xD01, 0x100D2C, 0)


def test_wrong_types_count_as_absent():
    reply = {"command": "status", "flags": "x", "minor": -1, "name": 7, "version": [Unsigned(4), "x"], "cmd_data": "x"}
    data = libdm.dm_ioctl(reply)
    assert data[:12] == b"\4" + bytes(11)
    assert int.from_bytes(data[20:24], "little") == 2  # ENOENT passes for a count
    assert not any(data[24:])


def test_the_buffer_grows_where_the_library_would_write_behind_it():
    reply = {"command": "names", "cmd_data": [{"dev": Unsigned(n), "name": f"device{n:04}"} for n in range(1000)]}
    data = libdm.dm_ioctl(reply)
    assert len(data) == int.from_bytes(data[12:16], "little") == 312 + 1000 * 28
    assert data[-17:-6] == b"\0device0999"
