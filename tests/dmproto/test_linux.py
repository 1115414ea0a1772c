"""dmproto.linux against the recordings, and against bytes that no recording has."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.linux_vectors import FILES, ioctls

from dmproto import linux
from dmproto.commands import BY_NAME, COMMANDS, Command
from dmproto.errors import BadBinary
from dmproto.flags import DmFlag
from dmproto.records import DeviceEntry, Header, Message, TargetMessage, TargetSpec, TargetVersion
from dmproto.wire import huge_decode, huge_encode, to_bytes

LOAD, STATUS, LIST = BY_NAME["TABLE_LOAD"], BY_NAME["TABLE_STATUS"], BY_NAME["LIST_DEVICES"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recorded_message_is_parsed_and_rebuilt(path: Path) -> None:
    seen = 0
    for step in ioctls(path):
        if step["errno"] != "0" or step["cmd"] not in BY_NAME:
            continue
        command = BY_NAME[step["cmd"]]
        for data, reply in ((step["request"], False), (step["written"], True)):
            message = linux.parse(data, command, reply=reply)
            assert linux.build(message) == data, (step["line"], step["cmd"])
            seen += 1
    assert seen


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_decoded_replies_agree_with_the_recorder(path: Path) -> None:
    """`hdr`, `data` and `targets` were decoded by the recorder's own code."""
    for step in ioctls(path):
        if step["errno"] != "0" or step["cmd"] not in BY_NAME:
            continue
        command = BY_NAME[step["cmd"]]
        reply = linux.parse(step["written"], command, reply=True)
        if "hdr" in step and len(step["written"]) > 12:
            _agree_header(reply.header, step["hdr"])
        if "data" in step:
            _agree_data(reply, step["data"])
        if "targets" in step:
            request = linux.parse(step["request"], command)
            assert isinstance(request.payload, tuple)
            lines = [[t.start, t.length, t.type, t.params] for t in request.payload if isinstance(t, TargetSpec)]
            assert lines == step["targets"][: request.header.target_count], step["line"]
        if "message" in step:
            request = linux.parse(step["request"], command)
            assert isinstance(request.payload, TargetMessage)
            assert [request.payload.sector, request.payload.message] == step["message"]


def _agree_header(header: Header, recorded: dict[str, object]) -> None:
    assert list(header.version) == recorded["version"]
    for name in ("data_size", "data_start", "target_count", "open_count", "event_nr", "padding"):
        assert getattr(header, name) == recorded[name], name
    major, minor = huge_decode(header.dev)
    assert recorded["dev"] in ("", f"{major}:{minor}")


def _agree_data(reply: Message, recorded: Any) -> None:
    """The recorder read text as Latin-1."""
    if isinstance(recorded, dict):
        assert list(cast(Any, reply.payload)) == recorded["dev"]
        return
    if not isinstance(reply.payload, tuple):
        assert reply.payload == recorded or (reply.payload is None and not recorded)
        return
    # in a full buffer the last `next` may be stale, and the recorder walked in circles
    offsets = [expected["off"] for expected in recorded]
    ends = [n for n in range(1, len(offsets)) if offsets[n] <= offsets[n - 1]]
    for record, expected in zip(reply.payload, recorded[: ends[0] if ends else None], strict=True):
        if isinstance(record, TargetVersion):
            assert to_bytes(record.name) == expected["name"].encode("latin-1")
            assert list(record.version) == expected["version"]
        elif isinstance(record, DeviceEntry):
            assert to_bytes(record.name) == expected["name"].encode("latin-1")
            assert record.event_nr == expected["event_nr"]
            assert huge_encode(record.dev) == expected["dev"]
        elif isinstance(record, TargetSpec):
            assert (record.start, record.length) == (expected["start"], expected["len"])
            assert (record.type, record.params) == (expected["type"], expected["params"])


def load(*specs: bytes, count: int | None = None, size: int = 0, start: int = 312) -> bytes:
    """A TABLE_LOAD buffer around raw specs."""
    body = b"".join(specs)
    header = Header(
        data_size=size or start + len(body), data_start=start, target_count=len(specs) if count is None else count
    )
    empty = linux.build(Message(command=LOAD, header=header, size=start))
    return empty + body


def spec(kind: bytes, params: bytes, *, following: int = 0, start: int = 0, length: int = 8) -> bytes:
    numbers = start.to_bytes(8, "little") + length.to_bytes(8, "little") + bytes(4) + following.to_bytes(4, "little")
    return numbers + kind.ljust(16, b"\0") + params


def targets(data: bytes) -> list[tuple[str, str]]:
    payload = linux.parse(data, LOAD).payload
    assert isinstance(payload, tuple)
    return [(t.type, t.params) for t in payload if isinstance(t, TargetSpec)]


class TestTableLoad:
    def test_next_counts_from_the_current_spec_and_needs_no_alignment(self) -> None:
        first = spec(b"linear", b"1:0 0\0", following=46)
        second = spec(b"linear", b"1:1 0\0", following=46, start=8)
        third = spec(b"zero", b"\0", start=16)
        assert targets(load(first, second, third)) == [("linear", "1:0 0"), ("linear", "1:1 0"), ("zero", "")]

    def test_next_of_the_last_spec_is_ignored(self) -> None:
        assert targets(load(spec(b"zero", b"\0", following=0xFFFFFFFF))) == [("zero", "")]

    def test_next_of_40_takes_params_from_the_following_spec(self) -> None:
        data = load(spec(b"zero", b"", following=40), spec(b"error", b"\0", start=0x41))
        assert targets(data) == [("zero", "A"), ("error", "")]

    def test_fewer_counted_than_present(self) -> None:
        assert targets(load(spec(b"zero", b"\0"), spec(b"error", b"\0"), count=1)) == [("zero", "")]

    def test_type_without_nul(self) -> None:
        assert targets(load(spec(b"x" * 16, b"arg\0"))) == [("x" * 16, "arg")]

    def test_specs_may_begin_inside_the_header(self) -> None:
        header = Header(data_size=400, data_start=40, target_count=1)
        data = linux.build(Message(command=LOAD, header=header, size=400))
        message = linux.parse(data, LOAD)
        assert message.payload == (TargetSpec(start=0, length=0, type=""),)
        assert linux.build(message) == data

    def test_undecodable_bytes_survive(self) -> None:
        data = load(spec(b"\xff\xfe", b"\x80\0"))
        assert linux.build(linux.parse(data, LOAD)) == data

    @pytest.mark.parametrize(
        ("data", "offset", "path", "words"),
        [
            (
                load(spec(b"zero", b"\0"), spec(b"zero", b"\0")),
                332,
                "dm_target_spec[0].next",
                "0 bytes from offset 312, expected 40 to 81",
            ),
            (
                load(spec(b"zero", b"\0", following=39), spec(b"zero", b"\0")),
                332,
                "dm_target_spec[0].next",
                "39 bytes from offset 312, expected 40 to",
            ),
            (
                load(spec(b"zero", b"\0", following=1 << 31), count=2),
                332,
                "dm_target_spec[0].next",
                "expected 40 to 40",
            ),
            (load(spec(b"zero", b"\0", following=41), count=2), 332, "dm_target_spec[0].next", "expected 40 to 40"),
            (load(spec(b"zero", b"unterminated")), 352, "dm_target_spec[0].params", "without a NUL"),
            (load(spec(b"zero", b"\0")[:20]), 332, "dm_target_spec[0].next", "expected 4, found 0"),
            (load(spec(b"zero", b"\0"), start=312, size=200), 12, "data_size", "expected 305"),
            (load(spec(b"zero", b"\0"), size=500), 12, "data_size", "only 353"),
        ],
    )
    def test_refusals_name_place_and_expectation(self, data: bytes, offset: int, path: str, words: str) -> None:
        with pytest.raises(BadBinary, match=words) as caught:
            linux.parse(data, LOAD)
        assert caught.value.offset == offset
        assert caught.value.path == path

    @pytest.mark.parametrize("start", [0, 39, 401, 0xFFFFFFFF])
    def test_data_start_outside(self, start: int) -> None:
        data = bytearray(load(spec(b"zero", b"\0"), size=353))
        data[16:20] = start.to_bytes(4, "little")
        with pytest.raises(BadBinary, match=f"data_start: {start}, expected 40 to data_size 353") as caught:
            linux.parse(bytes(data), LOAD)
        assert caught.value.offset == 16

    def test_a_buffer_shorter_than_data_size_is_a_fault(self) -> None:
        with pytest.raises(BadBinary) as caught:
            linux.parse(load(spec(b"zero", b"\0"), size=354), LOAD)
        assert caught.value.errno == errno.EFAULT


class TestReplies:
    def test_status_next_counts_from_the_first_spec(self) -> None:
        specs = tuple(TargetSpec(start=8 * n, length=8, type="linear", params="1:0 0") for n in range(3))
        data = linux.build(Message(command=STATUS, reply=True, payload=specs))
        offsets = [int.from_bytes(data[312 + 48 * n + 20 :][:4], "little") for n in range(3)]
        assert offsets == [48, 96, 144]
        assert len(data) == 312 + 3 * 48 - 2  # ends behind the last NUL
        assert linux.parse(data, STATUS, reply=True).payload == specs

    def test_full_buffer_keeps_the_count_and_gives_what_fitted(self) -> None:
        whole = linux.build(
            Message(
                command=STATUS,
                reply=True,
                header=Header(flags=DmFlag.BUFFER_FULL, target_count=3, data_size=312 + 41, data_start=312),
                payload=(TargetSpec(start=0, length=8, type="zero"),),
            )
        )
        reply = linux.parse(whole, STATUS, reply=True)
        assert reply.header.target_count == 3
        assert reply.payload == (TargetSpec(start=0, length=8, type="zero"),)
        assert linux.build(reply) == whole

    @pytest.mark.parametrize("command", [LIST, STATUS, BY_NAME["TABLE_DEPS"], BY_NAME["TARGET_MSG"]])
    def test_305_bytes_hold_no_data(self, command: Command) -> None:
        data = linux.build(Message(command=command, reply=True))
        assert len(data) == 305
        assert linux.parse(data, command, reply=True).payload is None

    def test_an_empty_list_is_not_absent(self) -> None:
        reply = Message(command=LIST, reply=True, header=Header(version=(4, 47, 0)), payload=())
        data = linux.build(reply)
        assert len(data) == 312
        assert linux.parse(data, LIST, reply=True).payload == ()

    def test_no_dependencies_are_not_absent(self) -> None:
        data = linux.build(Message(command=BY_NAME["TABLE_DEPS"], reply=True, payload=()))
        assert len(data) == 320
        assert linux.parse(data, BY_NAME["TABLE_DEPS"], reply=True).payload == ()

    @pytest.mark.parametrize("version", [(4, 37, 0), (4, 38, 0)])
    def test_lists_tell_events_from_4_38_on(self, version: tuple[int, int, int]) -> None:
        entry = DeviceEntry(name="a", dev=(253, 0), event_nr=7, uuid="U")
        data = linux.build(Message(command=LIST, reply=True, header=Header(version=version), payload=(entry,)))
        told = entry if version >= (4, 38) else DeviceEntry(name="a", dev=(253, 0))
        assert linux.parse(data, LIST, reply=True).payload == (told,)

    def test_twelve_bytes_are_the_version(self) -> None:
        data = linux.build(Message(command=BY_NAME["VERSION"], reply=True, header=Header(version=(4, 47, 0)), size=12))
        assert data == bytes.fromhex("040000002f00000000000000")
        assert linux.parse(data, LOAD, reply=True).header == Header(version=(4, 47, 0))


class TestRequests:
    def test_canonical_request_is_libdevmappers(self) -> None:
        data = linux.build(
            Message(command=LOAD, header=Header(name="x"), payload=(TargetSpec(start=0, length=8, type="zero"),))
        )
        header = linux.parse_header(data)
        assert (len(data), header.data_size, header.data_start, header.target_count) == (16384, 16384, 312, 1)

    def test_a_long_table_gets_the_room_it_needs(self) -> None:
        table = tuple(TargetSpec(start=n, length=1, type="linear", params=f"1:0 {n}") for n in range(1000))
        data = linux.build(Message(command=LOAD, payload=table))
        assert len(data) > 16384
        assert linux.parse(data, LOAD).payload == table

    def test_the_last_byte_of_a_name_does_not_count(self) -> None:
        data = bytearray(linux.build(Message(command=BY_NAME["DEV_CREATE"])))
        data[48:176] = b"n" * 128
        message = linux.parse(bytes(data), BY_NAME["DEV_CREATE"])
        assert message.header.name == "n" * 127
        assert message.residue == ((175, b"n"),)

    @pytest.mark.parametrize("length", [12, 20, 304, 305])
    def test_version_needs_twelve_bytes(self, length: int) -> None:
        data = bytes([4, 0, 0, 0]) + b"\x01" * (length - 4)
        assert linux.build(linux.parse(data, BY_NAME["VERSION"])) == data

    @pytest.mark.parametrize(("name", "length"), [("VERSION", 11), ("DEV_CREATE", 304), ("DEV_CREATE", 0)])
    def test_too_short(self, name: str, length: int) -> None:
        with pytest.raises(BadBinary, match=f"{length} bytes") as caught:
            linux.parse(bytes(length), BY_NAME[name])
        assert caught.value.offset == length

    @pytest.mark.parametrize(
        ("message", "path"),
        [
            (Message(command=LOAD, header=Header(name="n" * 128)), "name"),
            (Message(command=LOAD, header=Header(uuid="a\0b")), "uuid"),
            (Message(command=LOAD, header=Header(dev=1 << 64)), "dev"),
            (
                Message(command=LOAD, payload=(TargetSpec(start=-1, length=0, type="zero"),)),
                "dm_target_spec[0].sector_start",
            ),
            (
                Message(command=LOAD, payload=(TargetSpec(start=0, length=0, type="t" * 17),)),
                "dm_target_spec[0].target_type",
            ),
            (Message(command=LOAD, size=1 << 31), "size"),
        ],
    )
    def test_unbuildable(self, message: Message, path: str) -> None:
        with pytest.raises(BadBinary) as caught:
            linux.build(message)
        assert caught.value.path == path

    def test_residue_beyond_the_message(self) -> None:
        with pytest.raises(BadBinary, match="residue"):
            linux.build(Message(command=LOAD, size=312, residue=((311, b"ab"),)))


@given(
    st.sampled_from(COMMANDS),
    st.booleans(),
    st.binary(max_size=64),
    st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=8),
)
@example(LOAD, False, b"", [])
def test_whatever_is_accepted_is_rebuilt(
    command: Command, reply: bool, data: bytes, pokes: list[tuple[int, int]]
) -> None:
    """Random data behind a plausible header, with a few random bytes poked into the whole."""
    header = Header(version=(4, 40, 0), data_size=312 + len(data), data_start=312, target_count=2)
    buffer = bytearray(linux.build(Message(command=BY_NAME["DEV_STATUS"], header=header, size=312)) + data)
    for offset, value in pokes:
        buffer[offset % len(buffer)] = value
    try:
        message = linux.parse(bytes(buffer), command, reply=reply)
    except BadBinary as error:
        place = error.offset
        message = None
    if message is None:
        assert place is not None
        assert place <= len(buffer)
        return
    assert linux.build(message) == buffer
    canonical = linux.build(replace(message, residue=()))
    assert len(canonical) == len(buffer)
