"""Hypothesis strategies for device-mapper messages in every form. Needs the extra `strategies`.

`messages`, `buffers`, `dictionaries`, `plists` and `jsons` draw what every reader takes; with `nearly` they draw what
is one step away from it: a byte changed, an end cut off, a key missing or of another type. `tables` draws tables
that constructors of linear, striped, zero and error take.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("dmproto.strategies needs hypothesis: pip install 'dmproto[strategies]'") from error

from . import linux, proplib, translate
from .commands import COMMANDS, Command, CommandFlag, Payload
from .flags import DmFlag
from .records import DeviceEntry, Header, Message, Payloads, TargetMessage, TargetSpec, TargetVersion
from .wire import DM_NAME_LEN, DM_UUID_LEN, Dev, huge_encode, to_text

__all__ = [
    "buffers",
    "commands",
    "devs",
    "dictionaries",
    "jsons",
    "messages",
    "names",
    "plists",
    "tables",
    "target_specs",
    "texts",
    "uuids",
]

_U32, _U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
_TYPES = st.sampled_from(["linear", "striped", "zero", "error", "crypt", "snapshot-origin", "x" * 16, ""])


def texts(max_bytes: int, *, min_bytes: int = 0, without: bytes = b"") -> st.SearchStrategy[str]:
    """Any text that fits into so many bytes, mostly readable, and holds neither NUL nor the bytes of `without`."""
    forbidden = {0, *without}
    allowed = st.sampled_from([byte for byte in range(256) if byte not in forbidden])
    readable = st.sampled_from([byte for byte in b"abcxyz019-_.:+ @" if byte not in forbidden])
    raw = st.lists(st.one_of(readable, allowed), min_size=min_bytes, max_size=min(max_bytes, 40))
    longest = st.just([ord("n")] * max_bytes)
    return st.one_of(raw, raw, raw, longest).map(lambda data: to_text(bytes(data)))


def names() -> st.SearchStrategy[str]:
    """Names that a device can have: 1 to 127 bytes, no `/`."""
    return texts(DM_NAME_LEN - 1, min_bytes=1, without=b"/")


def uuids() -> st.SearchStrategy[str]:
    """uuids that a device can have: 1 to 128 bytes."""
    return texts(DM_UUID_LEN - 1, min_bytes=1)


def devs() -> st.SearchStrategy[Dev]:
    """Device numbers: a major of 12 bits, a minor of 20."""
    return st.tuples(st.integers(0, 0xFFF), st.one_of(st.integers(0, 300), st.integers(0, 0xFFFFF)))


def commands() -> st.SearchStrategy[Command]:
    """Every command there is."""
    return st.sampled_from(COMMANDS)


def target_specs() -> st.SearchStrategy[TargetSpec]:
    """A line of a table, of any type and with any parameters."""
    return st.builds(TargetSpec, start=_U64, length=_U64, type=_TYPES, params=texts(200))


@st.composite
def tables(draw: st.DrawFn, device: str = "1:0", size: int = 1 << 20) -> tuple[TargetSpec, ...]:
    """A table without gaps whose lines lie on `device` (a path or MAJ:MIN), a device of `size` sectors."""
    specs, start = [], 0
    for length in draw(st.lists(st.integers(1, 64).map(lambda n: 8 * n), min_size=1, max_size=5)):
        kind = draw(st.sampled_from(["linear", "striped", "zero", "error"]))
        offset = draw(st.integers(0, max(0, size - length)))
        params = {"linear": f"{device} {offset}", "striped": f"1 8 {device} {offset}"}.get(kind, "")
        specs.append(TargetSpec(start=start, length=length, type=kind, params=params))
        start += length
    return tuple(specs)


def _payload(kind: Payload, header: Header) -> st.SearchStrategy[Payloads]:
    told = header.version[:2] >= linux.EVENT_NR_SINCE
    match kind:
        case Payload.TARGET_SPECS:
            return st.one_of(tables(), st.lists(target_specs(), min_size=1, max_size=4).map(tuple))
        case Payload.NAME_LIST:
            name = st.one_of(names(), st.just("")) if told else names()
            uuid = st.one_of(st.none(), st.just(""), uuids()) if told else st.none()
            event_nr = _U32 if told else st.just(0)
            return st.lists(st.builds(DeviceEntry, name=name, dev=devs(), event_nr=event_nr, uuid=uuid)).map(tuple)
        case Payload.TARGET_VERSIONS:
            version = st.tuples(_U32, _U32, _U32)
            return st.lists(st.builds(TargetVersion, name=texts(15, min_bytes=1), version=version), min_size=1).map(
                tuple
            )
        case Payload.TARGET_DEPS:
            return st.lists(devs().map(huge_encode), max_size=5).map(tuple)
        case Payload.TARGET_MSG:
            return st.builds(TargetMessage, sector=_U64, message=texts(100))
        case Payload.TEXT:
            return texts(100)
    return st.none()


@st.composite
def messages(draw: st.DrawFn, command: Command | None = None, reply: bool | None = None) -> Message:
    """A message without residue, as `linux.parse` makes it: whatever it says, its buffer is canonical."""
    command = draw(commands()) if command is None else command
    reply = draw(st.booleans()) if reply is None else reply
    kind = command.gives if reply else command.takes
    header = Header(
        version=draw(st.sampled_from([(4, 0, 0), (4, 16, 0), (4, 47, 0), (4, 48, 0)])),
        open_count=draw(st.integers(0, 9)) if reply else 0,
        flags=draw(st.integers(0, 2**20 - 1)),
        event_nr=draw(st.one_of(st.just(0), _U32)),
        dev=draw(st.one_of(st.just(0), devs().map(huge_encode))),
        name=draw(st.one_of(st.just(""), names())),
        uuid=draw(st.one_of(st.just(""), uuids())),
    )
    payload = draw(_payload(kind, header))
    if kind is Payload.TEXT and reply:
        header = replace(header, flags=header.flags | DmFlag.DATA_OUT.value)
    if reply and CommandFlag.HEADER_ONLY in command.flags:
        header = Header(version=header.version)
    whole = linux.build(Message(command=command, reply=reply, header=header, payload=payload))
    return linux.parse(whole, command, reply=reply)


@st.composite
def buffers(
    draw: st.DrawFn, command: Command | None = None, reply: bool | None = None, *, nearly: bool = False
) -> tuple[bytes, Command, bool]:
    """A binary message, with its command and whether it is a reply."""
    message = draw(messages(command, reply))
    data = linux.build(message)
    if nearly:
        interesting = st.one_of(st.integers(0, 47), st.integers(305, 420), st.integers(0, len(data)))
        data = _spoil(draw, data, interesting)
    return data, message.command, message.reply


def _spoil(draw: st.DrawFn, data: bytes, offsets: st.SearchStrategy[int]) -> bytes:
    """Change some bytes, or cut the end off, or add to it."""
    spoiled = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(offsets)
        match draw(st.sampled_from(["change", "change", "cut", "add"])):
            case "change" if at < len(spoiled):
                spoiled[at] = draw(st.sampled_from([0, 1, 0x28, 0x7F, 0xFF, *b'<>/&"{}x0']))
            case "cut":
                del spoiled[at:]
            case "add":
                spoiled += draw(st.binary(min_size=1, max_size=9))
    return bytes(spoiled)


@st.composite
def dictionaries(
    draw: st.DrawFn, command: Command | None = None, reply: bool | None = None, *, nearly: bool = False
) -> dict[str, Any]:
    """NetBSD's dictionary of a message, as property-list objects."""
    obj = translate.to_dictionary(draw(messages(command, reply)))
    if nearly:
        key = draw(st.sampled_from([*obj, "cmd_data", "minor", "other"]))
        if draw(st.booleans()):
            obj.pop(key, None)
        else:
            obj[key] = draw(
                st.sampled_from(["", "text", 7, -1, proplib.Unsigned(2**64 - 1), True, b"data", [], {}, [{}]])
            )
    return obj


@st.composite
def plists(
    draw: st.DrawFn, command: Command | None = None, reply: bool | None = None, *, nearly: bool = False
) -> bytes:
    """The dictionary of a message as property-list text; `nearly`: spoiled as a dictionary or as text."""
    as_text = nearly and draw(st.booleans())
    text = proplib.dumps(draw(dictionaries(command, reply, nearly=nearly and not as_text)))
    return _spoil(draw, text, st.integers(0, len(text))) if as_text else text


@st.composite
def jsons(draw: st.DrawFn, command: Command | None = None, reply: bool | None = None, *, nearly: bool = False) -> bytes:
    """The dictionary of a message in JSON; `nearly`: with bytes changed."""
    text = proplib.dumps_json(draw(dictionaries(command, reply)))
    return _spoil(draw, text, st.integers(0, len(text))) if nearly else text
