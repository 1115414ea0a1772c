"""The short way between a canonical buffer and the text of its dictionary, without objects in between.

`say` writes the property list of an ordinary buffer, `hear` the buffer of an ordinary property list. Either answers
None for whatever is not ordinary, and then `translate` goes the long way, which alone decides about errors and
differences. Ordinary is a canonical buffer, and text as `proplib.dumps` writes it; a property test holds both ways
equal.

The layouts are made from the schemas: struct formats from `linux`, lines of text and regular expressions from the
`netbsd` dictionaries. What is written here by hand are the loops, one for each kind of record. Both ways are O(n).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from construct import Array, FormatField, Renamed, Struct

from . import linux, netbsd
from .commands import BY_VERB, Command, CommandFlag, Payload
from .extension import EXTENSION, EXTENSION_KEY
from .linux import DATA_OFFSET, EVENT_NR_SINCE, HEADER_SIZE, MAX_DATA_SIZE, REQUEST_SIZE
from .netbsd import DM_MAJOR, HEADER, WRITTEN, verb
from .objects import Dictionary, Key, Number
from .proplib import dumps
from .schema import FixedText

__all__ = ["hear", "say"]


def _format(schema: Struct) -> struct.Struct:
    """The fixed fields at the beginning of a C struct."""
    codes = "<"
    for sub in schema.subcons:
        while isinstance(sub, Renamed):
            sub = sub.subcon
        match sub:
            case FormatField():
                codes += sub.fmtstr[1:]
            case Array():
                codes += f"{sub.count}{sub.subcon.fmtstr[1:]}"
            case FixedText():
                codes += f"{sub.size}s"
            case _:
                break
    return struct.Struct(codes)


def _line(key: Key, tabs: bytes) -> bytes:
    """The text of a key, to be filled in with `%`. A string comes with its tag, for it may be empty."""
    value = b"%b"
    if isinstance(key.subcon, Number):
        value = b"<integer>%d</integer>" if key.subcon.signed else b"<integer>0x%x</integer>"
    return b"%b<key>%b</key>\n%b%b\n" % (tabs, key.name.encode(), tabs, value)


def _pattern(key: Key, tabs: bytes, *, telling: bool = False) -> bytes:
    """What matches the text of a key and captures its value; a `telling` one is neither 0 nor empty."""
    if isinstance(key.subcon, Number):
        zero = b"" if telling else b"0|"
        digits = b"-?[1-9][0-9]{0,9}" if key.subcon.signed else b"[1-9a-f][0-9a-f]{0,%d}" % (key.subcon.bits // 4 - 1)
        value = b"<integer>%b(%b%b)</integer>" % (b"" if key.subcon.signed else b"0x", zero, digits)
    else:
        value = b"<string>([^<>&\0]+)</string>" if telling else b"<string(?:/>|>([^<>&\0]+)</string>)"
    return b"%b<key>%b</key>\n%b%b\n" % (tabs, key.name.encode(), tabs, value)


def _sorted(dictionary: Dictionary, without: Iterable[str] = ()) -> list[Key]:
    return sorted((key for key in dictionary.keys if key.name not in without), key=lambda key: key.name)


class _Records:
    """Text of the dictionaries in cmd_data that have the same keys."""

    def __init__(self, dictionary: Dictionary, *, without: Iterable[str] = (), optional: Iterable[str] = ()) -> None:
        keys = _sorted(dictionary, without)
        tabs = b"\t\t\t"
        self.template = b"\t\t<dict>\n%b\t\t</dict>\n" % b"".join(_line(key, tabs) for key in keys)
        pattern = b"\t\t<dict>\n"
        for key in keys:
            if key.name not in optional:
                pattern += _pattern(key, tabs)
            elif isinstance(key.subcon, Number):
                pattern += b"(?:%b)?" % _pattern(key, tabs, telling=True)
            else:  # an empty string tells something, so whether the key is there is captured too
                pattern += b"(%b)?" % _pattern(key, tabs)
        pattern += b"\t\t</dict>\n"
        self._one = re.compile(pattern).fullmatch
        self._all = re.compile(pattern).findall
        self._span = re.compile(b"(?:%b)++" % re.sub(rb"\((?!\?)", b"(?:", pattern)).fullmatch

    def read(self, text: bytes, start: int, end: int) -> list[Any]:
        """What the records capture that stand there; none when anything else does."""
        if one := self._one(text, start, end):  # most tables have one target
            return [one.groups(b"")]
        # CPython before 3.11.5 does not step back from a last repetition that fails (gh-106052): look at the end, too.
        whole = text.endswith(b"\t\t</dict>\n", start, end) and self._span(text, start, end)
        return self._all(text, start, end) if whole else []


_TARGETS = _Records(netbsd.TARGET, without=("status",))
_STATUSES = _Records(netbsd.TARGET)
_DEVICES = _Records(netbsd.DEVICE, optional=("event_nr", "uuid"))
_DEVICE_LINES = {
    (event_nr, uuid): _Records(
        netbsd.DEVICE, without=[name for name, there in (("event_nr", event_nr), ("uuid", uuid)) if not there]
    ).template
    for event_nr in (False, True)
    for uuid in (False, True)
}

_LINES = {key.name: _line(key, b"\t") for key in HEADER.keys}
_VERSION = b"\t<key>version</key>\n\t<array>\n%b\t</array>\n"
_OPEN, _CLOSE = dumps({"": ""}).split(b"\t<key></key>\n\t<string/>\n")
_EMPTY = b"\t<key>cmd_data</key>\n\t<array/>\n"
_ARRAY, _ARRAY_END = b"\t<key>cmd_data</key>\n\t<array>\n", b"\t</array>\n"
_COMMAND = _ARRAY_END + b"\t<key>command</key>\n"


def _rest(written: frozenset[str]) -> Callable[..., re.Match[bytes] | None]:
    """Matches the text behind the command with the keys that `netbsd.build` writes: `written`, and those that tell."""
    lines = []
    for key in _sorted(HEADER, ("command", "version")):
        always = key.name in written or key.name == "flags"
        line = _pattern(key, b"\t", telling=not always and key.name != "minor")
        lines.append(line if always else b"(?:%b)?" % line)
    number = b"\t\t<integer>0x(?:0|[1-9a-f][0-9a-f]{0,7})</integer>\n"
    lines += [_VERSION % (b"(%b)" % (number * 3)), re.escape(_CLOSE)]
    return re.compile(b"".join(lines)).fullmatch


_DATA_SIZE, _SIZE = (_line(EXTENSION.by_name[name], b"\t\t") for name in ("data_size", "size"))
_EXTENSION = b"\t<key>%b</key>\n\t<dict>\n%%b\t</dict>\n" % EXTENSION_KEY.encode()
_SIZES = re.compile(
    _EXTENSION
    % b"".join(b"(?:%b)?" % _pattern(EXTENSION.by_name[name], b"\t\t", telling=True) for name in ("data_size", "size"))
).match

_NOTHING: frozenset[str] = frozenset()
_RESTS = {written: _rest(written) for written in (_NOTHING, *WRITTEN.values())}
_WORD = re.compile(re.escape(_LINES["command"]).replace(b"%b", b"<string>([a-z_-]+)</string>")).match

#: By verb and whether it is a reply: the command, what follows its header, what must match the text behind cmd_data.
_WAYS = {
    (word.encode(), reply): (
        command,
        command.gives if reply else command.takes,
        _RESTS[WRITTEN.get(command.name, _NOTHING) if reply else _NOTHING],
    )
    for word, command in BY_VERB.items()
    for reply in (False, True)
    if not (reply and CommandFlag.HEADER_ONLY in command.flags)
}
_COMMANDS = {word: _LINES["command"] % b"<string>%b</string>" % word.encode() for word in BY_VERB}

_HEADER = struct.Struct("<10IQ128s129s")  # struct dm_ioctl, open_count unsigned as the dictionary has it
_SPEC = _format(linux.dm_target_spec)
_NAME = _format(linux.dm_name_list)
_PAIR = struct.Struct("<II")
_GAP = bytes(HEADER_SIZE - DATA_OFFSET)
_NO_PAYLOAD, _SPECS, _NAMES = Payload.NONE, Payload.TARGET_SPECS, Payload.NAME_LIST
_MANY = 1024  # records that are kept as many strings
_markup = re.compile(rb"[&<>\0]").search


def say(data: bytes, command: Command, *, reply: bool, strict: bool = False) -> bytes | None:
    """The property list of an ordinary buffer, or None. When not `strict` its size may be any, and is told."""
    if len(data) < DATA_OFFSET or (reply and CommandFlag.HEADER_ONLY in command.flags):
        return None
    fields = _HEADER.unpack_from(data)
    size, start, count, padding, dev = fields[3], fields[4], fields[5], fields[9], fields[10]
    if not DATA_OFFSET <= size <= len(data) or start != HEADER_SIZE or padding:
        return None
    if dev and (dev >> 32 or dev >> 8 & 0xFFF != DM_MAJOR):
        return None
    kind = command.gives if reply else command.takes
    if kind is _NO_PAYLOAD or (reply and size == DATA_OFFSET):
        body, last = [b"" if reply else _EMPTY], DATA_OFFSET
    else:
        said = None
        if data[DATA_OFFSET:HEADER_SIZE] != _GAP:
            return None
        if kind is _SPECS:
            said, count = _say_targets(data, size, count, reply), 0
        elif kind is _NAMES:
            said = _say_devices(data, size, events=fields[:2] >= EVENT_NR_SINCE)
        if said is None:
            return None
        body, last = [_ARRAY, *said[0], _ARRAY_END], said[1]
    rest = len(data) - last
    if not data.endswith(_zeros(rest) if rest < REQUEST_SIZE else bytes(rest)):
        return None
    sizes = b""
    if not size == len(data) == _canonical(last, reply):
        sizes = _say_sizes(size, len(data), _canonical(last, reply))
        if strict:
            return None
    return _say_rest(body, sizes, fields, count, command, WRITTEN.get(command.name, _NOTHING) if reply else _NOTHING)


@lru_cache(64)
def _zeros(count: int) -> bytes:
    return bytes(count)


def _canonical(last: int, reply: bool) -> int:
    """The size of a message whose data end there."""
    return last if reply else max(REQUEST_SIZE, last)


def _say_sizes(size: int, whole: int, canonical: int) -> bytes:
    """The extension that tells data_size and the length of the buffer where they are not canonical."""
    told = b"" if size == canonical else _DATA_SIZE % size
    return _EXTENSION % (told if whole == size else told + _SIZE % whole)


def _say_rest(
    body: list[bytes], sizes: bytes, fields: tuple[Any, ...], count: int, command: Command, written: frozenset[str]
) -> bytes | None:
    """The whole text: the keys behind cmd_data stand in the order of their names."""
    *version, _, _, _, opens, flags, event_nr, _, dev, name, uuid = fields
    name, uuid = name.rstrip(b"\0"), uuid.rstrip(b"\0")
    if len(name) > 127 or len(uuid) > 128 or _markup(name + uuid) or not any(version):
        return None
    text = [_OPEN, *body, _COMMANDS[verb(command, flags)], sizes]
    if event_nr:
        text.append(_LINES["event_nr"] % event_nr)
    text.append(_LINES["flags"] % flags)
    if dev:
        text.append(_LINES["minor"] % (dev & 0xFF | dev >> 12 & 0xFFF00))
    if name or "name" in written:
        text.append(_LINES["name"] % _string(name))
    if opens or "open_count" in written:
        text.append(_LINES["open_count"] % opens)
    if count or "target_count" in written:
        text.append(_LINES["target_count"] % count)
    if uuid or "uuid" in written:
        text.append(_LINES["uuid"] % _string(uuid))
    text += (_version_text(*version), _CLOSE)
    return b"".join(text)


@lru_cache(64)
def _version_text(*version: int) -> bytes:
    return _VERSION % (b"\t\t<integer>0x%x</integer>\n" * 3 % version)


@lru_cache(64)
def _version(numbers: bytes) -> tuple[int, ...]:
    """The inverse: the three numbers, or none where all are 0, which is no version."""
    version = tuple(int(number, 16) for number in re.findall(rb"0x([0-9a-f]+)", numbers))
    return version if any(version) else ()


def _string(text: bytes) -> bytes:
    return b"<string>%b</string>" % text if text else b"<string/>"


def _say_targets(data: bytes, end: int, count: int, reply: bool) -> tuple[list[bytes], int] | None:
    """The text of a chain of dm_target_spec. In a status `next` counts from the first, and data end behind a string."""
    values: list[Any] = []
    texts: list[bytes] = []
    unpack, place = _SPEC.unpack_from, HEADER_SIZE
    base, fixed = place, _SPEC.size
    if not 0 < count <= (end - place) // fixed:
        return None
    for _ in range(count):
        if place + fixed >= end:
            return None
        start, length, status, following, kind = unpack(data, place)
        stop = following + (base if reply else place)
        params = data[place + fixed : stop].rstrip(b"\0")
        kind = kind.rstrip(b"\0")
        if stop - place != (fixed + len(params) + 8) & -8 or (status and not reply):
            return None
        texts += (params, kind)
        tagged = b"<string>%b</string>" % params if params else b"<string/>"
        if reply:
            values += (length, tagged, start, status, _string(kind))
        else:
            values += (length, tagged, start, _string(kind))
        last, place = place + fixed + len(params) + 1, stop
    if last > end or _markup(b"".join(texts)):
        return None
    return [(_STATUSES if reply else _TARGETS).template * count % tuple(values)], last


def _say_devices(data: bytes, end: int, *, events: bool) -> tuple[list[bytes], int] | None:
    """The text of a chain of dm_name_list, with event numbers and uuids or as it was before those."""
    said: list[bytes] = []
    entries: list[bytes] = []
    texts: list[bytes] = []
    unpack, pair, find, place = _NAME.unpack_from, _PAIR.unpack_from, data.find, HEADER_SIZE
    fixed = _NAME.size
    while place + fixed < end:
        dev, following = unpack(data, place)
        stop = find(0, place + fixed)
        after = stop + 8 & -8
        name = data[place + fixed : after].rstrip(b"\0")
        if (
            stop < 0
            or after + 8 * events > end
            or dev >> 32
            or dev >> 8 & 0xFFF != DM_MAJOR
            or len(name) != stop - place - fixed
        ):
            return None
        minor, event_nr, flags = dev & 0xFF | dev >> 12 & 0xFFF00, 0, 0
        if events:
            event_nr, flags = pair(data, after)
            after += 8
        tagged = b"<string>%b</string>" % name if name else b"<string/>"
        values: list[Any] = [minor, event_nr, tagged] if event_nr else [minor, tagged]
        texts.append(name)
        if flags == 1:
            start, stop = after, find(0, after)
            after = stop + 8 & -8
            uuid = data[start:after].rstrip(b"\0")
            if not uuid or after > end or len(uuid) != stop - start:
                return None
            texts.append(uuid)
            values.append(b"<string>%b</string>" % uuid)
        elif flags == 2:
            values.append(b"<string/>")
        elif flags:
            return None
        entries.append(_DEVICE_LINES[event_nr > 0, flags > 0] % tuple(values))
        if len(entries) == _MANY and not _gather(said, entries, texts):
            return None
        if not following:
            break
        if following != after - place:
            return None
        place = after
    else:
        return None
    return (said, after) if _gather(said, entries, texts) else None


def _gather(said: list[bytes], entries: list[bytes], texts: list[bytes]) -> bool:
    """Make one string of the entries; False when one of their texts cannot stand as it is."""
    if _markup(b"".join(texts)):
        return False
    said.append(b"".join(entries))
    entries.clear()
    texts.clear()
    return True


def hear(text: bytes, *, reply: bool, strict: bool = False) -> bytes | None:
    """The buffer of a property list as `proplib.dumps` writes it, or None. Under `strict` it must not tell sizes."""
    if not text.startswith(_OPEN):
        return None
    place = len(_OPEN)
    first = end = -1  # of the records; equal where the array is empty
    if text.startswith(_EMPTY, place):
        place = first = end = place + len(_EMPTY)
    elif text.startswith(_ARRAY, place):
        first, end = place + len(_ARRAY), text.rfind(_COMMAND)
        if end <= first:
            return None
        place = end + len(_ARRAY_END)
    found = _WORD(text, place)
    way = _WAYS.get((found[1], reply)) if found else None
    if found is None or way is None:
        return None
    command, kind, rest = way
    sizes = None if strict else _SIZES(text, found.end())
    matched = rest(text, sizes.end() if sizes else found.end())
    if matched is None:
        return None
    event, bits, minor, name, opened, targets, uuid, numbers = matched.groups(b"")
    version, flags = _version(numbers), int(bits, 16)
    dev = _dev(int(minor, 16)) if minor else 0
    count = int(targets, 16) if targets else 0
    if _COMMANDS[verb(command, flags)] != found[0] or len(name) > 127 or len(uuid) > 128 or dev < 0 or not version:
        return None
    body: bytes | None = b""
    if kind is _NO_PAYLOAD or first < 0:
        if first != end or (first < 0) is not reply:
            return None
    elif kind is _SPECS and not count:
        body, count = _hear_targets(text, first, end, reply)
    elif kind is _NAMES:
        body = _hear_devices(text, first, end, events=version[:2] >= EVENT_NR_SINCE)
    else:
        return None
    if body is None:
        return None
    last = HEADER_SIZE + len(body) if body else DATA_OFFSET
    size, whole = _hear_sizes(sizes, last, _canonical(last, reply))
    if not size or (size != last and not body and reply and kind is not _NO_PAYLOAD):
        return None  # zeros would be taken for records
    opens, event_nr = int(opened, 16) if opened else 0, int(event, 16) if event else 0
    header = _HEADER.pack(*version, size, HEADER_SIZE, count, opens, flags, event_nr, 0, dev, name, uuid)
    return (header + _GAP + body if body else header).ljust(whole, b"\0")


def _hear_sizes(told: re.Match[bytes] | None, last: int, canonical: int) -> tuple[int, int]:
    """data_size and the length of the buffer; 0 where the extension is not as `_say_sizes` writes it."""
    if told is None:
        return canonical, canonical
    data_size, whole = (int(number, 16) if number else 0 for number in told.groups())
    size = data_size or canonical
    whole = whole or size
    ordinary = last <= size <= whole <= MAX_DATA_SIZE and not size == whole == canonical
    return (size, whole) if ordinary and _say_sizes(size, whole, canonical) == told[0] else (0, 0)


def _dev(minor: int) -> int:
    """huge_encode_dev() of one of device-mapper's; -1 for a minor that does not fit."""
    return DM_MAJOR << 8 | minor & 0xFF | minor >> 8 << 20 if minor < 1 << 20 else -1


def _hear_targets(text: bytes, place: int, end: int, reply: bool) -> tuple[bytes | None, int]:
    """A chain of dm_target_spec, and how many."""
    layout = _STATUSES if reply else _TARGETS
    found = layout.read(text, place, end)
    if not found:
        return None, 0
    parts: list[bytes] = []
    pack, fixed, following = _SPEC.pack, _SPEC.size, 0
    try:
        for length, params, start, *status, kind in found:
            size = (fixed + len(params) + 8) & -8
            following = following + size if reply else size
            if len(kind) > 16:
                return None, 0
            number = int(status[0]) if reply else 0
            parts += (
                pack(int(start, 16), int(length, 16), number, following, kind),
                params.ljust(size - fixed, b"\0"),
            )
    except struct.error:
        return None, 0
    parts[-1] = params + b"\0"
    return b"".join(parts), len(found)


def _hear_devices(text: bytes, place: int, end: int, *, events: bool) -> bytes | None:
    """A chain of dm_name_list, filled up to a multiple of 8 as the kernel counts it."""
    found = _DEVICES.read(text, place, end)
    if not found:
        return None
    chain, last = bytearray(), 0
    for minor, event_nr, name, told, uuid in found:
        dev = _dev(int(minor, 16))
        if dev < 0:
            return None
        width = (_NAME.size + len(name) + 8 & -8) - _NAME.size
        last = len(chain)
        if not events:
            if event_nr or told:
                return None
            chain += _NAME.pack(dev, _NAME.size + width)
            chain += name.ljust(width, b"\0")
            continue
        tail = uuid.ljust(len(uuid) + 8 & -8, b"\0") if uuid else b""
        flags = (1 if uuid else 2) if told else 0
        chain += _device(width)(
            dev, _NAME.size + width + 8 + len(tail), name, int(event_nr, 16) if event_nr else 0, flags
        )
        chain += tail
    chain[last + 8 : last + _NAME.size] = bytes(4)  # the next of the last
    return bytes(chain)


@lru_cache(256)
def _device(width: int) -> Callable[..., bytes]:
    """Packs a dm_name_list whose name takes so many bytes with its fill."""
    return struct.Struct(f"{_NAME.format}{width}s{_PAIR.format[1:]}").pack
