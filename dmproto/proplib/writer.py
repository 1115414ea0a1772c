"""The writer of proplib's text: byte for byte what prop_dictionary_externalize and prop_array_externalize write.

A line each, one tab a level, keys in the order of their bytes, unsigned numbers in hexadecimal, and only `&`, `<` and
`>` escaped. Nesting is an explicit stack of iterators over (what a line begins with, value). What the lines of a
dictionary begin with is worked out once for every set of keys at every depth, so that the items of a list or of a
table cost no sorting.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterator
from itertools import repeat
from operator import itemgetter
from typing import Any

from ..errors import MessageTooLarge
from .objects import INT64_MAX, INT64_MIN, KEY_MAX, MAX_TABS, UINT64_MAX, Container, Object, Unsigned

__all__ = ["dumps"]

_HEADER = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<!DOCTYPE plist PUBLIC "-//Apple Computer//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">\n'
    '<plist version="1.0">\n'
)
_FOOTER = "</plist>\n"
_FLUSH = 4096  # lines that are kept as strings

_Frame = tuple[Iterator[tuple[str, Any]], str]


def dumps(obj: Object) -> bytes:
    """Write a property list as proplib does, without the NUL behind it.

    Raises `TypeError` for what is no property-list object, and `ValueError` for what proplib cannot hold: a number
    beyond 64 bits, a key over `KEY_MAX` bytes, a NUL, a surrogate that stands for no byte. Nesting so deep that more
    than `MAX_TABS` tabs would be written raises `MessageTooLarge`; that limit is ours.
    """
    return _Writer().text(obj)


class _Writer:
    __slots__ = ("_chunks", "_layouts", "_lines", "_tabs")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._lines = [_HEADER]
        self._layouts: list[dict[tuple[str, ...], tuple[Any, list[str]]]] = []  # by depth, by keys
        self._tabs = 0

    def text(self, obj: Object) -> bytes:
        stack: list[_Frame] = [(iter([("", obj)]), _FOOTER)]
        while stack:
            frame, closing = stack[-1]
            if (opened := self._write_members(frame)) is None:
                self._lines.append(closing)
                stack.pop()
                if len(self._lines) > _FLUSH:
                    self._flush()
            else:
                stack.append(self._enter(*opened, depth=len(stack)))
        self._flush()
        return b"".join(self._chunks)

    def _flush(self) -> None:
        text = "".join(self._lines)
        if "\0" in text:
            raise ValueError("a string or key holds a NUL, which ends a text of proplib")
        self._chunks.append(text.encode("utf-8", "surrogateescape"))
        self._lines.clear()

    def _write_members(self, frame: Iterator[tuple[str, Any]]) -> tuple[str, Container] | None:
        """Write lines until the container is through (None) or another opens in it (what its line begins with, it)."""
        append = self._lines.append
        for lead, value in frame:
            kind = type(value)
            if kind is str:
                if "&" in value or "<" in value or ">" in value:
                    value = _escaped(value)
                append(f"{lead}<string>{value}</string>\n" if value else f"{lead}<string/>\n")
            elif kind is Unsigned:
                if not 0 <= value <= UINT64_MAX:
                    raise ValueError(f"{_place(lead)}: {value!r} is no unsigned number of 64 bits")
                append(f"{lead}<integer>{value:#x}</integer>\n")
            elif kind is int:
                if not INT64_MIN <= value <= INT64_MAX:
                    raise ValueError(f"{_place(lead)}: {value} is no signed number of 64 bits")
                append(f"{lead}<integer>{value}</integer>\n")
            elif kind is dict:
                if value:
                    return lead, value
                append(f"{lead}<dict/>\n")
            elif kind is list:
                if value:
                    return lead, value
                append(f"{lead}<array/>\n")
            elif kind is bool:
                append(f"{lead}<true/>\n" if value else f"{lead}<false/>\n")
            elif kind is bytes:
                append(
                    f"{lead}<data>{b2a_base64(value, newline=False).decode()}</data>\n" if value else f"{lead}<data/>\n"
                )
            else:
                raise TypeError(f"{_place(lead)}: a property list holds no {kind.__name__}")
        return None

    def _enter(self, lead: str, container: Container, *, depth: int) -> _Frame:
        """Write the start tag of a container within `depth - 1` others, and make the frame of its members."""
        self._tabs += 2 * depth * len(container)
        if self._tabs > MAX_TABS:
            raise MessageTooLarge(f"a property list of this depth takes more than {MAX_TABS} tabs")
        outside = "\t" * (depth - 1)
        if isinstance(container, list):
            self._lines.append(f"{lead}<array>\n")
            return zip(repeat(outside + "\t"), container, strict=False), f"{outside}</array>\n"
        self._lines.append(f"{lead}<dict>\n")
        while len(self._layouts) < depth:
            self._layouts.append({})
        layouts, keys = self._layouts[depth - 1], tuple(container)
        if (layout := layouts.get(keys)) is None:
            layout = layouts[keys] = _layout(keys, outside + "\t")
        values, leads = layout
        return zip(leads, values(container), strict=True), f"{outside}</dict>\n"


def _layout(keys: tuple[str, ...], tabs: str) -> tuple[Any, list[str]]:
    """For a dictionary of these keys: what gets its values in their order, and what their lines begin with."""
    ordered = sorted(keys) if "".join(keys).isascii() else sorted(keys, key=_encoded)
    for key in ordered:
        if len(key) > KEY_MAX // 4 and len(_encoded(key)) > KEY_MAX:
            raise ValueError(f"a key is longer than {KEY_MAX} bytes: {key!r}")
    getter = itemgetter(*ordered)
    values = getter if len(ordered) > 1 else lambda members: (getter(members),)
    return values, [f"{tabs}<key>{_escaped(key)}</key>\n{tabs}" for key in ordered]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _place(lead: str) -> str:
    return lead.strip() or "an item"
