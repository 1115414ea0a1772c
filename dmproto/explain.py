"""Messages for people: every field and flag by its name, device numbers as MAJ:MIN, target parameters taken apart.

`explain` makes a dictionary fit for JSON out of a message, `render` lines of text out of that dictionary. Both work on
the message alone. Unless told to show secrets they hold none:

* the key of a crypt line and of integrity's `internal_hash`, `journal_crypt` and `journal_mac`;
* the key of the message `key set KEY`;
* all parameters and messages under DM_SECURE_DATA_FLAG;
* bytes and keys that the fields do not tell (`residue`, `keys`), if the message is of a kind that can hold these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from . import linux, parameters
from .commands import Command, Payload
from .flags import DmFlag, flag_names
from .netbsd import verb
from .objects import describe
from .parameters import REDACTED
from .records import DeviceEntry, Header, Message, TargetMessage, TargetSpec, TargetVersion
from .wire import huge_decode, to_bytes

__all__ = ["escaped", "explain", "render", "shown"]

#: libdevmapper puts these into the upper half of a request's event_nr, a cookie into the lower (libdevmapper.h).
_UDEV_FLAGS = (
    "DISABLE_DM_RULES",
    "DISABLE_SUBSYSTEM_RULES",
    "DISABLE_DISK_RULES",
    "DISABLE_OTHER_RULES",
    "LOW_PRIORITY",
    "DISABLE_LIBRARY_FALLBACK",
    "PRIMARY_SOURCE",
)
_WITH_COOKIE = {"DEV_CREATE", "DEV_REMOVE", "DEV_RENAME", "DEV_SUSPEND"}
_COOKIE_MAGIC = 0x0D4D


#: Where the data start behind NetBSD's struct of 2008, which has a pointer more than Linux's.
_NETBSD_HEADER_SIZE = linux.netbsd_dm_ioctl.sizeof()


def explain(message: Message, *, show_secrets: bool = False) -> dict[str, Any]:
    """A dictionary that says all of a message; values are strings, integers, lists and dictionaries."""
    header, command = message.header, message.command
    hide_all = not show_secrets and bool(header.flags & DmFlag.SECURE_DATA)
    said: dict[str, Any] = {
        "command": f"DM_{command.name}",
        "verb": verb(command, header.flags),
        "direction": "reply" if message.reply else "request",
        **_header(header, command, message.reply),
    }
    if message.size:
        said["size"] = message.size
    if message.payload is not None:
        said["data"] = _payload(message, hide_all=hide_all, show_secrets=show_secrets)
    hidden = not show_secrets and (hide_all or _is_sensitive(message))
    if message.keys:  # None: a key that is not there
        said["keys"] = {
            name: "(absent)" if value is None else REDACTED if hidden else describe(value)
            for name, value in message.keys
        }
    if message.residue:
        if header.data_start == _NETBSD_HEADER_SIZE <= message.size:
            pointer = linux.netbsd_dm_ioctl.parse(linux.build(message))["user_space_addr"]
            said["user_space_addr"] = REDACTED if hidden else hex(pointer)
        said["residue"] = [
            {"offset": offset, "length": len(run), "bytes": REDACTED if hidden else run.hex()}
            for offset, run in message.residue
        ]
    return said


def _header(header: Header, command: Command, reply: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"version": ".".join(map(str, header.version))}
    for name in ("data_size", "data_start", "target_count", "open_count"):
        if value := getattr(header, name):
            said[name] = value
    said["flags"] = flag_names(header.flags)
    if header.event_nr:
        said["event_nr"] = header.event_nr
        if not reply and command.name in _WITH_COOKIE:
            said["udev"] = _udev(header.event_nr)
    if header.padding:
        said["padding"] = header.padding
    if header.dev:
        said["dev"] = _dev(header.dev)
    for name in ("name", "uuid"):
        if value := getattr(header, name):
            said[name] = value
    return said


def _udev(event_nr: int) -> dict[str, Any]:
    high, low = event_nr >> 16, event_nr & 0xFFFF
    names = [name for bit, name in enumerate(_UDEV_FLAGS) if high >> bit & 1]
    if rest := high >> len(_UDEV_FLAGS) << len(_UDEV_FLAGS):
        names.append(hex(rest))
    return {"flags": names, **({"cookie": f"{_COOKIE_MAGIC << 16 | low:#010x}"} if low else {})}


def _dev(packed: int) -> str:
    major, minor = huge_decode(packed)
    return f"{major}:{minor}" + (f" (upper half {packed >> 32:#x})" if packed >> 32 else "")


def _payload(message: Message, *, hide_all: bool, show_secrets: bool) -> Any:
    payload = message.payload
    if isinstance(payload, str):
        return _secret(payload) if hide_all else payload
    if isinstance(payload, TargetMessage):
        text = payload.message if show_secrets else parameters.redact_message(payload.message)
        return {"sector": payload.sector, "message": _secret(payload.message) if hide_all else text}
    table = not message.reply or bool(message.header.flags & DmFlag.STATUS_TABLE)
    return [_record(record, table, hide_all, show_secrets) for record in payload or ()]


def _record(record: object, table: bool, hide_all: bool, show_secrets: bool) -> Any:
    match record:
        case TargetSpec():
            return _target(record, table, hide_all, show_secrets)
        case DeviceEntry(name=name, dev=(major, minor), event_nr=event_nr, uuid=uuid):
            tail = {} if uuid is None else {"uuid": uuid}
            return {"name": name, "dev": f"{major}:{minor}", "event_nr": event_nr, **tail}
        case TargetVersion(name=name, version=version):
            return {"name": name, "version": ".".join(map(str, version))}
        case int():
            return _dev(record)
    raise TypeError(f"no payload record: {record!r}")


def _target(target: TargetSpec, table: bool, hide_all: bool, show_secrets: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"start": target.start, "length": target.length, "type": target.type}
    if target.status:
        said["status"] = target.status
    if hide_all:
        return {**said, "params": _secret(target.params)}
    params = target.params if show_secrets else parameters.redact(target.type, target.params)
    fields = parameters.parse(target.type, params, table=table)
    return {**said, "params": params, **({"fields": fields} if fields else {})}


def _secret(text: str) -> str:
    return f"(redacted: DM_SECURE_DATA_FLAG, {len(to_bytes(text))} bytes)"


def _is_sensitive(message: Message) -> bool:
    """Whether parameters of a kind that has keys stand, or may have stood, in the buffer."""
    payload, command = message.payload, message.command
    if Payload.TARGET_MSG in (command.takes, command.gives):
        return True
    if Payload.TARGET_SPECS not in (command.takes, command.gives):
        return False
    specs = cast(tuple[TargetSpec, ...], payload or ())
    return not specs or any(spec.type in parameters.SECRET_TYPES for spec in specs)


def escaped(text: str) -> str:
    """Text on one line, control characters and undecodable bytes escaped."""
    decoded = to_bytes(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in decoded)


def shown(text: str) -> str:
    """Text fit for a terminal: `escaped`, and quoted where that is needed."""
    safe = escaped(text)
    return safe if safe and safe == text and not safe[0].isspace() and not safe[-1].isspace() else f'"{safe}"'


def render(said: dict[str, Any]) -> Iterator[str]:
    """Lines of text for what `explain` said."""
    size = f", {said['size']} bytes" if "size" in said else ""
    yield f"{said['command']} ({said['verb']}) {said['direction']}{size}"
    for name, value in said.items():
        if name in ("command", "verb", "direction", "size"):
            continue
        if name == "flags":
            yield f"  {'flags':<13} {' | '.join(value) or '0'}"
        elif name == "data":
            yield from _render_data(value)
        elif name == "residue":
            for run in value:
                data = run["bytes"] if len(run["bytes"]) <= 64 else run["bytes"][:64] + "..."
                yield f"  {'other bytes':<13} {run['length']} at offset {run['offset']}: {data}"
        else:
            yield f"  {name:<13} {_inline(value)}"


def _render_data(data: Any) -> Iterator[str]:
    if not isinstance(data, list):
        yield f"  {'data':<13} {_inline(data)}"
        return
    for number, record in enumerate(data):
        label = f"data[{number}]"
        if not isinstance(record, dict) or "params" not in record:
            yield f"  {label:<13} {_inline(record)}"
            continue
        end = record["start"] + record["length"]
        yield f"  {label:<13} sectors {record['start']} to {end}: {shown(record['type'])}"
        for name, value in (record.get("fields") or {"params": record["params"]}).items():
            yield f"  {'':<13}   {name}: {_inline(value)}"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_inline(item)}" for name, item in value.items())
    if isinstance(value, list):
        return (
            "; ".join(map(_inline, value))
            if any(isinstance(item, dict) for item in value)
            else " ".join(map(_inline, value))
        )
    return shown(value) if isinstance(value, str) else str(value)
