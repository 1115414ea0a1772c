"""The reader of proplib's text.

The time goes into dictionaries and arrays of short members. lanes.py has expressions that match one such member as
proplib itself writes it, or a whole dictionary that is written like the one before. A lane that does not match
changes nothing: `grammar.Reader` takes that member, and it alone reports errors. Nesting is an explicit stack, and
every match starts where the last one ended, so a text is read in O(n).
"""

from __future__ import annotations

import re
from typing import Any, Literal

from ..errors import MessageTooLarge
from .grammar import Kind, Reader
from .lanes import (
    CONSTANTS,
    IS_CONSTANT,
    IS_EMPTY,
    IS_NUMBERS,
    IS_OPEN,
    IS_RAW_NUMBER,
    IS_RAW_STRING,
    IS_SIGNED,
    IS_STRING,
    IS_UNSIGNED,
    Shape,
    Shapes,
    hexadecimals,
    item,
    member,
)
from .objects import FOOTER, HEADER, MAX_DEPTH, MAX_SIZE, Container, Object, Unsigned

__all__ = ["loads"]

_TOP_TAGS = {None: None, "dictionary": "dict", "array": "array"}
_IS_KERNEL = {"library": False, "kernel": True}
_TOO_DEEP = "too many containers within each other"
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
    if flavour not in _IS_KERNEL or top not in _TOP_TAGS:
        raise ValueError(f"no flavour {flavour!r} with top {top!r}, expected one of {[*_IS_KERNEL]}, {[*_TOP_TAGS]}")
    if len(data) > max_size:
        raise MessageTooLarge(f"a property list of {len(data)} bytes is over the limit of {max_size}", offset=max_size)
    text = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return _Scanner(text, kernel=_IS_KERNEL[flavour]).plist(_TOP_TAGS[top], max_depth)


class _Scanner(Reader):
    """The plain reader with the lanes beside it."""

    __slots__ = ("alike", "shape", "shapes")

    def __init__(self, text: str, *, kernel: bool) -> None:
        super().__init__(text, kernel=kernel)
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
        if inner is not None:
            self._fill(inner, max_depth)
        if not self.text.startswith(_USUAL_END, self.pos):
            self.end("plist")
        return outermost

    def _fill(self, container: Any, max_depth: int) -> None:
        """Read the members of a container and of all within, up to its end."""
        text, pos = self.text, self.pos
        stack: list[Container] = []  # those around the current one
        keyed, start = isinstance(container, dict), pos
        value: Any
        if max_depth < 1:
            self.fail(_TOO_DEEP)
        while True:
            match = member(text, pos) if keyed else item(text, pos)
            if match is None:
                self.pos = pos
                key, value, kind = self._plain_member(keyed)
                pos = self.pos
            else:
                pos, key, kind = match.end(), match[1], match.lastindex
                if kind == IS_STRING:
                    value = match[IS_STRING]
                elif kind == IS_UNSIGNED:
                    value = Unsigned(match[IS_UNSIGNED], 16)
                elif kind == IS_SIGNED:
                    value = int(match[IS_SIGNED])
                elif kind == IS_CONSTANT:
                    value = CONSTANTS[match[IS_CONSTANT]]
                elif kind in (IS_OPEN, IS_EMPTY):
                    value = {} if match[kind] == "dict" else []
                elif kind == IS_NUMBERS:
                    if len(stack) + 1 >= max_depth:
                        self.fail(_TOO_DEEP, pos)
                    value = [Unsigned(number, 16) for number in hexadecimals(match[IS_NUMBERS])]
                elif kind is not None:
                    value = self._decoded(match, kind)
            if kind is None:
                if not stack:
                    self.pos = pos
                    return
                container = stack.pop()
                keyed = type(container) is dict
                if not keyed and type(container[-1]) is dict:
                    pos = self._read_alike(container, start, pos)
                continue
            if keyed:
                container[key] = value
            else:
                container.append(value)
            if kind == IS_OPEN:
                stack.append(container)
                if len(stack) >= max_depth:
                    self.fail(_TOO_DEEP, pos)
                container, keyed, start = value, type(value) is dict, pos

    def _plain_member(self, keyed: bool) -> tuple[str, Object | None, int | None]:
        """What the lanes tell of a member (key, value, kind), read by the grammar."""
        if (found := self.member(keyed)) is None:
            return "", None, None
        key, value, inner = found
        return key, value, 0 if inner is None else IS_OPEN

    def _decoded(self, match: re.Match[str], kind: int) -> Object:
        """A member whose text needs the grammar's decoding."""
        raw, start = match[kind], match.start(kind)
        if kind == IS_RAW_STRING:
            return self.string(raw, start)
        return self.number(raw, start) if kind == IS_RAW_NUMBER else self.data(raw, start)

    def _read_alike(self, items: list[Object], start: int, end: int) -> int:
        """Read the dictionaries that are written like the last item, which stands here; return the position behind.

        A new shape is taken from the 4th, 8th, 16th ... item, so that an array of unlike dictionaries pays little.
        """
        count = len(items)
        if count >= 4 and not count & (count - 1):
            self.alike, self.shape = items, self.shapes.of(self.text, start, end)
        if self.shape is None or self.alike is not items:
            return end
        return self.shape.read(self.text, end, items)
