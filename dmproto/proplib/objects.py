"""Property-list objects as Python's own: what each proplib type is here, and the limits of both sides.

| proplib            | Python                                                            |
|--------------------|-------------------------------------------------------------------|
| prop_dictionary_t  | dict with str keys of at most `KEY_MAX` bytes                     |
| prop_array_t       | list                                                              |
| prop_string_t      | str: UTF-8, any other byte as a lone surrogate (surrogateescape)  |
| prop_data_t        | bytes                                                             |
| prop_bool_t        | bool                                                              |
| prop_number_t      | int is signed, `Unsigned` is unsigned; 64 bits each               |

Source: common/lib/libprop of NetBSD, June 2020.
"""

from __future__ import annotations

from typing import TypeAlias

__all__ = [
    "INT64_MAX",
    "INT64_MIN",
    "KEY_MAX",
    "MAX_DEPTH",
    "MAX_SIZE",
    "UINT64_MAX",
    "Container",
    "Object",
    "Unsigned",
]

INT64_MIN, INT64_MAX, UINT64_MAX = -(1 << 63), (1 << 63) - 1, (1 << 64) - 1

KEY_MAX = 128  #: bytes of a decoded key (PDK_MAXKEY)
MAX_DEPTH = 131072  #: containers within each other; ours, proplib has no such limit
MAX_SIZE = 64 << 20  #: bytes of a text; ours, proplib has no such limit

MAX_TABS = 256 << 20  #: tabs in a text that is written; ours, for n levels within each other take n * n of them


class Unsigned(int):
    """A number that proplib keeps as uint64_t and writes in hexadecimal. Equal to the `int` of the same value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Unsigned({int(self)})"


Object: TypeAlias = "dict[str, Object] | list[Object] | str | bytes | bool | int"
Container: TypeAlias = dict[str, Object] | list[Object]

#: What stands around the outermost object in a text that proplib writes.
HEADER = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<!DOCTYPE plist PUBLIC "-//Apple Computer//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">\n'
    '<plist version="1.0">\n'
)
FOOTER = "</plist>\n"
