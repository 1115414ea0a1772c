"""32-bit arithmetic on many sectors at once: the same word of each, side by side in one long number.

A word has a lane of 64 bits, so that sums may run over and what is shifted out may stay, until `mask` cuts both off.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..skcipher import Data

__all__ = ["Lanes"]


class Lanes:
    """`count` lanes. `ones` has a 1 in each, `mask` the bits of a word."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * count, "little")
        self.mask = self.ones * 0xFFFFFFFF

    def pack(self, data: Data) -> list[int]:
        """The words, little-endian, of as many blocks of equal size as there are lanes. O(n)."""
        data = bytes(data)
        size = len(data) // self._count
        lanes = bytearray(8 * self._count)
        words = []
        for at in range(0, size, 4):
            for byte in range(4):
                lanes[byte::8] = data[at + byte :: size]
            words.append(int.from_bytes(lanes, "little"))
        return words

    def unpack(self, words: Sequence[int]) -> bytearray:
        """The inverse of `pack`."""
        size = 4 * len(words)
        data = bytearray(size * self._count)
        for number, word in enumerate(words):
            lanes = word.to_bytes(8 * self._count, "little")
            for byte in range(4):
                data[4 * number + byte :: size] = lanes[byte::8]
        return data

    def rotate(self, word: int, bits: int) -> int:
        """Each lane, rotated to the left."""
        return (word << bits | word >> 32 - bits) & self.mask
