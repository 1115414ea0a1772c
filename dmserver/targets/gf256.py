"""Arithmetic in GF(2**8) with the polynomial 0x11d, that of raid6 (lib/raid6) and of Reed-Solomon codes. Sums are XORs;
2 generates all but 0.
"""

from __future__ import annotations

from functools import cache

__all__ = ["inverse", "power", "table", "times"]


def _tables() -> tuple[list[int], list[int]]:
    exp, log, value = [0] * 510, [0] * 256, 1
    for exponent in range(255):
        exp[exponent] = exp[exponent + 255] = value
        log[value] = exponent
        value = value << 1 ^ (0x11D if value >> 7 else 0)
    return exp, log


_EXP, _LOG = _tables()


def power(exponent: int) -> int:
    """2 to the power of `exponent`."""
    return _EXP[exponent % 255]


def times(a: int, b: int) -> int:
    return _EXP[_LOG[a] + _LOG[b]] if a and b else 0


def inverse(a: int) -> int:
    """Of anything but 0."""
    return _EXP[255 - _LOG[a]]


@cache
def table(factor: int) -> bytes:
    """For `bytes.translate`: multiplies each byte."""
    return bytes(times(factor, byte) for byte in range(256))
