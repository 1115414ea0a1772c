"""Regular expressions that match whole members of a container, as proplib itself writes them.

Each accepts only what grammar.py reads in the same way; whatever they do not match is left to it. None repeats over
members, so that a mismatch costs no more than the member it stands at.

A `Shape` goes one step further. The items of a device list or of a table are dictionaries that differ in nothing but
their scalars; a shape is the text of one of them with its scalars taken out, and one match reads the next.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from .objects import Object, Unsigned

__all__ = [
    "CONSTANTS",
    "IS_CONSTANT",
    "IS_EMPTY",
    "IS_NUMBERS",
    "IS_OPEN",
    "IS_RAW_NUMBER",
    "IS_RAW_STRING",
    "IS_SIGNED",
    "IS_STRING",
    "IS_UNSIGNED",
    "Shape",
    "Shapes",
    "hexadecimals",
    "item",
    "member",
]

_BLANKS = r"[ \t\r\n]*+"
_KEY = r"<key>([^<&]{0,32}+)</key>"  # 32 characters are 128 bytes at most
_STRING = r"<string>([^<&]*+)</string>"
_UNSIGNED = r"<integer>0x([0-9a-f]{1,16}+)</integer>"
_SIGNED = r"<integer>(0|-?+[1-9][0-9]{0,17}+)</integer>"
_CONSTANT = r"<(string|true|false)/>"
_NUMBERS = rf"<array>((?:{_BLANKS}<integer>0x[0-9a-f]{{1,16}}+</integer>){{1,8}}){_BLANKS}</array>"
_RAW = r"<string>([^<]*+)</string>|<integer>([^<]*+)</integer>|<data>([^<]*+)</data>"
_VALUE = rf"(?:{_STRING}|{_UNSIGNED}|{_SIGNED}|{_CONSTANT}|<(dict|array)/>|{_NUMBERS}|<(dict|array)>|{_RAW})"

#: Group 1 is the key (of an item: nothing). The group that matched last tells the type; none: the closing tag.
member = re.compile(rf"{_BLANKS}(?:{_KEY}{_BLANKS}{_VALUE}|</dict>)").match
item = re.compile(rf"{_BLANKS}(?:(){_VALUE}|</array>)").match
IS_STRING, IS_UNSIGNED, IS_SIGNED, IS_CONSTANT, IS_EMPTY = range(2, 7)
IS_NUMBERS = 7  # a few unsigned numbers: a version, or dependencies
IS_OPEN = 8  # a container with members
IS_RAW_STRING, IS_RAW_NUMBER = 9, 10  # these, and data (11), the grammar's methods decode
hexadecimals = re.compile(r"0x([0-9a-f]++)").findall
CONSTANTS: dict[str, str | bool] = {"string": "", "true": True, "false": False}

#: By type: how many characters the value's text has before its group, and the expression that stands for it.
_PIECES: dict[int, tuple[int, str]] = {
    IS_STRING: (len("<string>"), r"<string(?:/>|>([^<&]*+)</string>)"),
    IS_UNSIGNED: (len("<integer>0x"), _UNSIGNED),
    IS_SIGNED: (len("<integer>"), _SIGNED),
    IS_CONSTANT: (len("<"), r"<(true|false)/>"),
}

_MAX_SHAPES = 256  # remembered between texts
_MAX_SHAPE_TEXT = 2048  # characters of the dictionary it is made from
_MAX_NEW_SHAPES = 16  # for one text, since compiling one takes as long as reading hundreds of members


class Shape:
    """What dictionaries written like the one in `pattern` hold: their keys, and where numbers and booleans are."""

    __slots__ = ("_booleans", "_keys", "_match", "_signed", "_unsigned")

    def __init__(self, pattern: str, keys: list[str], kinds: list[int]) -> None:
        self._match = re.compile(pattern).match
        self._keys = keys
        self._unsigned = [index for index, kind in enumerate(kinds) if kind == IS_UNSIGNED]
        self._signed = [index for index, kind in enumerate(kinds) if kind == IS_SIGNED]
        self._booleans = [index for index, kind in enumerate(kinds) if kind == IS_CONSTANT]

    def read(self, text: str, pos: int, items: list[Object]) -> int:
        """Append the dictionaries of this shape that begin at `pos`; return where the last one ends."""
        match, keys, unsigned, signed, booleans = self._match, self._keys, self._unsigned, self._signed, self._booleans
        while (found := match(text, pos)) is not None:
            values: list[Any] = list(found.groups(""))
            for index in unsigned:
                values[index] = Unsigned(values[index], 16)
            for index in signed:
                values[index] = int(values[index])
            for index in booleans:
                values[index] = values[index] == "true"
            items.append(dict(zip(keys, values, strict=True)))
            pos = found.end()
        return pos


class Shapes:
    """The shapes of one text. They are remembered for the next texts, which mostly hold the same."""

    __slots__ = ("_budget",)

    _known: ClassVar[dict[str, Shape]] = {}

    def __init__(self) -> None:
        self._budget = _MAX_NEW_SHAPES

    def of(self, text: str, start: int, end: int) -> Shape | None:
        """The shape of the dictionary whose members begin at `start` and whose closing tag ends at `end`.

        None where it holds other than scalars, is long, is not written as the lanes read it, or the budget is spent.
        """
        if end - start > _MAX_SHAPE_TEXT:
            return None
        keys: list[str] = []
        kinds: list[int] = []
        pattern = [f"{_BLANKS}<dict>"]
        while (found := member(text, start)) is not None and (kind := found.lastindex or 0) in _PIECES:
            keys.append(found[1])
            pattern.append(re.escape(text[start : found.start(kind) - _PIECES[kind][0]]))
            if found[kind] == "string" and kind == IS_CONSTANT:
                kind = IS_STRING
            kinds.append(kind)
            pattern.append(_PIECES[kind][1])
            start = found.end()
        if found is None or found.lastindex is not None or found.end() != end or len(set(keys)) != len(keys):
            return None
        pattern.append(re.escape(found[0]))
        return self._compiled("".join(pattern), keys, kinds)

    def _compiled(self, pattern: str, keys: list[str], kinds: list[int]) -> Shape | None:
        shape = self._known.get(pattern)
        if shape is None and self._budget:
            self._budget -= 1
            if len(self._known) == _MAX_SHAPES:
                self._known.clear()
            shape = self._known[pattern] = Shape(pattern, keys, kinds)
        return shape
