"""The dictionary as NetBSD's design draft of 2008 has it ("Desing of new device-mapper ioctl interface").

It differs from the form that shipped: `version` is a string, `dev` a whole dev_t, a target has `sector_start`,
`target_type` and `aditional info` (so spelled; the right spelling is read too), and what a command takes or gives is a
dictionary nested in the first, without a key of its own, with a child for each record: `<dict ID="id">`.

A property list has neither attributes on dictionaries nor dictionaries without a key. `loads` reads both as the
draft means them: the ID is the key of the child, the nested dictionary is `cmd_data`. `dumps` writes those keys out, so
that the text is a property list. The draft leaves the command to the ioctl's number; we write it under `command`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from . import netbsd, proplib
from .commands import BY_VERB, Command, Payload
from .errors import BadDictionary, BadPlist
from .linux import DM_MAX_TYPE_NAME
from .netbsd import DM_MAJOR
from .objects import Dictionary, Key, Number, String, describe
from .records import DeviceEntry, Message
from .wire import DM_NAME_LEN, DM_UUID_LEN, huge_decode, huge_encode, netbsd_decode, netbsd_encode

__all__ = ["CMD_DATA", "HEADER", "build", "dumps", "loads", "looks_like", "parse"]

_u32, _u64 = Number(32), Number(64)

# fmt: off
HEADER = Dictionary(
    Key("command", String(), required=True, flow="in", source="ours"),
    Key("version", String(), flow="in/out", source="version"),
    Key("target_count", _u32, flow="in/out", source="target_count"),
    Key("open_count", _u32, flow="out", source="open_count"),
    Key("flags", _u32, flow="in/out", source="flags"),
    Key("event_nr", _u32, flow="in/out", source="event_nr"),
    Key("dev", _u64, flow="in/out", source="dev"),
    Key("name", String(DM_NAME_LEN - 1), flow="in/out", source="name"),
    Key("uuid", String(DM_UUID_LEN - 1), flow="in/out", source="uuid"),
)

#: The children of the nested dictionary, or the nested dictionary itself where there is one record only.
CMD_DATA: dict[Payload, Dictionary] = {
    Payload.TARGET_SPECS: Dictionary(
        Key("sector_start", _u64, required=True, flow="in/out", source="sector_start"),
        Key("length", _u64, required=True, flow="in/out", source="length"),
        Key("target_type", String(DM_MAX_TYPE_NAME), required=True, flow="in/out", source="target_type"),
        Key("aditional info", String(), flow="in/out", source="the string behind the struct"),
        Key("status", Number(32, signed=True), flow="out", source="ours"),
    ),
    Payload.NAME_LIST: Dictionary(
        Key("dev", _u64, required=True, flow="out", source="dev"),
        Key("name", String(), required=True, flow="out", source="name"),
        Key("event_nr", _u32, flow="out", source="ours"),
        Key("uuid", String(), flow="out", source="ours"),
    ),
    Payload.TARGET_VERSIONS: Dictionary(
        Key("version", String(), required=True, flow="out", source="version"),
        Key("name", String(), required=True, flow="out", source="name"),
    ),
    Payload.TARGET_DEPS: Dictionary(Key("dev", _u64, required=True, flow="out", source="ours")),
    Payload.TARGET_MSG: Dictionary(
        Key("sector", _u64, flow="in", source="ours"),
        Key("message", String(), required=True, flow="in", source="ours"),
    ),
    Payload.TEXT: Dictionary(Key("name", String(), required=True, flow="in/out", source="name")),
}
# fmt: on

_LISTS = (Payload.TARGET_SPECS, Payload.NAME_LIST, Payload.TARGET_VERSIONS, Payload.TARGET_DEPS)
_SHIPPED = {"sector_start": "start", "target_type": "type", "aditional info": "params"}
_DRAFTED = {shipped: drafted for drafted, shipped in _SHIPPED.items()}


def parse(obj: object, *, reply: bool = False, major: int = DM_MAJOR) -> Message:
    """The message that a draft dictionary says. Raises BadDictionary with the key path."""
    fields = HEADER.load(obj)
    assert isinstance(obj, dict)
    if "version" in fields:
        fields["version"] = _numbers(fields["version"], "version")
    dev = fields.pop("dev", 0)
    command = BY_VERB.get(fields["command"])
    kind = Payload.NONE if command is None else command.gives if reply else command.takes
    records = list(_children(obj, kind))
    if records or "cmd_data" in obj or (kind in _LISTS and not reply):
        fields["cmd_data"] = [_shipped(record, kind) for record in records]
    message = netbsd.parse(fields, reply=reply, major=major)
    payload = message.payload
    if kind is Payload.NAME_LIST and isinstance(payload, tuple):
        pairs = zip(payload, records, strict=True)
        payload = tuple(replace(e, dev=netbsd_decode(r["dev"])) for e, r in pairs if isinstance(e, DeviceEntry))
    header = replace(message.header, dev=huge_encode(netbsd_decode(dev)))
    message = replace(message, header=header, payload=payload, keys=())
    return replace(message, keys=netbsd.difference(obj, build(message)))


def build(message: Message, *, major: int = DM_MAJOR) -> dict[str, Any]:
    """The draft dictionary of a message. The inverse of `parse`."""
    command, header = message.command, message.header
    shipped = netbsd.build(replace(message, keys=()))
    fields = {key: shipped[key] for key in HEADER.by_name if key in shipped and key != "version"}
    fields["version"] = "{}.{}.{}".format(*header.version)
    if header.dev:
        fields["dev"] = netbsd_encode(huge_decode(header.dev))
    obj: dict[str, Any] = HEADER.dump(fields)
    if message.payload is not None:
        kind = command.gives if message.reply else command.takes
        records = [_drafted(record, kind) for record in shipped["cmd_data"]]
        if kind is Payload.NAME_LIST and isinstance(message.payload, tuple):
            for record, entry in zip(records, message.payload, strict=True):
                record["dev"] = netbsd_encode(entry.dev) if isinstance(entry, DeviceEntry) else entry
        objects = [CMD_DATA[kind].dump(record) for record in records]
        width = len(str(len(objects) - 1))
        children = {f"{index:0{width}}": child for index, child in enumerate(objects)}
        obj["cmd_data"] = children if kind in _LISTS else objects[0]
    return netbsd.apply(obj, message.keys)


def loads(data: bytes, *, command: Command | None = None) -> dict[str, Any]:
    """A draft text as a dictionary. `command` is taken where the text has none. Raises BadPlist as proplib does."""
    obj = proplib.loads(_keyed(data))
    if not isinstance(obj, dict):
        raise BadPlist("the property list is no dictionary")
    if command is not None:
        obj.setdefault("command", command.verbs[0])
    return obj


def dumps(obj: dict[str, Any]) -> bytes:
    """A draft dictionary as a property list that proplib reads."""
    return proplib.dumps(obj)


def looks_like(data: bytes) -> bool:
    """Whether a text is the draft's form: a dictionary with an ID, or a version that is a string."""
    return re.search(rb"<dict\s+ID=|<key>version</key>\s*<string>", data) is not None


#: What decides whether a dictionary follows a key. A comment without an end takes the rest, so this is O(n).
_TAG = re.compile(rb'<!--(?:.*?-->|.*)|<(/?)(dict|array|key|[a-z]+)(?:\s+ID="([^"<>&]*)")?[^<>]*>', re.S)


def _keyed(data: bytes) -> bytes:
    """The text with a key before each dictionary that has none: its ID, or `cmd_data` at the top."""
    parts: list[bytes] = []
    stack: list[tuple[bytes, set[bytes]]] = []  # open containers: name, IDs met
    place, named = 0, False
    for tag in _TAG.finditer(data):
        closing, name, identity = tag[1], tag[2], tag[3]
        if name not in (b"dict", b"array"):
            named = name == b"key" or (named and name is None)
            continue
        if closing:
            del stack[-1:]
        elif not tag[0].endswith(b"/>"):
            if name == b"dict":
                parts.append(data[place : tag.start()])
                place = tag.end()
                if stack and stack[-1][0] == b"dict" and not named:
                    key = identity or (b"cmd_data" if len(stack) == 1 else b"id")
                    parts.append(b"<key>" + _fresh(key, stack[-1][1]) + b"</key>")
                parts.append(b"<dict>" if identity is not None else tag[0])
            stack.append((name, set()))
        named = False
    parts.append(data[place:])
    return b"".join(parts)


def _fresh(key: bytes, met: set[bytes]) -> bytes:
    """A key that is not yet there: children may share an ID."""
    if key in met:
        key = b"%b.%d" % (key, len(met))
    met.add(key)
    return key


def _children(obj: dict[str, Any], kind: Payload) -> Iterator[dict[str, Any]]:
    """The records of the nested dictionary, checked. Children may also stand at the top, as the draft's lists do."""
    if kind is Payload.NONE:
        return
    nested, path = obj.get("cmd_data"), "cmd_data."
    if nested is None:
        known = {*HEADER.by_name, "dm_ioctl"}
        nested, path = {key: value for key, value in obj.items() if key not in known and isinstance(value, dict)}, ""
    if not isinstance(nested, dict):
        raise CMD_DATA[kind].expected(nested, "cmd_data")
    if nested and not all(isinstance(child, dict) for child in nested.values()):
        nested, path = {"cmd_data": nested}, ""
    for key, child in nested.items():
        if isinstance(child, dict) and "additional info" in child:
            child = {"aditional info": child["additional info"], **child}
        yield CMD_DATA[kind]._parse(child, {}, path + key)


def _shipped(record: dict[str, Any], kind: Payload) -> Any:
    """A child as an element of cmd_data in the form as shipped."""
    match kind:
        case Payload.TEXT:
            return record["name"]
        case Payload.TARGET_DEPS:
            return record["dev"]
        case Payload.TARGET_VERSIONS:
            return {"name": record["name"], "ver": _numbers(record["version"], "cmd_data.version")}
        case Payload.NAME_LIST:
            return {**record, "dev": netbsd_decode(record["dev"])[1]}
    return {_SHIPPED.get(key, key): value for key, value in record.items()}


def _drafted(element: Any, kind: Payload) -> dict[str, Any]:
    """The inverse of `_shipped`."""
    match kind:
        case Payload.TEXT:
            return {"name": element}
        case Payload.TARGET_DEPS:
            return {"dev": element}
        case Payload.TARGET_VERSIONS:
            return {"name": element["name"], "version": "{}.{}.{}".format(*map(int, element["ver"]))}
    return {_DRAFTED.get(key, key): value for key, value in element.items()}


def _numbers(text: str, path: str) -> list[int]:
    """The three numbers of a version string."""
    if not re.fullmatch(r"[0-9]{1,10}\.[0-9]{1,10}\.[0-9]{1,10}", text, re.A):
        raise BadDictionary(f'expected a version such as "4.0.0", got {describe(text)}', path=path)
    return [int(number) for number in text.split(".")]
