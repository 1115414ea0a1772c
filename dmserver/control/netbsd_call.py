"""One dictionary command under way: the request, which becomes the reply, and how the driver reads and writes it
(sys/dev/dm/dm_ioctl.c, proplib's prop_dictionary_get_uint32() and its kin).

A key of another type, or a number out of range, counts as absent, and what was read stays as it was: 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dmproto.proplib import Unsigned

__all__ = ["Call", "Dictionary", "Refusal", "text", "unsigned"]

Dictionary = dict[str, Any]


class Refusal(Exception):
    """A command failed with `number`, an errno; the text is a sentence for a person."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(sentence)
        self.number = number


def unsigned(obj: object, bits: int) -> int | None:
    """A number that fits, whatever its signedness; None for anything else."""
    return int(obj) if isinstance(obj, int) and not isinstance(obj, bool) and 0 <= obj < 1 << bits else None


def text(obj: object) -> str | None:
    """A string; None for anything else."""
    return obj if isinstance(obj, str) else None


class Call:
    """`request` is changed in place. `finish` answers it, once."""

    __slots__ = ("done", "request")

    def __init__(self, request: Dictionary, done: Callable[[Dictionary], None]) -> None:
        self.request = request
        self.done = done

    @property
    def flags(self) -> int:
        return unsigned(self.request.get("flags"), 32) or 0

    @property
    def minor(self) -> int:
        """As an int, which is how the driver looks at it."""
        value = unsigned(self.request.get("minor"), 32) or 0
        return value - (value >> 31 << 32)

    @property
    def name(self) -> str | None:
        return text(self.request.get("name"))

    @property
    def uuid(self) -> str | None:
        return text(self.request.get("uuid"))

    def set(self, **numbers: int) -> None:
        """Write keys as uint32."""
        for key, value in numbers.items():
            self.request[key] = Unsigned(value)

    def add_flag(self, flag: int) -> None:
        self.set(flags=self.flags | flag)

    def remove_flag(self, flag: int) -> None:
        self.set(flags=self.flags & ~flag)

    def finish(self, refusal: Refusal | None = None) -> None:
        if refusal is not None:
            self.request["errno"] = refusal.number
            self.request["error"] = str(refusal)
        self.done(self.request)
