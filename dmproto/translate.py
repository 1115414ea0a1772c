"""Translation: Linux's binary form, NetBSD's dictionary, its draft of 2008 and their JSON form, into each other.

Theory of operation. Each form is parsed into a `records.Message` and built from one; the rules for single fields
are in the schemas (`linux`, `netbsd`, `draft2008`) and on paper in specs/translation.md. What one side cannot say
is the *difference* between a message and what its translation says by itself:

1. Binary to dictionary: the difference is kept under the one key `dm_ioctl`: fields that dictionaries lack, and runs
   of bytes (`residue`) for the rest. An ordinary request of libdevmapper has none.
2. Dictionary to binary: the difference is kept behind the buffer, where no kernel looks because `data_size` ends
   before it: `MARK`, then a property list of the keys to set and to leave out. A dictionary of NetBSD's own
   libdevmapper has none.
3. Both are computed by translating back, so no field can be forgotten: binary -> dictionary -> binary and
   dictionary -> binary -> dictionary are identities for whatever parses. With `strict` either difference raises
   NotSayable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from . import draft2008, libdm, linux, netbsd, proplib, shortcut
from .commands import Command, CommandFlag
from .commands import command as find_command
from .errors import BadDictionary, BadMessage, BadPlist, NotSayable
from .extension import EXTENSION, EXTENSION_KEY
from .flags import DmFlag
from .netbsd import DM_MAJOR
from .objects import describe
from .records import Header, Keys, Message, Residue
from .wire import huge_decode, huge_encode

__all__ = [
    "EXTENSION",
    "EXTENSION_KEY",
    "MARK",
    "Form",
    "convert",
    "detect",
    "from_binary",
    "to_binary",
    "to_dictionary",
    "to_message",
]

#: Stands between a buffer and the property list of keys that the buffer cannot say.
MARK = b"\0<!-- dictionary -->\n"
_END = b"</plist>\n"


class Form(Enum):
    """How a message is written down."""

    BINARY = "binary"
    PLIST = "plist"
    JSON = "json"
    DRAFT = "draft"


@dataclass(frozen=True)
class _Spelling:
    """A way to say a message as a dictionary."""

    parse: Callable[..., Message]
    build: Callable[..., dict[str, Any]]


_SHIPPED = _Spelling(netbsd.parse, netbsd.build)
_DRAFT = _Spelling(draft2008.parse, draft2008.build)


def to_dictionary(message: Message, *, major: int = DM_MAJOR, strict: bool = False) -> dict[str, Any]:
    """The dictionary of a message, with the extension key when it needs one.

    Raises NotSayable instead when `strict`.
    """
    return _say(message, _SHIPPED, major, strict)


def to_message(obj: object, *, reply: bool = False, major: int = DM_MAJOR, strict: bool = False) -> Message:
    """The message of a dictionary, its extension key included. Raises BadDictionary with the key path."""
    return _hear(obj, _SHIPPED, reply, major, strict)


def to_binary(obj: object, *, reply: bool = False, strict: bool = False) -> bytes:
    """The whole buffer that says what a dictionary says, in its canonical encoding unless the extension key tells else.

    Keys that have no place follow behind it; raises NotSayable instead when `strict`.
    """
    message = to_message(obj, reply=reply, strict=strict)
    assert isinstance(obj, dict)
    data = linux.build(replace(message, keys=()))
    back = to_dictionary(linux.parse(data, message.command, reply=reply))
    keys = netbsd.difference(obj, back)
    if not strict:
        return data + _stow(keys) if keys else data
    for name, value in keys:
        if _is_lost(name, value, back):
            raise NotSayable(f"struct dm_ioctl has no place for {describe(value)}", path=name)
    return data


def from_binary(data: bytes, command: Command, *, reply: bool = False, strict: bool = False) -> dict[str, Any]:
    """The dictionary that says what a whole buffer says. Raises BadBinary with offset and field path."""
    body, keys = _unstow(data)
    if keys:
        obj = netbsd.apply(to_dictionary(linux.parse(body, command, reply=reply), strict=strict), keys)
        if to_binary(obj, reply=reply) == data:
            return obj
    return to_dictionary(linux.parse(data, command, reply=reply), strict=strict)


def detect(data: bytes) -> Form:
    """The form of a message, by its first bytes, and by `version` for the draft."""
    match data.lstrip(b" \t\r\n\0")[:1]:
        case b"<":
            return Form.DRAFT if draft2008.looks_like(data) else Form.PLIST
        case b"{":
            return Form.JSON
    return Form.BINARY


def convert(
    data: bytes,
    *,
    source: Form | None,
    target: Form,
    command: str | Command | None = None,
    reply: bool = False,
    strict: bool = False,
    profile: str | None = None,
) -> bytes:
    """One message in another form. `source` None: as `detect` says. `command`: where the source does not tell it.

    `profile` "libdm" gives what NetBSD's libdevmapper makes of it: the dictionary it sends for a request, the buffer
    it unpacks a reply into. Raises a BadMessage with the place, NotSayable under `strict`, ValueError for a wrong
    combination.
    """
    source = source or detect(data)
    if isinstance(command, str):
        command = find_command(command)
    if profile is not None:
        return _profile(data, source, target, command, reply, profile)
    if source is Form.BINARY and target is Form.PLIST and command is not None:
        short = shortcut.say(data, command, reply=reply, strict=strict)
    elif source is Form.PLIST and target is Form.BINARY:
        short = shortcut.hear(data, reply=reply, strict=strict)
    else:
        short = None
    return short or _write(_read(data, source, command, reply, strict), target, reply, strict)


def _read(data: bytes, source: Form, command: Command | None, reply: bool, strict: bool) -> dict[str, Any]:
    """The long way in: the dictionary of a message in any form."""
    match source:
        case Form.BINARY:
            if command is None:
                raise ValueError("a binary message does not tell its command: give one")
            return from_binary(data, command, reply=reply, strict=strict)
        case Form.DRAFT:
            message = _hear(draft2008.loads(data, command=command), _DRAFT, reply, DM_MAJOR, strict)
            return to_dictionary(_foreign(message), strict=strict)
        case Form.JSON:
            return _number(_dictionary(proplib.loads_json(data), command), reply)
    return _dictionary(proplib.loads(data), command)


def _write(obj: dict[str, Any], target: Form, reply: bool, strict: bool) -> bytes:
    """The long way out: a dictionary in any form."""
    if target is Form.BINARY:
        return to_binary(obj, reply=reply, strict=strict)
    if target is Form.DRAFT:
        message = _foreign(to_message(obj, reply=reply, strict=strict))
        return draft2008.dumps(_say(message, _DRAFT, DM_MAJOR, strict))
    if strict and EXTENSION_KEY in obj:
        raise NotSayable("an extension key", path=EXTENSION_KEY)
    return proplib.dumps_json(obj) if target is Form.JSON else proplib.dumps(obj)


def _profile(data: bytes, source: Form, target: Form, command: Command | None, reply: bool, profile: str) -> bytes:
    if profile != "libdm":
        raise ValueError(f"no profile {profile!r}, expected 'libdm'")
    if not reply and source is Form.BINARY and target is Form.PLIST and command is not None:
        return proplib.dumps(libdm.request(linux.parse(data, command)))
    if reply and source is Form.PLIST and target is Form.BINARY:
        return libdm.dm_ioctl(_dictionary(proplib.loads(data), command))
    raise ValueError("profile libdm makes dictionaries of binary requests, and buffers of replies in plist form")


def _dictionary(obj: object, command: Command | None) -> dict[str, Any]:
    """A parsed text as a dictionary; the caller's command fills in a missing one."""
    if not isinstance(obj, dict):
        raise BadPlist("the property list is no dictionary", path="")
    if command is not None:
        obj.setdefault("command", command.verbs[0])
    return obj


def _number(obj: dict[str, Any], reply: bool) -> dict[str, Any]:
    """JSON does not tell signed from unsigned: known keys get the type that the schema gives them."""
    message = replace(to_message(obj, reply=reply), keys=())
    typed = to_dictionary(message) if EXTENSION_KEY in obj else netbsd.build(message)
    return {key: typed[key] if key in typed and typed[key] == value else value for key, value in obj.items()}


def _foreign(message: Message) -> Message:
    """A message with the keys that mean the same in both kinds of dictionary: the verb, and keys that neither knows."""
    known = {*netbsd.HEADER.by_name, *draft2008.HEADER.by_name, "cmd_data"} - {"command"}
    return replace(message, keys=tuple((name, value) for name, value in message.keys if name not in known))


def _say(message: Message, spelling: _Spelling, major: int, strict: bool) -> dict[str, Any]:
    obj = spelling.build(message, major=major)
    whole = linux.build(message)
    plain = replace(_sized(spelling.parse(obj, reply=message.reply, major=major)), keys=())
    canonical = linux.build(plain)
    if whole == canonical:
        return obj
    extension = _fields(_header(whole), _header(canonical))
    if len(whole) != _size(plain, extension, canonical):
        extension["size"] = len(whole)
    base = linux.build(_extended(plain, extension))
    if residue := tuple(linux.differences(base, whole)):
        extension["residue"] = [{"offset": offset, "bytes": run.hex()} for offset, run in residue]
    if strict:
        raise NotSayable("the dictionary has no key for these", path=f"{EXTENSION_KEY}.{{{','.join(extension)}}}")
    obj[EXTENSION_KEY] = EXTENSION.dump(extension)
    return obj


def _hear(obj: object, spelling: _Spelling, reply: bool, major: int, strict: bool) -> Message:
    if not isinstance(obj, dict) or EXTENSION_KEY not in obj:
        return _sized(spelling.parse(obj, reply=reply, major=major))
    if strict:
        raise NotSayable("an extension key", path=EXTENSION_KEY)
    rest = {key: value for key, value in obj.items() if key != EXTENSION_KEY}
    message = _sized(spelling.parse(rest, reply=reply, major=major))
    extension = EXTENSION._parse(obj[EXTENSION_KEY], {}, EXTENSION_KEY)
    return replace(_extended(message, extension), residue=_residue(extension))


def _sized(message: Message) -> Message:
    """A reply of which only the version comes back needs more room when the dictionary says more."""
    alone = Header(version=message.header.version)
    if message.reply and CommandFlag.HEADER_ONLY in message.command.flags and message.header != alone:
        return replace(message, size=linux.DATA_OFFSET)
    return message


def _header(data: bytes) -> Header:
    return linux.parse_header(data.ljust(linux.DATA_OFFSET, b"\0"))


def _fields(header: Header, canonical: Header) -> dict[str, Any]:
    """The fields without a key of their own in which the header is not canonical."""
    fields: dict[str, Any] = {
        name: getattr(header, name)
        for name in ("data_size", "data_start", "padding")
        if getattr(header, name) != getattr(canonical, name)
    }
    if header.dev != canonical.dev:
        major, minor = huge_decode(header.dev)
        same_minor = minor == huge_decode(canonical.dev)[1] and huge_encode((major, minor)) == header.dev
        fields |= {"major": major} if same_minor else {"dev": header.dev}
    return fields


def _extended(message: Message, extension: dict[str, Any]) -> Message:
    """A message with the extension's fields; what the extension leaves out is as the canonical encoding has it."""
    canonical = linux.build(message)
    header = _header(canonical)
    fields = {name: extension[name] for name in ("data_size", "data_start", "padding", "dev") if name in extension}
    if "major" in extension:
        fields["dev"] = huge_encode((extension["major"], huge_decode(header.dev)[1]))
    return replace(message, header=replace(header, **fields), size=_size(message, extension, canonical))


def _size(message: Message, extension: dict[str, Any], canonical: bytes) -> int:
    """The length of the buffer: as told, else data_size, else the canonical one."""
    version_only = message.reply and CommandFlag.HEADER_ONLY in message.command.flags
    told = extension.get("size") or (0 if version_only else extension.get("data_size"))
    return told or len(canonical)


def _residue(extension: dict[str, Any]) -> Residue:
    runs = []
    for index, run in enumerate(extension.get("residue", ())):
        try:
            runs.append((run["offset"], bytes.fromhex(run["bytes"])))
        except ValueError:
            path = f"{EXTENSION_KEY}.residue[{index}].bytes"
            raise BadDictionary("expected pairs of hexadecimal digits", path=path) from None
    return tuple(runs)


def _is_lost(name: str, value: object, back: dict[str, Any]) -> bool:
    """Whether a key says more than the rules of translation carry over: verbs stand for flags, empty for absent."""
    if name == "flags" and isinstance(value, int):
        return bool((value ^ back["flags"]) & ~DmFlag.SUSPEND)
    return bool(value) and name != "command" and back.get(name) != value


def _stow(keys: Keys) -> bytes:
    """The keys as bytes to stand behind a buffer."""
    told: dict[str, Any] = {
        "set": {name: value for name, value in keys if value is not None},
        "unset": [name for name, value in keys if value is None],
    }
    return MARK + proplib.dumps({name: value for name, value in told.items() if value})


def _unstow(data: bytes) -> tuple[bytes, Keys]:
    """A buffer and the keys that stand behind it."""
    place = data.rfind(MARK) if data.endswith(_END) else -1
    if place < 0:
        return data, ()
    try:
        told = proplib.loads(data[place + len(MARK) :])
    except BadMessage:
        return data, ()
    if not isinstance(told, dict):
        return data, ()
    objects, names = told.get("set", {}), told.get("unset", [])
    if not isinstance(objects, dict) or not isinstance(names, list):
        return data, ()
    return data[:place], (*objects.items(), *((name, None) for name in names if isinstance(name, str)))
