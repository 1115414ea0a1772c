"""Device-mapper ioctls in the log of `strace -e ioctl -v -xx -s 65536`.

strace decodes struct dm_ioctl into its fields (its src/dm.c), so a line gives a message, though not its bytes:

    ioctl(3, DM_DEV_RENAME, [{version=[4, 0, 0], data_size=16384, data_start=312, name="\\x61", flags=0},
        {string="\\x62"}] => [{version=[4, 47, 0], ...}]) = 0

What follows `=>` is the reply; releases before 5.0 write `{version=4.0.0, ..., {...}}`. Where strace gave up it prints
an address, `???` or a comment. Lines of several processes (`-f`) may be cut by `<unfinished ...>` and `resumed>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .commands import BY_NAME, BY_NUMBER, DM_IOCTL, Command, Payload
from .errors import BadMessage
from .flags import DmFlag
from .records import DeviceEntry, Header, Message, Payloads, TargetMessage, TargetSpec, TargetVersion
from .wire import huge_encode, to_text

__all__ = ["Call", "calls", "looks_like"]

_LINE = re.compile(r"^ *(?:\[pid +(\d+)\] |(\d+) +)?(?:[\d:.]+ )?(.*)$", re.DOTALL)
_CALL = re.compile(
    r"ioctl\(\d+(?:<.*?>)?, "
    r"(?:DM_(?P<name>[A-Z_]+)|_IOC\([^,]*, 0xfd, (?P<number>\w+), \w+\)|(?P<code>0x[0-9a-f]+)), "
)
_RESULT = re.compile(r"\)\s*= (-?\d+|\?)(?: ([A-Z]\w*))?")
_RESUMED = re.compile(r"<\.\.\. ioctl resumed>,? ?")
_UNFINISHED = " <unfinished ...>"
_MAX_PENDING = 1024
_MAX_DEPTH = 8  # strace goes to 4: arguments, struct dm_ioctl, dm_target_deps, its array

_BLANKS = re.compile(r"\s*+")
_TOKEN = re.compile(
    r'"(?P<text>(?:[^"\\]|\\.)*+)"(?P<cut>\.\.\.)?|(?P<mark>[\[\]{},]|=>)'
    r"|(?P<name>[a-z_]++)=|(?P<word>(?!/\*)(?:makedev\([^)]*\)|[^\s\[\]{},()=])+)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|[0-7]{1,3}|.)", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "v": "\v", "f": "\f"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One ioctl: what was asked, what came back, and `result`: the name of the errno, or "0", or "" if unknown.

    `request` and `reply` are None where strace shows nothing of them; `note` says so.
    """

    command: Command
    request: Message | None
    reply: Message | None
    result: str
    note: str = ""


def looks_like(head: str) -> bool:
    """Whether a text begins like a log of strace."""
    return any(
        re.match(r" *(?:\[pid +\d+\] |\d+ +)?(?:[\d:.]+ )?(?:\w+\(|\+\+\+ |--- )", line)
        for line in head.splitlines()[:20]
    )


def calls(lines: Iterator[str]) -> Iterator[tuple[int, Call]]:
    """The device-mapper ioctls of a log with their line numbers. Raises BadMessage with the line in its path."""
    pending: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if (whole := _joined(line, pending)) is None:
            continue
        if (head := _CALL.match(whole)) is None or (command := _command(head)) is None:
            continue
        try:
            yield number, _call(command, whole[head.end() :])
        except BadMessage as error:
            raise BadMessage(error.message, path=f"line {number}: {error.path}".rstrip(": ")) from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # a value of another kind than its name says
            raise BadMessage(f"not as strace prints a DM_{command.name}: {error}", path=f"line {number}") from None


def _joined(line: str, pending: dict[str, str]) -> str | None:
    """The text of a call that ends with this line, None when none does."""
    match = _LINE.match(line.rstrip("\n"))
    assert match
    process, text = match[1] or match[2] or "", match[3]
    if text.endswith(_UNFINISHED):
        if len(pending) >= _MAX_PENDING:
            pending.clear()
        pending[process] = text.removesuffix(_UNFINISHED)
        return None
    if resumed := _RESUMED.match(text):
        rest = text[resumed.end() :]
        begun = pending.pop(process, "")
        return f"{begun} {rest}" if begun else None
    return text


def _command(head: re.Match[str]) -> Command | None:
    if head["name"]:
        return BY_NAME.get(head["name"].removesuffix("_CMD"))
    number = int(head["number"], 0) if head["number"] else int(head["code"], 0)
    if head["code"] and number >> 8 & 0xFF != DM_IOCTL:
        return None
    return BY_NUMBER.get(number & 0xFF)


def _call(command: Command, text: str) -> Call:
    result = ""
    if ends := list(_RESULT.finditer(text)):
        text, result = text[: ends[-1].start()], "" if ends[-1][1] == "?" else ends[-1][2] or "0"
    if re.fullmatch(r"\s*(?:0x[0-9a-f]+|NULL)\s*", text):
        note = f"strace printed only the address {text.strip()}"
        return Call(command=command, request=None, reply=None, result=result, note=note)
    sides = _Values(text).sides()
    failed = result not in ("", "0")
    request, asked = _message(command, sides[0], reply=False)
    reply, answered = _message(command, sides[1], reply=True) if len(sides) > 1 and not failed else (None, "")
    return Call(command=command, request=request, reply=reply, result=result, note=asked or answered)


class _Values:
    """strace's notation of C values: structs become dicts (members without a name under ""), arrays lists."""

    def __init__(self, text: str) -> None:
        self.text, self.position, self.depth = text, 0, 0

    def sides(self) -> list[list[Any]]:
        """What stands before and behind each `=>`."""
        sides: list[list[Any]] = [[]]
        while (token := self._next()) is not None:
            if token["mark"] == "=>":
                sides.append([])
            elif token["mark"] != ",":
                value = self._value(token)
                sides[-1] += value if isinstance(value, list) else [value]
        return sides

    def _next(self) -> re.Match[str] | None:
        start = self._behind_comments()
        if start == len(self.text):
            return None
        match = _TOKEN.match(self.text, start)
        if match is None:
            found = self.text[start : start + 20]
            raise BadMessage(f"{found!r} is no value that strace prints", offset=start)
        self.position = match.end()
        return match

    def _behind_comments(self) -> int:
        """Where what is no blank and no whole comment begins."""
        text, position = self.text, self.position
        while True:
            blanks = _BLANKS.match(text, position)
            position = blanks.end() if blanks else position
            closing = text.find("*/", position + 2) if text.startswith("/*", position) else -1
            if closing < 0:
                return position
            position = closing + 2

    def _value(self, token: re.Match[str]) -> Any:
        if token["text"] is not None:
            if token["cut"]:
                raise BadMessage("strace cut this string short, use -s 65536", offset=self.position)
            return _unescape(token["text"])
        if token["word"] is not None:
            return token["word"]
        if token["mark"] in ("{", "["):
            if self.depth == _MAX_DEPTH:
                raise BadMessage(f"more than {_MAX_DEPTH} brackets within each other", offset=self.position)
            self.depth += 1
            members = self._members("}" if token["mark"] == "{" else "]")
            self.depth -= 1
            return members
        raise BadMessage(f"{token[0][:20]!r} where a value was expected", offset=self.position)

    def _members(self, close: str) -> Any:
        named: dict[str, Any] = {}
        unnamed: list[Any] = []
        while True:
            token = self._next()
            if token is None:
                raise BadMessage(f"no {close!r} before the end of the line", offset=self.position)
            if token["mark"] == close:
                break
            if token["mark"] == ",":
                continue
            if token["name"]:
                name, following = token["name"], self._next()
                if following is None:
                    raise BadMessage(f"no value for {name}", offset=self.position)
                named[name] = self._value(following)
            else:
                unnamed.append(self._value(token))
        return unnamed if close == "]" else {**named, "": unnamed}


def _unescape(text: str) -> str:
    def byte(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] == "x" and len(code) == 3:
            return chr(int(code[1:], 16))
        return chr(int(code, 8) & 0xFF) if code[0] in "01234567" else _SIMPLE.get(code, code)

    return to_text(_ESCAPE.sub(byte, text).encode("latin-1", "replace"))


def _message(command: Command, values: list[Any], *, reply: bool) -> tuple[Message | None, str]:
    """The message, and what it lacks."""
    if not values or not isinstance(values[0], dict):
        return None, "strace printed no struct dm_ioctl"
    head, records = values[0], values[0][""] + values[1:]
    if "..." in records:
        raise BadMessage("strace abbreviated the struct, use -v")
    header = Header(**{name: read(head[name]) for name, read in _FIELDS.items() if name in head})
    kind = command.gives if reply else command.takes
    if any(not isinstance(record, dict) for record in records):
        return Message(command=command, reply=reply, header=header), "strace could not decode the data"
    payload = None if not records and reply else _payload(kind, records)
    return Message(command=command, reply=reply, header=header, payload=payload), ""


def _payload(kind: Payload, records: list[dict[str, Any]]) -> Payloads:
    first = records[0] if records else {}
    match kind:
        case Payload.TARGET_SPECS:
            return tuple(
                TargetSpec(
                    start=int(r.get("sector_start", "0"), 0),
                    length=int(r.get("length", "0"), 0),
                    type=r.get("target_type", ""),
                    params=r.get("string", ""),
                    status=int(r.get("status", "0"), 0),
                )
                for r in records
            )
        case Payload.NAME_LIST:
            return tuple(
                DeviceEntry(name=r["name"], dev=_makedev(r["dev"]), event_nr=int(r.get("event_nr", "0"), 0))
                for r in records
                if "name" in r
            )
        case Payload.TARGET_VERSIONS:
            return tuple(TargetVersion(name=r["name"], version=_version(r["version"])) for r in records)
        case Payload.TARGET_DEPS:
            return tuple(huge_encode(_makedev(dev)) for dev in first.get("deps", ()))
        case Payload.TARGET_MSG if records:
            return TargetMessage(sector=int(first.get("sector", "0"), 0), message=first.get("message", ""))
        case Payload.TEXT if records:
            return str(first.get("string", ""))
    return None


def _version(value: list[str] | str) -> tuple[int, int, int]:
    parts = value.split(".") if isinstance(value, str) else value
    major, minor, patchlevel = (int(part, 0) for part in parts)
    return major, minor, patchlevel


def _makedev(text: str) -> tuple[int, int]:
    """`makedev(0xfd, 0)`, or a plain number."""
    if match := re.fullmatch(r"makedev\((\w+), (\w+)\)", text):
        return int(match[1], 0), int(match[2], 0)
    value = int(text, 0)
    return value >> 8 & 0xFFF, value & 0xFF | value >> 12 & 0xFFF00


def _flags(text: str) -> int:
    """`DM_EXISTS_FLAG|DM_UUID_FLAG|0x800000`."""
    value = 0
    for word in text.split("|"):
        name = word.removeprefix("DM_").removesuffix("_FLAG").removesuffix("_TABLE")
        name = "STATUS_TABLE" if word == "DM_STATUS_TABLE_FLAG" else name
        value |= DmFlag[name].value if name in DmFlag.__members__ else int(word, 0)
    return value


def _number(text: str) -> int:
    return int(text, 0)


_FIELDS: dict[str, Any] = {
    "version": _version,
    "data_size": _number,
    "data_start": _number,
    "target_count": _number,
    "open_count": _number,
    "flags": _flags,
    "event_nr": _number,
    "dev": lambda text: huge_encode(_makedev(text)),
    "name": str,
    "uuid": str,
}
