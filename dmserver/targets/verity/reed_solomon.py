"""Reed-Solomon codes of 255 bytes over `gf256` (roots 1, a, a**2 ...; a = 2), many side by side: byte n of each column
is of code n.

What is known to be bad is an erasure: `solve` finds the errors of as many as there are syndromes. `correct` finds half
as many in places that are not known, code by code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..gf256 import inverse, power, table, times
from ..xor import xor

__all__ = ["correct", "solve", "syndrome"]

LENGTH = 255


def syndrome(root: int, columns: Iterable[bytes], size: int) -> bytes:
    """The received polynomial at a**root, for each byte of the blocks."""
    by_root = table(power(root))
    total = bytes(size)
    for column in columns:
        total = xor(total.translate(by_root), column)
    return total


def solve(places: Sequence[int], syndromes: list[bytes]) -> list[bytes]:
    """The error at each of `places` (numbers of columns), from as many syndromes."""
    count = len(places)
    rows = [[power((LENGTH - 1 - place) * root) for place in places] for root in range(count)]
    right = list(syndromes)
    for at in range(count):
        pivot = next(row for row in range(at, count) if rows[row][at])
        rows[at], rows[pivot], right[at], right[pivot] = rows[pivot], rows[at], right[pivot], right[at]
        scale = inverse(rows[at][at])
        rows[at] = [times(scale, value) for value in rows[at]]
        right[at] = right[at].translate(table(scale))
        for row in range(count):
            factor = rows[row][at]
            if row != at and factor:
                rows[row] = [value ^ times(factor, own) for value, own in zip(rows[row], rows[at], strict=True)]
                right[row] = xor(right[row], right[at].translate(table(factor)))
    return right


def correct(syndromes: Sequence[bytes]) -> dict[int, bytes] | None:
    """The errors by place, of up to half as many places in each code as there are syndromes, whichever they are; None
    when a code has more. O(codes that have an error)."""
    size = len(syndromes[0])
    errors: dict[int, bytearray] = {}
    for code in range(size):
        own = [each[code] for each in syndromes]
        if not any(own):
            continue
        places = _locate(own)
        if places is None:
            return None
        found = solve(places, [bytes([each]) for each in own[: len(places)]])
        for place, error in zip(places, found, strict=True):
            errors.setdefault(place, bytearray(size))[code] = error[0]
    return {place: bytes(column) for place, column in errors.items()}


def _locate(syndromes: Sequence[int]) -> list[int] | None:
    """Where one code has its errors, by the algorithm of Berlekamp and Massey."""
    locator, before = [1], [1]
    count, gap, scale = 0, 1, 1
    for step, value in enumerate(syndromes):
        for at in range(1, min(count, len(locator) - 1) + 1):
            value ^= times(locator[at], syndromes[step - at])
        if not value:
            gap += 1
            continue
        factor = times(value, inverse(scale))
        shifted = [0] * gap + [times(factor, each) for each in before]
        width = max(len(locator), len(shifted))
        padded, shifted = (each + [0] * (width - len(each)) for each in (locator, shifted))
        changed = [one ^ other for one, other in zip(padded, shifted, strict=True)]
        if 2 * count <= step:
            count, before, scale, gap = step + 1 - count, locator, value, 1
        else:
            gap += 1
        locator = changed
    if 2 * count > len(syndromes):
        return None
    places = [place for place in range(LENGTH) if not _value(locator, place + 1)]
    return places if len(places) == count else None


def _value(polynomial: Sequence[int], exponent: int) -> int:
    """At a**exponent; coefficients from the lowest on."""
    total = 0
    for degree, factor in enumerate(polynomial):
        total ^= times(factor, power(degree * exponent))
    return total
