"""NetBSD's form: the property-list dictionary as its driver ships it (sys/dev/dm/netbsd-dm.h, dm_ioctl.c).

`HEADER` holds the top-level keys and `CMD_DATA` the forms of `cmd_data`; they are Construct schemas and, printed,
the tables of specs/netbsd-dictionary.md. `parse` and `build` go between an object and a `records.Message`.

The commands that the driver lacks have a dictionary too, in the manner of libdm-nbsd-iface.c: what Linux puts behind
the header stands in `cmd_data`, a string alone (rename, setgeometry, the answer to a message) or dictionaries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .commands import BY_VERB, Command, Payload
from .errors import BadDictionary
from .flags import DmFlag
from .linux import DM_MAX_TYPE_NAME
from .objects import Array, Dictionary, Key, Number, String, describe, same
from .records import DeviceEntry, Header, Keys, Message, Payloads, TargetMessage, TargetSpec, TargetVersion
from .wire import DM_NAME_LEN, DM_UUID_LEN, huge_decode, huge_encode

__all__ = ["CMD_DATA", "DM_MAJOR", "HEADER", "WRITTEN", "apply", "build", "difference", "parse", "verb"]

#: Block major of device-mapper where the dictionary tells a minor only.
DM_MAJOR = 253

_u32, _u64, _VERSION = Number(32), Number(64), Array(Number(32), 3)

# fmt: off
HEADER = Dictionary(
    Key("command", String(), required=True, flow="in", source="DM_IOCTL_COMMAND"),
    Key("version", _VERSION, flow="in/out", source="DM_IOCTL_VERSION"),
    Key("name", String(DM_NAME_LEN - 1), flow="in/out", source="DM_IOCTL_NAME"),
    Key("uuid", String(DM_UUID_LEN - 1), flow="in/out", source="DM_IOCTL_UUID"),
    Key("minor", _u32, flow="in/out", source="DM_IOCTL_MINOR"),
    Key("flags", _u32, flow="in/out", source="DM_IOCTL_FLAGS"),
    Key("open_count", _u32, flow="out", source="DM_IOCTL_OPEN"),
    Key("target_count", _u32, flow="out", source="DM_IOCTL_TARGET_COUNT"),
    Key("event_nr", _u32, flow="in/out", source="DM_IOCTL_EVENT"),
)

TARGET = Dictionary(
    Key("start", _u64, required=True, flow="in/out", source="DM_TABLE_START"),
    Key("length", _u64, required=True, flow="in/out", source="DM_TABLE_LENGTH"),
    Key("type", String(DM_MAX_TYPE_NAME), required=True, flow="in/out", source="DM_TABLE_TYPE"),
    Key("params", String(), flow="in/out", source="DM_TABLE_PARAMS"),
    Key("status", Number(32, signed=True), flow="out", source="DM_TABLE_STAT"),
)
DEVICE = Dictionary(
    Key("dev", _u32, required=True, flow="out", source="DM_DEV_DEV"),
    Key("name", String(), required=True, flow="out", source="DM_DEV_NAME"),
    Key("event_nr", _u32, flow="out"),
    Key("uuid", String(), flow="out"),
)
TARGET_VERSION = Dictionary(
    Key("name", String(), required=True, flow="out", source="DM_TARGETS_NAME"),
    Key("ver", _VERSION, required=True, flow="out", source="DM_TARGETS_VERSION"),
)
MESSAGE = Dictionary(
    Key("sector", _u64, flow="in"),
    Key("message", String(), required=True, flow="in"),
)

#: The forms of cmd_data, by what the command takes (in a request) or gives (in a reply).
CMD_DATA: dict[Payload, Array] = {
    Payload.TARGET_SPECS: Array(TARGET),
    Payload.NAME_LIST: Array(DEVICE),
    Payload.TARGET_VERSIONS: Array(TARGET_VERSION),
    Payload.TARGET_DEPS: Array(_u64),
    Payload.TARGET_MSG: Array(MESSAGE),
    Payload.TEXT: Array(String()),
}

#: Keys that a successful reply holds whatever their value. Others are there when they say something.
WRITTEN: dict[str, frozenset[str]] = {
    "DEV_STATUS": frozenset({"open_count", "target_count", "uuid"}),
    "DEV_SUSPEND": frozenset({"open_count"}),
    "DEV_RENAME": frozenset({"open_count", "uuid"}),
    "TABLE_DEPS": frozenset({"name", "uuid"}),
}
# fmt: on


_SUSPEND, _STATUS_TABLE = int(DmFlag.SUSPEND), int(DmFlag.STATUS_TABLE)


def verb(command: Command, flags: int) -> str:
    """The word for a Linux command: the flags tell suspend from resume, and table from status."""
    match command.name:
        case "DEV_SUSPEND":
            return "suspend" if flags & _SUSPEND else "resume"
        case "TABLE_STATUS":
            return "table" if flags & _STATUS_TABLE else "status"
    return command.verbs[0]


def parse(obj: object, *, reply: bool = False, major: int = DM_MAJOR) -> Message:
    """The message that a dictionary says. `major` is device-mapper's block major, which dictionaries leave out.

    Keys that the fields cannot say go into `Message.keys`. Raises BadDictionary with the key path.
    """
    fields = HEADER.load(obj)
    assert isinstance(obj, dict)
    command = BY_VERB.get(word := fields.pop("command"))
    if command is None:
        found, known = describe(word).removeprefix("string "), ", ".join(sorted(BY_VERB))
        raise BadDictionary(f"unknown command {found}, expected one of {known}", path="command")
    payload = _payload(obj, command.gives if reply else command.takes, reply, major)
    if "minor" in fields:
        fields["dev"] = huge_encode((major, fields.pop("minor")))
    if (count := fields.get("open_count", 0)) >= 1 << 31:
        fields["open_count"] = count - (1 << 32)  # struct dm_ioctl's is signed, the dictionary's is not
    if "version" in fields:
        fields["version"] = tuple(fields["version"])
    if not reply and command.name == "DEV_SUSPEND":
        flags = fields.get("flags", 0)
        fields["flags"] = flags | DmFlag.SUSPEND.value if word == "suspend" else flags & ~DmFlag.SUSPEND.value
    header = Header(**{"version": (0, 0, 0), "target_count": _implied_count(command, payload, reply), **fields})
    message = Message(command=command, reply=reply, header=header, payload=payload)
    return replace(message, keys=difference(obj, build(message, major=major)))


def build(message: Message, *, major: int = DM_MAJOR) -> dict[str, Any]:
    """The dictionary of a message: its fields and `keys`, not its size and residue. The inverse of `parse`."""
    header, command, reply = message.header, message.command, message.reply
    written = WRITTEN.get(command.name, frozenset()) if reply else frozenset()
    fields: dict[str, Any] = {"command": verb(command, header.flags), "flags": header.flags}
    if header.version != (0, 0, 0):
        fields["version"] = header.version
    if header.dev:
        fields["minor"] = huge_decode(header.dev)[1]
    optional: dict[str, Any] = {
        "name": header.name,
        "uuid": header.uuid,
        "open_count": header.open_count & 0xFFFFFFFF,
        "event_nr": header.event_nr,
    }
    fields.update({key: value for key, value in optional.items() if value or key in written})
    if "target_count" in written or header.target_count != _implied_count(command, message.payload, reply):
        fields["target_count"] = header.target_count
    obj: dict[str, Any] = HEADER.dump(fields)
    if message.payload is not None:
        obj["cmd_data"] = CMD_DATA[command.gives if reply else command.takes].dump(_records(message.payload, reply))
    elif not reply:
        obj["cmd_data"] = []
    return apply(obj, message.keys)


def difference(obj: dict[str, Any], other: dict[str, Any]) -> Keys:
    """What makes `other` into `obj`: keys with the object to set, or None to leave out."""
    changed = [(key, value) for key, value in obj.items() if key not in other or not same(value, other[key])]
    return (*changed, *((key, None) for key in other if key not in obj))


def apply(obj: dict[str, Any], keys: Keys) -> dict[str, Any]:
    """`obj` with a `difference` applied, in place."""
    for key, value in keys:
        if value is None:
            obj.pop(key, None)
        else:
            obj[key] = value
    return obj


def _implied_count(command: Command, payload: Payloads, reply: bool) -> int:
    """The target_count that goes without saying."""
    kind = command.gives if reply else command.takes
    return len(payload) if kind is Payload.TARGET_SPECS and isinstance(payload, tuple) else 0


def _payload(obj: dict[str, Any], kind: Payload, reply: bool, major: int) -> Payloads:
    if kind is Payload.NONE or (reply and "cmd_data" not in obj):
        return None
    schema = CMD_DATA[kind]
    if "cmd_data" not in obj:
        raise BadDictionary(f"the key is missing, expected {schema.kind}", path="cmd_data")
    values = schema._parse(obj["cmd_data"], {}, "cmd_data")
    match kind:
        case Payload.TARGET_SPECS:
            return tuple(TargetSpec(**value) for value in values)
        case Payload.NAME_LIST:
            return tuple(DeviceEntry(**{**value, "dev": (major, value["dev"])}) for value in values)
        case Payload.TARGET_VERSIONS:
            return tuple(TargetVersion(name=value["name"], version=tuple(value["ver"])) for value in values)
        case Payload.TARGET_DEPS:
            return tuple(values)
    if not values:
        if reply:
            return None
        raise BadDictionary(f"the element is missing, expected {schema.subcon.kind}", path="cmd_data[0]")
    return TargetMessage(**{"sector": 0, **values[0]}) if kind is Payload.TARGET_MSG else values[0]


def _records(payload: Payloads, reply: bool) -> list[Any]:
    """The values of cmd_data's elements."""
    match payload:
        case str():
            return [payload]
        case TargetMessage():
            return [{"sector": payload.sector, "message": payload.message}]
        case tuple():
            return [_record(item, reply) for item in payload]
    raise TypeError(f"not a payload: {payload!r}")


def _record(item: TargetSpec | DeviceEntry | TargetVersion | int, reply: bool) -> Any:
    match item:
        case TargetSpec():
            target = {"start": item.start, "length": item.length, "type": item.type, "params": item.params}
            return {**target, "status": item.status} if reply or item.status else target
        case DeviceEntry():
            device: dict[str, Any] = {"dev": item.dev[1], "name": item.name}
            if item.event_nr:
                device["event_nr"] = item.event_nr
            return device if item.uuid is None else {**device, "uuid": item.uuid}
        case TargetVersion():
            return {"name": item.name, "ver": item.version}
    return item
