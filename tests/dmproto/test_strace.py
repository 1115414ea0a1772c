"""Lines as strace 6.1 prints them, most with a reply as `--inject` made one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.linux_vectors import VECTORS, ioctls

from dmproto import linux, strace
from dmproto.commands import BY_NAME
from dmproto.errors import BadMessage
from dmproto.flags import DmFlag
from dmproto.records import DeviceEntry, TargetMessage, TargetSpec, TargetVersion
from dmproto.wire import huge_encode

HEAD = "{version=[4, 0, 0], data_size=16384, data_start=312, "


def one(line: str) -> strace.Call:
    ((_, call),) = strace.calls(iter([line]))
    return call


def test_table_load() -> None:
    call = one(
        f"ioctl(3, DM_TABLE_LOAD, [{HEAD}dev=makedev(0xfd, 0x1), target_count=2, flags=DM_EXISTS_FLAG|"
        'DM_PERSISTENT_DEV_FLAG|0x800000}, {sector_start=0, length=16, target_type="\\x7a\\x65\\x72\\x6f", string=""}, '
        '{sector_start=16, length=8, target_type="linear", string="\\x31:0 0"}] => [{version=[4, 47, 0], '
        'data_size=305, data_start=312, dev=makedev(0xfd, 0x1), name="x", target_count=0, open_count=0, event_nr=0, '
        "flags=DM_INACTIVE_PRESENT_FLAG}]) = 0"
    )
    assert call.command.name == "TABLE_LOAD"
    assert call.request is not None
    assert call.request.header.dev == huge_encode((253, 1))
    assert call.request.header.flags == DmFlag.EXISTS | DmFlag.PERSISTENT_DEV | 0x800000
    assert call.request.payload == (
        TargetSpec(start=0, length=16, type="zero"),
        TargetSpec(start=16, length=8, type="linear", params="1:0 0"),
    )
    assert call.reply is not None
    assert call.reply.header.flags == DmFlag.INACTIVE_PRESENT
    assert linux.parse(linux.build(call.reply), call.command, reply=True).header.name == "x"


@pytest.mark.parametrize(
    ("name", "records", "payload"),
    [
        (
            "LIST_DEVICES",
            '{dev=makedev(0xfd, 0), name="a", event_nr=7}',
            (DeviceEntry(name="a", dev=(253, 0), event_nr=7),),
        ),
        ("LIST_VERSIONS", '{name="zero", version=[1, 2, 3]}', (TargetVersion(name="zero", version=(1, 2, 3)),)),
        ("TABLE_DEPS", "{count=2, deps=[makedev(0x1, 0), makedev(0x8, 0x10)]}", (0x100, 0x810)),
        ("TARGET_MSG", '{string="answer"}', "answer"),
    ],
)
def test_reply_data(name: str, records: str, payload: object) -> None:
    call = one(f"ioctl(3, DM_{name}, [{HEAD}flags=0}}] => [{HEAD}flags=0}}, {records}]) = 0")
    assert call.reply is not None
    assert call.reply.payload == payload


@pytest.mark.parametrize(
    ("name", "record", "payload"),
    [
        ("TARGET_MSG", '{sector=8, message="go"}', TargetMessage(sector=8, message="go")),
        ("DEV_RENAME", '{string="\\xff\\n\\101\\\\"}', "\udcff\nA\\"),
        ("DEV_SET_GEOMETRY", '{string="1 2 3 4"}', "1 2 3 4"),
    ],
)
def test_request_data(name: str, record: str, payload: object) -> None:
    call = one(f"ioctl(3, DM_{name}, [{HEAD}flags=0}}, {record}]) = -1 EPERM (Operation not permitted)")
    assert call.request is not None
    assert (call.request.payload, call.reply, call.result) == (payload, None, "EPERM")


def test_notation_before_5_0() -> None:
    call = one(
        'ioctl(3, DM_TABLE_LOAD, {version=4.1.2, data_size=400, data_start=312, dev=makedev(8, 1), name="nnn", '
        'target_count=1, flags=DM_READONLY_FLAG /* x */, {sector_start=16, length=32, target_type="tgt", '
        'string="tparams"}}) = -1 EBADF (Bad file descriptor)'
    )
    assert call.request is not None
    assert call.request.header.version == (4, 1, 2)
    assert call.request.payload == (TargetSpec(start=16, length=32, type="tgt", params="tparams"),)


@pytest.mark.parametrize(
    "number", ["DM_GET_TARGET_VERSION", "_IOC(_IOC_READ|_IOC_WRITE, 0xfd, 0x11, 0x138)", "0xc138fd11"]
)
def test_an_address_alone(number: str) -> None:
    call = one(f"ioctl(3, {number}, 0x55a8bf4b59a0) = 0")
    assert (call.command.name, call.request, call.reply) == ("GET_TARGET_VERSION", None, None)
    assert "0x55a8bf4b59a0" in call.note


def test_data_that_strace_gave_up_on() -> None:
    call = one(f"ioctl(3, DM_DEV_RENAME, [{HEAD}flags=0}}, ??? /* misplaced string */]) = -1 EINVAL (Invalid argument)")
    assert call.request is not None
    assert call.note == "strace could not decode the data"


def test_calls_of_several_processes_are_put_together() -> None:
    log = [
        f"[pid 12] ioctl(3, DM_DEV_WAIT, [{HEAD}flags=0}}] <unfinished ...>\n",
        "[pid 13] ioctl(3, TCGETS, 0x7ffe0aa5bf10) = -1 ENOTTY (Inappropriate ioctl for device)\n",
        f"13 10:11:12.5 ioctl(3<\\x2f>, DM_VERSION, [{HEAD}flags=0}}] <unfinished ...>\n",
        f"[pid 12] <... ioctl resumed> => [{HEAD}event_nr=3, flags=0}}]) = 0\n",
        "--- SIGCHLD {si_signo=SIGCHLD} ---\n",
        "13 10:11:13 <... ioctl resumed> => [{version=[4, 47, 0], flags=0}]) = 0\n",
        "+++ exited with 0 +++\n",
    ]
    found = [(line, call.command.name, call.reply is not None) for line, call in strace.calls(iter(log))]
    assert found == [(4, "DEV_WAIT", True), (6, "VERSION", True)]


@pytest.mark.parametrize(
    "prefix",
    ["", "12 ", "[pid    12] ", "10:11:12 ", "10:11:12.5 ", "12 1700000000.25 ", "     0.000102 "],
)
def test_prefixes_and_file_names(prefix: str) -> None:
    line = f"{prefix}ioctl(3</dev/mapper/control<char 10:236>>, DM_VERSION, [{HEAD}flags=0}}]) = 0 <0.000010>"
    assert strace.looks_like(line)
    assert one(line).result == "0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (f'[{HEAD}name="abc"..., flags=0}}]', "cut this string short"),
        (f"[{HEAD}...}}]", "use -v"),
        (f"[{HEAD}flags=0", "before the end"),
        ("[{version=}]", "where a value was expected"),
        ("[" * 100_000, "more than 8 brackets"),
        ("/* " * 100_000, "no value that strace prints"),
    ],
)
def test_lines_that_lack_something(arguments: str, words: str) -> None:
    with pytest.raises(BadMessage, match=words) as caught:
        one(f"ioctl(3, DM_VERSION, {arguments}) = 0")
    assert caught.value.path.startswith("line 1")


WHOLE = (
    "ioctl(3, DM_TABLE_STATUS, [{version=[4, 0, 0], data_size=400, data_start=312, dev=makedev(0xfd, 0x1), "
    'name="\\x61", flags=DM_EXISTS_FLAG}] => [{version=[4, 47, 0], data_size=353, data_start=312, target_count=1, '
    'flags=0}, {sector_start=0, length=8, target_type="zero", string=""}]) = 0'
)


@given(
    st.lists(
        st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 30), st.text('[]{}=>,"\\\\x0a /*.', max_size=4)),
        min_size=1,
    )
)
def test_spoiled_lines_are_read_or_refused(edits: list[tuple[int, int, str]]) -> None:
    line = WHOLE
    for at, cut, put in edits:
        line = line[:at] + put + line[at + cut :]
    try:
        found = [call for _, call in strace.calls(iter([line]))]
    except BadMessage as error:
        assert error.path.startswith("line 1")
        return
    assert len(found) <= 1


ISSUE = """
import fcntl, sys
for line in sys.stdin:
    file, number, request = line.split()
    try:
        fcntl.ioctl(int(file), int(number), bytearray.fromhex(request))
    except OSError:
        pass
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_what_the_installed_strace_prints(tmp_path: Path) -> None:
    """Recorded requests, issued on a file that is no control node; strace prints them all the same."""
    steps = [step for step in ioctls(VECTORS / "t_linear.jsonl") if step["cmd"] in ("TABLE_LOAD", "DEV_CREATE")][:20]
    log = tmp_path / "log"
    with (tmp_path / "other").open("wb") as other:
        file = other.fileno()
        run = subprocess.run(
            ["strace", "-e", "ioctl", "-v", "-xx", "-s", "65536", "-o", log, sys.executable, "-c", ISSUE],
            input="".join(f"{file} {BY_NAME[step['cmd']].ioctl} {step['request'].hex()}\n" for step in steps),
            text=True,
            pass_fds=[file],
            capture_output=True,
            check=False,
        )
    if run.returncode:
        pytest.skip(f"strace may not trace here: {run.stderr}")
    found = [call for _, call in strace.calls(iter(log.read_text().splitlines()))]
    assert [call.command.name for call in found] == [step["cmd"] for step in steps]
    for step, call in zip(steps, found, strict=True):
        recorded = linux.parse(step["request"], call.command)
        if call.request is not None and not call.note:
            assert call.request.payload == recorded.payload
            assert call.request.header.name == recorded.header.name
            assert call.request.header.flags == recorded.header.flags
