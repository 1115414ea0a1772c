"""GF(2**8): the laws of a field, by the definition of its product."""

from __future__ import annotations

from dmserver.targets.gf256 import inverse, power, table, times


def product(a: int, b: int) -> int:
    """Of polynomials, modulo 0x11d."""
    total = 0
    for bit in range(8):
        total ^= (a << bit) * (b >> bit & 1)
    for bit in range(14, 7, -1):
        if total >> bit & 1:
            total ^= 0x11D << bit - 8
    return total


def test_products() -> None:
    for a in range(256):
        assert table(a) == bytes(times(a, b) for b in range(256)) == bytes(product(a, b) for b in range(256))


def test_inverses() -> None:
    assert all(product(a, inverse(a)) == 1 for a in range(1, 256))


def test_powers_of_two() -> None:
    assert [power(exponent) for exponent in (0, 1, 7, 8, 255, 256)] == [1, 2, 0x80, 0x1D, 1, 2]
    assert {power(exponent) for exponent in range(255)} == set(range(1, 256))
