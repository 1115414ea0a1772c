"""How the kernel reads a target's parameter string (drivers/md/dm-table.c and the constructors).

Numbers are read as `sscanf` and `kstrtouint` read them, quirks included; both refuse with ValueError.
"""

from __future__ import annotations

import re

__all__ = ["parse_sector", "parse_uint", "split_args"]

_SPACE = " \t\n\v\f\r"
_ULL = re.compile(r"[ \t\n\v\f\r]*([0-9]+)\Z")
_UINT = re.compile(r"\+?([0-9]+)\n?\Z")


def split_args(params: str) -> list[str]:
    """Split on white space; a backslash quotes the next character (`dm_split_args`)."""
    args: list[str] = []
    current: list[str] | None = None
    characters = iter(params)
    for character in characters:
        if character in _SPACE:
            if current is not None:
                args.append("".join(current))
                current = None
            continue
        if current is None:
            current = []
        if character == "\\":
            character = next(characters, "\\")
        current.append(character)
    if current is not None:
        args.append("".join(current))
    return args


def parse_sector(text: str) -> int:
    """`sscanf("%llu%c")` that must match once: digits only, wrapping at 2**64."""
    if match := _ULL.match(text):
        return int(match[1]) & 0xFFFFFFFFFFFFFFFF
    raise ValueError(f"{text!r}: expected a number of sectors")


def parse_uint(text: str, bits: int = 32) -> int:
    """`kstrtouint(text, 10)`: an optional plus, digits, at most `bits` bits."""
    match = _UINT.match(text)
    if match and (value := int(match[1])) < 1 << bits:
        return value
    raise ValueError(f"{text!r}: expected an unsigned number below 2**{bits}")
