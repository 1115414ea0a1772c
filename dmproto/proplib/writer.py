"""The writer of proplib's text: byte for byte what prop_dictionary_externalize and prop_array_externalize write.

A line each, one tab a level, keys in the order of their bytes, unsigned numbers in hexadecimal, and only `&`, `<` and
`>` escaped. Nesting is an explicit stack of iterators over (what a line begins with, value). What the lines of a
dictionary begin with is worked out once for every set of keys at every depth, so that the items of a list or of a
table cost no sorting.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import repeat
from operator import itemgetter
from typing import Any

from ..errors import MessageTooLarge
from .objects import FOOTER, HEADER, INT64_MAX, INT64_MIN, KEY_MAX, MAX_TABS, UINT64_MAX, Object, Unsigned

__all__ = ["dumps"]

_FLUSH = 1024  # lines that are kept as strings

#: How many layouts are remembered, and of how many keys and at what depth at most.
_MAX_LAYOUTS, _MAX_KEYS, _MAX_LAYOUT_DEPTH = 1024, 32, 8
_EMPTY: dict[type, str] = {dict: "<dict/>", list: "<array/>", bytes: "<data/>"}

#: For a dictionary of certain keys: what the line of each value begins with, and what gets the values in that order.
_Layout = tuple[list[str], Callable[[dict[str, Any]], Iterable[Any]]]
_layouts: dict[tuple[str, ...], _Layout] = {}  # by tabs and keys


def dumps(obj: Object) -> bytes:
    """Write a property list as proplib does, without the NUL behind it.

    Raises `TypeError` for what is no property-list object, and `ValueError` for what proplib cannot hold: a number
    beyond 64 bits, a key over `KEY_MAX` bytes, a NUL, a surrogate that stands for no byte. Nesting so deep that more
    than `MAX_TABS` tabs would be written raises `MessageTooLarge`; that limit is ours.
    """
    text = BytesIO()
    lines = [HEADER]
    append = lines.append
    stack: list[tuple[Iterator[tuple[str, Any]], str, str]] = []
    members: Iterator[tuple[str, Any]] = iter([("", obj)])
    tabs, closing, tabs_written = "", FOOTER, 0
    while True:
        for lead, value in members:
            kind = type(value)
            if kind is str:
                if "&" in value or "<" in value or ">" in value:
                    value = _escaped(value)
                append(f"{lead}<string>{value}</string>\n" if value else f"{lead}<string/>\n")
            elif kind is Unsigned and 0 <= value <= UINT64_MAX:
                append(f"{lead}<integer>{hex(value)}</integer>\n")
            elif kind is dict and value:
                append(f"{lead}<dict>\n")
                stack.append((members, tabs, closing))
                closing = f"{tabs}</dict>\n"
                tabs += "\t"
                tabs_written += len(tabs) * len(value)
                leads, values = _layouts.get((tabs, *value)) or _new_layout(tabs, *value)
                members = zip(leads, values(value), strict=True)
                break
            elif kind is list and value:
                append(f"{lead}<array>\n")
                stack.append((members, tabs, closing))
                closing = f"{tabs}</array>\n"
                tabs += "\t"
                tabs_written += len(tabs) * len(value)
                members = zip(repeat(tabs), value, strict=False)
                break
            else:
                append(f"{lead}{_plain(lead, value)}\n")
        else:
            append(closing)
            if len(lines) > _FLUSH or not stack:
                text.write(_encoded("".join(lines)))
                lines.clear()
                if not stack:
                    return text.getvalue()
            members, tabs, closing = stack.pop()
        if tabs_written > MAX_TABS:
            raise MessageTooLarge(f"a property list of this depth takes more than {MAX_TABS} tabs")


def _new_layout(tabs: str, *keys: str) -> _Layout:
    ordered = sorted(keys, key=None if "".join(keys).isascii() else _encoded)
    for key in ordered:
        if len(key) > KEY_MAX // 4 and len(_encoded(key)) > KEY_MAX:
            raise ValueError(f"a key is longer than {KEY_MAX} bytes: {key!r}")
    leads = [f"{tabs}<key>{_escaped(key)}</key>\n{tabs}" for key in ordered]
    # Of one key, itemgetter gets no tuple.
    layout: _Layout = leads, itemgetter(*ordered) if len(ordered) > 1 else _only_value
    if len(keys) <= _MAX_KEYS and len(tabs) <= _MAX_LAYOUT_DEPTH:
        if len(_layouts) == _MAX_LAYOUTS:
            _layouts.clear()
        _layouts[tabs, *keys] = layout
    return layout


def _only_value(members: dict[str, Any]) -> Iterable[Any]:
    return members.values()


def _plain(lead: str, value: object) -> str:
    """The text of a scalar that is neither a string nor a good unsigned number, or of an empty container."""
    kind = type(value)
    if isinstance(value, int) and kind is int:
        if INT64_MIN <= value <= INT64_MAX:
            return f"<integer>{value}</integer>"
        raise ValueError(f"{_place(lead)}: {value} is no signed number of 64 bits")
    if isinstance(value, bytes) and value:
        return f"<data>{b2a_base64(value, newline=False).decode()}</data>"
    if kind is Unsigned:
        raise ValueError(f"{_place(lead)}: {value!r} is no unsigned number of 64 bits")
    if kind is bool:
        return "<true/>" if value else "<false/>"
    if kind in _EMPTY:
        return _EMPTY[kind]
    raise TypeError(f"{_place(lead)}: a property list holds no {kind.__name__}")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _encoded(text: str) -> bytes:
    if "\0" in text:
        raise ValueError("a string or key holds a NUL, which ends a text of proplib")
    return text.encode("utf-8", "surrogateescape")


def _place(lead: str) -> str:
    return lead.strip() or "an item"
