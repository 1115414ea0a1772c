"""How the kernel reads a target's parameter string (drivers/md/dm-table.c and the constructors).

Numbers are read as `sscanf` and `kstrtouint` read them, quirks included; both refuse with ValueError.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

from dmproto.wire import to_bytes, to_text

__all__ = ["Arguments", "parse_sector", "parse_u32", "parse_uint", "split_args", "wrapped"]

_SPACE = " \t\n\v\f\r\xa0"  # isspace(), which goes by Latin-1
_words = re.compile(f"[^{_SPACE}]+").findall
_ULL = re.compile(r"[ \t\n\v\f\r]*([0-9]+)\Z")
_UINT = re.compile(r"\+?([0-9]+)\n?\Z")


def split_args(params: str) -> list[str]:
    """Split on white space; a backslash quotes the next byte (`dm_split_args`)."""
    if params.isascii():
        return _split(params)
    return [to_text(word.encode("latin-1")) for word in _split(to_bytes(params).decode("latin-1"))]


def _split(params: str) -> list[str]:
    return _split_quoted(params) if "\\" in params else _words(params)


def _split_quoted(params: str) -> list[str]:
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


def wrapped(digits: str | bytes, bits: int = 64) -> int:
    """The number that so many decimal digits make where numbers wrap at 2**`bits`, 64 at most. The last 64 digits tell
    it, for 10**64 is a multiple of 2**64: nobody makes us read a million."""
    return int(digits[-64:]) & (1 << bits) - 1


def parse_sector(text: str) -> int:
    """`sscanf("%llu%c")` that must match once: digits only, wrapping at 2**64."""
    if match := _ULL.match(text):
        return wrapped(match[1])
    raise ValueError(f"{text!r}: expected a number of sectors")


def parse_uint(text: str, bits: int = 32) -> int:
    """`kstrtouint(text, 10)`: an optional plus, digits, at most `bits` bits."""
    match = _UINT.match(text)
    if match and (value := int(match[1])) < 1 << bits:
        return value
    raise ValueError(f"{text!r}: expected an unsigned number below 2**{bits}")


def parse_u32(text: str) -> int:
    """`sscanf("%u%c")` that must match once: digits only, wrapping at 2**32."""
    return parse_sector(text) & 0xFFFFFFFF


class Arguments:
    """An argument vector that is consumed from the front (`struct dm_arg_set`)."""

    def __init__(self, argv: Iterable[str]) -> None:
        self._left = deque(argv)

    def __len__(self) -> int:
        return len(self._left)

    def shift(self) -> str:
        """The next argument (`dm_shift_arg`); "" when none is left."""
        return self._left.popleft() if self._left else ""

    def take(self, count: int) -> list[str]:
        """The next `count` arguments, or as many as there are."""
        return [self._left.popleft() for _ in range(min(count, len(self._left)))]

    def number(self, low: int, high: int) -> int:
        """The next argument as a number from `low` to `high` (`dm_read_arg`). ValueError when it is not."""
        text = self.shift()
        value = parse_u32(text)
        if not low <= value <= high:
            raise ValueError(f"{text!r}: expected a number from {low} to {high}")
        return value

    def group(self, low: int, high: int) -> int:
        """`number`, counting arguments that follow (`dm_read_arg_group`). ValueError when fewer are left."""
        count = self.number(low, high)
        if count > len(self._left):
            raise ValueError(f"expected {count} more arguments, not {len(self._left)}")
        return count
