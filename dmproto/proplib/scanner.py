"""The reader of proplib's text.

The time goes into dictionaries and arrays of short members. lanes.py has expressions that match one such member as
proplib itself writes it, or a whole dictionary that is written like the one before. A lane that does not match
changes nothing: `grammar.Reader` takes that member, and it alone reports errors. Nesting is an explicit stack, and
every match starts where the last one ended, so a text is read in O(n).
"""

from __future__ import annotations

import re
from typing import Literal, NoReturn

from ..errors import MessageTooLarge
from .grammar import Kind, Reader
from .lanes import (
    CONSTANTS,
    IS_CONSTANT,
    IS_OPEN,
    IS_RAW_NUMBER,
    IS_RAW_STRING,
    IS_SIGNED,
    IS_STRING,
    IS_UNSIGNED,
    IS_VERSION,
    Shape,
    Shapes,
    hexadecimals,
    item,
    member,
)
from .objects import FOOTER, HEADER, MAX_DEPTH, MAX_SIZE, Container, Object, Unsigned

__all__ = ["loads"]

_TOP_TAGS = {"dictionary": "dict", "array": "array"}
_USUAL_START = f"{HEADER}<dict>"
_USUAL_END = f"\n{FOOTER.rstrip()}"


def loads(
    data: bytes,
    *,
    flavour: Literal["library", "kernel"] = "library",
    top: Literal["dictionary", "array"] | None = None,
    max_depth: int = MAX_DEPTH,
    max_size: int = MAX_SIZE,
) -> Object:
    """Read a property list as proplib of June 2020 does (prop_dictionary_internalize, prop_array_internalize).

    `data` ends at its first NUL, and what follows `</plist>` is ignored. `top` names the type that the outermost
    object must have; None takes any. The flavours differ in numbers out of range: "library" refuses them (a decimal
    up to UINT64_MAX becomes unsigned), "kernel" clamps them to INT64_MIN, INT64_MAX or UINT64_MAX.

    proplib has no limits; ours are `max_depth` containers within each other and `max_size` bytes. Mind that `n`
    levels, written by proplib or by `dumps`, take n * n bytes for their tabs alone.

    Raises `MessageTooLarge` for the size and `BadPlist` for all else that is refused, with the offset in bytes.
    """
    if len(data) > max_size:
        raise MessageTooLarge(f"a property list of {len(data)} bytes is over the limit of {max_size}")
    text = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return _Scanner(text, kernel=flavour == "kernel").plist(_TOP_TAGS.get(top or ""), max_depth)


class _Scanner(Reader):
    """The plain reader with two fast lanes beside it."""

    __slots__ = ("alike", "opened", "room", "shape", "shapes")

    def __init__(self, text: str, *, kernel: bool) -> None:
        super().__init__(text, kernel=kernel)
        self.opened = 0  # where the members of the container entered last begin
        self.room = 0  # how many more containers may be entered within the current one
        self.shapes = Shapes()
        self.shape: Shape | None = None
        self.alike: list[Object] = []  # the array that `shape` belongs to

    def plist(self, top: str | None, max_depth: int) -> Object:
        outermost: Object
        inner: Container | None
        if top != "array" and self.text.startswith(_USUAL_START):
            self.pos = len(_USUAL_START)
            outermost = inner = {}
        else:
            self.start()
            tag = self.tag(Kind.START, f"<{top}>" if top else "a value")
            if top is not None and tag.name != top:
                self.fail(f"expected <{top}>, found {tag}", tag.start)
            outermost, inner = self.value(tag)
        stack = [] if inner is None else [inner]
        while stack:
            self.room = max_depth - len(stack)
            if self.room < 0:
                self._too_deep()
            container = stack[-1]
            inner = self._fill_dictionary(container) if isinstance(container, dict) else self._fill_array(container)
            if inner is None:
                stack.pop()
            else:
                stack.append(inner)
                self.opened = self.pos
        if not self.text.startswith(_USUAL_END, self.pos):
            self.end("plist")
        return outermost

    def _fill_dictionary(self, members: dict[str, Object]) -> Container | None:
        """Read members up to the end of the dictionary (None) or into the next container in it (which is returned)."""
        text, pos = self.text, self.pos
        inner: Container | None
        while True:
            match = member(text, pos)
            if match is None:
                self.pos = pos
                if (key := self.key()) is None:
                    return None
                members[key], inner = self.value(self.tag(Kind.START, "a value"))
                if inner is not None:
                    return inner
                pos = self.pos
                continue
            pos = match.end()
            kind = match.lastindex
            if kind == IS_STRING:
                members[match[1]] = match[2]
            elif kind == IS_UNSIGNED:
                members[match[1]] = Unsigned(match[3], 16)
            elif kind == IS_SIGNED:
                members[match[1]] = int(match[4])
            elif kind == IS_VERSION:
                members[match[1]] = self._version(match[7])
            elif kind == IS_CONSTANT:
                members[match[1]] = CONSTANTS[match[5]]
            elif kind is None:  # </dict>
                self.pos = pos
                return None
            elif kind > IS_OPEN:
                members[match[1]] = self._raw(match, kind)
            else:
                inner = {} if match[kind] == "dict" else []
                members[match[1]] = inner
                if kind == IS_OPEN:
                    self.pos = pos
                    return inner

    def _fill_array(self, items: list[Object]) -> Container | None:
        """The same for the items of an array."""
        text, pos = self.text, self.pos
        inner: Container | None
        if items and isinstance(items[-1], dict):
            pos = self._read_alike(items)
        while True:
            match = item(text, pos)
            if match is None:
                self.pos = pos
                tag = self.tag(Kind.EITHER, "a value or </array>")
                if tag.closing and tag.name == "array":
                    return None
                value, inner = self.value(tag)
                items.append(value)
                if inner is not None:
                    return inner
                pos = self.pos
                continue
            pos = match.end()
            kind = match.lastindex
            if kind == IS_STRING:
                items.append(match[2])
            elif kind == IS_UNSIGNED:
                items.append(Unsigned(match[3], 16))
            elif kind == IS_SIGNED:
                items.append(int(match[4]))
            elif kind == IS_VERSION:
                items.append(self._version(match[7]))
            elif kind == IS_CONSTANT:
                items.append(CONSTANTS[match[5]])
            elif kind is None:  # </array>
                self.pos = pos
                return None
            elif kind > IS_OPEN:
                items.append(self._raw(match, kind))
            else:
                inner = {} if match[kind] == "dict" else []
                items.append(inner)
                if kind == IS_OPEN:
                    self.pos = pos
                    return inner

    def _raw(self, match: re.Match[str], kind: int) -> str | int | bytes:
        """The scalar of a member whose text needs decoding."""
        raw, start = match[kind], match.start(kind)
        if kind == IS_RAW_STRING:
            return self.string(raw, start)
        return self.number(raw, start) if kind == IS_RAW_NUMBER else self.data(raw, start)

    def _version(self, numbers: str) -> list[Object]:
        """An array of a few unsigned numbers, read at once."""
        if not self.room:
            self._too_deep()
        return [Unsigned(number, 16) for number in hexadecimals(numbers)]

    def _too_deep(self) -> NoReturn:
        self.fail("too many containers within each other")

    def _read_alike(self, items: list[Object]) -> int:
        """Read the dictionaries that are written like the last item, which ends here; return the position behind.

        A new shape is taken from the 4th, 8th, 16th ... item, so that an array of unlike dictionaries pays little.
        """
        count = len(items)
        if count >= 4 and not count & (count - 1):
            self.alike, self.shape = items, self.shapes.of(self.text, self.opened, self.pos)
        if self.shape is None or self.alike is not items:
            return self.pos
        return self.shape.read(self.text, self.pos, items)
