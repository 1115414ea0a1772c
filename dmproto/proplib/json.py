"""The JSON form of a property list, as proplib has it since 2025.

Its reader is JSON with a few liberties: a comma between members is optional and may also stand behind the last one,
a number may have a sign `+` and leading zeros, and `\\u0000` is refused. There is no null and no fraction.

JSON numbers are decimal and say nothing of their sign, so a number is read as signed unless it is over INT64_MAX;
`Unsigned` is written as its value and so comes back signed. Data has no JSON form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import repeat
from json.encoder import encode_basestring
from typing import Literal, NoReturn

from ..errors import BadPlist, MessageTooLarge, NotSayable
from .objects import INT64_MAX, INT64_MIN, KEY_MAX, MAX_DEPTH, MAX_SIZE, UINT64_MAX, Container, Object, Unsigned

__all__ = ["dumps_json", "loads_json"]

_TOP_TYPES: dict[str | None, type | None] = {None: None, "dictionary": dict, "array": list}
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

_STRING = r'"([^"\\]*+(?:\\(?s:.)[^"\\]*+)*)"'
_gap = re.compile(r"[ \t\r\n]*+")
_gap_with_comma = re.compile(r"[ \t\r\n]*+,?+[ \t\r\n]*+")
_key = re.compile(rf"{_STRING}[ \t\r\n]*+:[ \t\r\n]*+").match
_value = re.compile(rf"{_STRING}|([+-]?+[0-9]++)|(true|false)|([{{\[])").match
_IS_STRING, _IS_NUMBER, _IS_BOOLEAN, _IS_OPEN = range(1, 5)
_HEX = "[0-9a-fA-F]"
_escape = re.compile(rf"\\(?:u([dD][89abAB]{_HEX}{{2}})\\u([dD][c-fC-F]{_HEX}{{2}})|u({_HEX}{{4}})|((?s:.)))")


def loads_json(
    data: bytes,
    *,
    top: Literal["dictionary", "array"] | None = None,
    max_depth: int = MAX_DEPTH,
    max_size: int = MAX_SIZE,
) -> Object:
    """Read the JSON form. `data` ends at its first NUL; anything but blanks behind the outermost object is refused.

    `top`, the limits and the errors are those of `loads`.
    """
    if top not in _TOP_TYPES:
        raise ValueError(f"no top {top!r}, expected one of {[*_TOP_TYPES]}")
    if len(data) > max_size:
        raise MessageTooLarge(f"a property list of {len(data)} bytes is over the limit of {max_size}", offset=max_size)
    text = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return _Reader(text).outermost(_TOP_TYPES[top], max_depth)


class _Reader:
    __slots__ = ("pos", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0

    def outermost(self, top: type | None, max_depth: int) -> Object:
        self._skip(_gap)
        obj, inner = self._read_value()
        if top is not None and type(obj) is not top:
            self._fail("the outermost object is of another type", 0)
        stack: list[Container] = [] if inner is None else [inner]
        while stack:
            if len(stack) > max_depth:
                self._fail("too many containers within each other")
            if (inner := self._fill(stack[-1])) is None:
                stack.pop()
            else:
                stack.append(inner)
        self._skip(_gap)
        if self.pos != len(self.text):
            self._fail("expected nothing behind the outermost object")
        return obj

    def _fill(self, container: Container) -> Container | None:
        """Read members up to the end of a container (None) or into the next one in it (which is returned)."""
        closing = "}" if isinstance(container, dict) else "]"
        while True:
            self._skip(_gap_with_comma if container else _gap)
            if self.text.startswith(closing, self.pos):
                self.pos += 1
                return None
            if isinstance(container, dict):
                key = self._read_key()
                container[key], inner = self._read_value()
            else:
                item, inner = self._read_value()
                container.append(item)
            if inner is not None:
                return inner

    def _read_key(self) -> str:
        match = _key(self.text, self.pos)
        if match is None:
            self._fail('expected "key": or }')
        key = self._unescaped(match[1], match.start(1))
        if len(key) > KEY_MAX // 4 and len(key.encode("utf-8", "surrogateescape")) > KEY_MAX:
            self._fail(f"a key is longer than {KEY_MAX} bytes")
        self.pos = match.end()
        return key

    def _read_value(self) -> tuple[Object, Container | None]:
        """A value; and again, if it is a container whose members follow."""
        match = _value(self.text, self.pos)
        if match is None:
            self._fail("expected a string, a whole number, true, false, { or [")
        value: Object
        if match.lastindex == _IS_OPEN:
            self.pos = match.end()
            container: Container = {} if match[0] == "{" else []
            return container, container
        if match.lastindex == _IS_STRING:
            value = self._unescaped(match[_IS_STRING], match.start(_IS_STRING))
        elif match.lastindex == _IS_NUMBER:
            value = self._number(match[0])
        else:
            value = match[0] == "true"
        self.pos = match.end()
        return value, None

    def _number(self, text: str) -> int:
        digits = text.lstrip("+-0") or "0"
        value = int(digits) if len(digits) <= 20 else UINT64_MAX + 1
        if text.startswith("-"):
            value = -value
        if not INT64_MIN <= value <= UINT64_MAX:
            self._fail("a number is out of range")
        return value if value <= INT64_MAX else Unsigned(value)

    def _unescaped(self, raw: str, start: int) -> str:
        def character(match: re.Match[str]) -> str:
            high, low, code, simple = match.groups()
            if high is not None:
                return chr(0x10000 + (int(high, 16) - 0xD800 << 10) + int(low, 16) - 0xDC00)
            if simple in _ESCAPES:
                return _ESCAPES[simple]
            if code is None or code == "0000" or (code[0] in "dD" and code[1] in "89abcdefABCDEF"):
                self._fail("an escape that is unknown, half a surrogate pair, or a NUL", start + match.start())
            return chr(int(code, 16))

        return _escape.sub(character, raw) if "\\" in raw else raw

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.pos)
        assert match is not None  # every gap may be empty
        self.pos = match.end()

    def _fail(self, message: str, pos: int | None = None) -> NoReturn:
        place = self.pos if pos is None else pos
        raise BadPlist(message, offset=len(self.text[:place].encode("utf-8", "surrogateescape")))


def dumps_json(obj: Object) -> bytes:
    """Write the JSON form on one line, keys in the order of their bytes, with a newline behind it.

    Raises `NotSayable` for data, `TypeError` for what is no property-list object, and `ValueError` for a number
    beyond 64 bits or a NUL.
    """
    pieces: list[str] = []
    stack: list[tuple[Iterator[tuple[str | None, Object]], str]] = [(iter([(None, obj)]), "\n")]
    comma = ""
    while stack:
        members, closing = stack[-1]
        for key, value in members:
            lead = comma if key is None else f"{comma}{_string(key)}:"
            comma = ","
            if isinstance(value, dict):
                pieces.append(f"{lead}{{")
                in_order = sorted(value, key=lambda name: name.encode("utf-8", "surrogateescape"))
                stack.append((zip(in_order, map(value.__getitem__, in_order), strict=True), "}"))
                comma = ""
                break
            if isinstance(value, list):
                pieces.append(f"{lead}[")
                stack.append((zip(repeat(None), value, strict=False), "]"))
                comma = ""
                break
            pieces.append(lead + _scalar(value, key or "an item"))
        else:
            pieces.append(closing)
            stack.pop()
            comma = ","
    return "".join(pieces).encode("utf-8", "surrogateescape")


def _scalar(value: Object, place: str) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        low, high = (0, UINT64_MAX) if isinstance(value, Unsigned) else (INT64_MIN, INT64_MAX)
        if not low <= value <= high:
            raise ValueError(f"{place}: {value!r} is beyond 64 bits")
        return str(int(value))
    if isinstance(value, bytes):
        raise NotSayable("data has no JSON form", path=place)
    raise TypeError(f"{place}: a property list holds no {type(value).__name__}")


def _string(text: str) -> str:
    if "\0" in text:
        raise ValueError("a string or key holds a NUL, which ends a text of proplib")
    return encode_basestring(text)
