"""Every kind of file holds the same message, however it is written down."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.linux_vectors import FILES, expand

from dmproto import captures, linux, proplib, translate
from dmproto.captures import Capture
from dmproto.commands import BY_NAME
from dmproto.errors import BadMessage, MessageTooLarge
from dmproto.records import Header, Message, TargetSpec
from dmproto.translate import Form

LOAD = BY_NAME["TABLE_LOAD"]
MESSAGE = Message(
    command=LOAD,
    header=Header(name="x", target_count=1),
    payload=(TargetSpec(start=0, length=8, type="linear", params="/dev/sda 0"),),
)
BUFFER = linux.build(MESSAGE)
PLIST = proplib.dumps(translate.from_binary(BUFFER, LOAD))


def read(data: bytes, **options: object) -> list[Capture]:
    return list(captures.read(io.BytesIO(data), **options))


def test_a_raw_buffer() -> None:
    (capture,) = read(BUFFER, command=LOAD)
    assert (capture.data, capture.form, capture.command, capture.reply) == (BUFFER, Form.BINARY, LOAD, False)


def xxd(data: bytes) -> str:
    def text(row: bytes) -> str:
        return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)

    rows = [(at, data[at : at + 16]) for at in range(0, len(data), 16)]
    return "".join(f"{at:08x}: {row.hex(' ', 2):<39}  {text(row)}\n" for at, row in rows)


DUMPS = {
    "plain": BUFFER.hex(),
    "upper case": BUFFER.hex().upper(),
    "lines of 4 bytes": "\n".join(BUFFER[at : at + 4].hex() for at in range(0, len(BUFFER), 4)),
    "spaces": BUFFER.hex(" "),
    "xxd": xxd(BUFFER),
    "elided": f"{BUFFER[:400].hex()}*{len(BUFFER) - 400}:00\n",
}


@pytest.mark.parametrize("style", DUMPS)
def test_hex_dumps(style: str) -> None:
    (capture,) = read(DUMPS[style].encode())
    assert capture.data == BUFFER
    assert capture.form is Form.BINARY


@pytest.mark.parametrize(
    "command",
    [["xxd"], ["xxd", "-p"], ["hexdump", "-C"], ["hexdump", "-vC"], ["od", "-Ax", "-tx1"], ["od", "-Ax", "-tx1z"]],
    ids=" ".join,
)
def test_dumps_of_real_tools(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    dump = subprocess.run(command, input=BUFFER, capture_output=True, check=True).stdout
    (capture,) = read(dump)
    assert capture.data == BUFFER


@given(st.binary(min_size=1, max_size=200))
def test_xxd_of_anything(data: bytes) -> None:
    assert captures.unhex(xxd(data)) == data


@given(st.one_of(st.binary(max_size=200), st.text('0123456789abcdef:*| \n{}<>"', max_size=200).map(str.encode)))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    try:
        found = read(data)
    except BadMessage as error:
        assert str(error)
        return
    assert all(capture.data for capture in found)


def test_a_dump_of_a_plist_is_a_plist() -> None:
    (capture,) = read(PLIST.hex().encode())
    assert (capture.data, capture.form) == (PLIST, Form.PLIST)


@pytest.mark.parametrize("text", ["04 0", "0400 zz", "04*x:00", "04*3:0"])
def test_bad_dumps_name_the_line(text: str) -> None:
    with pytest.raises(BadMessage, match="line 2"):
        captures.unhex(f"0400\n{text}")


def test_plists_after_each_other() -> None:
    found = read(b"\n" + PLIST + b"\0\n" + PLIST)
    assert [capture.data.rstrip(b"\n") for capture in found] == [PLIST.rstrip(b"\n")] * 2
    assert [capture.where for capture in found] == ["offset 1", f"offset {len(PLIST) + 3}"]


def test_a_plist_that_breaks_off_is_still_shown_to_the_parser() -> None:
    first, second = read(PLIST + PLIST[:50])
    assert first.data.rstrip() == PLIST.rstrip()
    assert second.data == PLIST[:50]


def test_json_one_a_line_or_one_in_all() -> None:
    line = b'{"command":"names","version":[4,0,0]}'
    assert [capture.data for capture in read(line + b"\n\n" + line + b"\n")] == [line, line]
    odd = b'{"command":"rename","cmd_data":["\xff"]}'
    assert [capture.data for capture in read(odd + b"\n" + odd)] == [odd, odd]
    pretty = b'{\n  "command": "names"\n}\n'
    (capture,) = read(pretty)
    assert (capture.data, capture.form) == (pretty, Form.JSON)


def test_socket_frames() -> None:
    frame = b"DMIO" + LOAD.ioctl.to_bytes(4, "little") + len(BUFFER).to_bytes(4, "little") + BUFFER
    first, second = read(frame * 2)
    assert (first.command, first.data) == (LOAD, BUFFER)
    assert second.where == f"offset {len(frame)}"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"DMIO\x09\xfd\x38\xc1\x05\0\0\0abc", "a size and its bytes at offset 0"),
        (b"DMIO\x09\xfe\x38\xc1\0\0\0\0", "none of device-mapper's at offset 4"),
        (b"", "nothing there"),
        (b"{}\nx\n", "line 2: no JSON"),
        (b"{}\n" + b'{"a":' * 100_000 + b"\n", "line 2: no JSON"),
        (b'{"op":"x","cmd":"VERSION","request":"xx"}', "line 1: request: 'xx' is no line of a hex dump"),
        (b'{"op":"x","request":"\\ud800"}', "line 1: request: a surrogate"),
        (b'{"op":"x","request":"<","label":"\\ud800"}', "line 1: label: a surrogate"),
        (b"ioctl(3, DM_VERSION, [{version=[4, 0, 0], data_size=1073741824}]) = 0\n", "line 1: more than 67108864 by"),
    ],
)
def test_broken_files_name_the_place(data: bytes, words: str) -> None:
    with pytest.raises(BadMessage, match=words):
        read(data)


@pytest.mark.parametrize("log", [b"ioctl(1, TCGETS, {c_iflag=0}) = 0\n", b"+++ exited with 1 +++\n"])
def test_a_log_of_strace_without_ioctls_of_device_mapper_is_told_so(log: bytes) -> None:
    with pytest.raises(BadMessage, match="no ioctl of device-mapper"):
        read(log)


@pytest.mark.parametrize(
    "step", [{"op": "x", "cmd": []}, {"op": "x", "ioctls": 5}, {"ioctls": [7, {"ioctls": [{"cmd": "VERSION"}]}]}]
)
def test_a_step_without_calls_holds_no_message(step: dict[str, object]) -> None:
    assert read(json.dumps(step).encode()) == []


@pytest.mark.parametrize("content", [b"[]", BUFFER, b"ioctl(3, DM_VERSION, 0x55a8bf4b59a0) = 0"])
@pytest.mark.parametrize("form", Form)
def test_a_form_that_is_told_is_not_found_out(form: Form, content: bytes) -> None:
    try:
        (capture,) = read(content, form=form)
    except BadMessage as error:  # JSON on one line is looked into
        assert (form, content, error.path) == (Form.JSON, b"[]", "line 1")
    else:
        assert (capture.form, capture.data.strip(b"\0")) == (form, content.strip(b"\0"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recordings(path: Path) -> None:
    """Every recorded ioctl of a file comes out, in order and with its bytes."""
    expected = []
    for line in path.read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        for call in [step, *step.get("ioctls", ())]:
            if call.get("cmd") in BY_NAME:
                data = [expand(call[key]) for key in ("request", "written") if call.get(key)]
                expected += [(call["cmd"], call.get("errno", ""), one) for one in data]
    with path.open("rb") as stream:
        found = [(c.command.name, c.result, c.data) for c in captures.read(stream) if c.command]
    assert found == expected


def test_strace() -> None:
    log = (
        b'ioctl(3, DM_DEV_RENAME, [{version=[4, 0, 0], data_size=16384, data_start=312, name="\\x78", flags=0}, '
        b'{string="\\x79"}] => [{version=[4, 47, 0], data_size=305, data_start=312, name="\\x78", flags=0}]) = 0\n'
        b"ioctl(3, DM_GET_TARGET_VERSION, 0x55a8bf4b59a0) = 0\n"
    )
    request, reply, bare = read(log)
    assert linux.parse(request.data, BY_NAME["DEV_RENAME"]).payload == "y"
    assert (reply.reply, reply.where, reply.result, len(reply.data)) == (True, "line 1", "0", 305)
    assert (bare.data, bare.command) == (b"", BY_NAME["GET_TARGET_VERSION"])
    assert "address" in bare.note


class Endless(io.RawIOBase):
    """An endless stream that counts what was taken from it."""

    def __init__(self, piece: bytes) -> None:
        self.piece, self.taken = piece, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)
        size = len(view)
        start = self.taken % len(self.piece)
        view[:] = (self.piece * (2 + size // len(self.piece)))[start : start + size]
        self.taken += size
        return size


@pytest.mark.parametrize(
    "piece", [PLIST, b'{"command":"names"}\n', b'{"op":"sleep","ms":1}\n{"cmd":"VERSION","request":"04*11:00"}\n']
)
def test_long_files_are_read_as_they_are_used(piece: bytes) -> None:
    source = Endless(piece)
    messages: Iterator[Capture] = captures.read(io.BufferedReader(source))
    for _ in range(100):
        next(messages)
    assert source.taken < 4 << 20


@pytest.mark.parametrize("piece", [b"<plist>", b'{"command":"names",'])
def test_an_endless_message_is_refused(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "MAX_MESSAGE", 4 << 20)
    with pytest.raises(MessageTooLarge):
        next(captures.read(io.BufferedReader(Endless(piece))))
