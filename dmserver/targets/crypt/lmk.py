"""lmk: the IVs of loop-AES. An IV is the MD5 of the sector but its first block and of the sector's number.

A key of one part more than there are ciphers has a seed, which MD5 takes first but does not count into the length that
ends its padding. No library does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import floor, sin

from ..skcipher import Data, Skcipher
from ..xor import xor
from .aead import Aead
from .ivmode import Crypter, IvMode
from .lanes import Lanes

__all__ = ["Lmk", "md5_states"]

MD5_BLOCK = 64
SEED_SIZE = 16
#: Bytes of a sector's number; after it comes MD5's padding.
NUMBER_SIZE = 7
PADDING = b"\x80" + (8 * (512 - 16 + NUMBER_SIZE)).to_bytes(8, "little")

_START = 0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476
_SINES = [floor(abs(sin(step + 1)) * (1 << 32)) for step in range(64)]
_SHIFTS = [(7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21)]
#: Which word of a block each round begins with, and how many it goes on by.
_ORDERS = [(0, 1), (1, 5), (5, 3), (0, 7)]


def md5_states(messages: Data, count: int) -> list[bytes]:
    """What is MD5's state after each of `count` messages of equal size, a multiple of 64 bytes. O(n)."""
    lanes = Lanes(count)
    words = lanes.pack(messages)
    state = [lanes.ones * word for word in _START]
    for at in range(0, len(words), MD5_BLOCK // 4):
        after = _compress(lanes, state, words[at : at + MD5_BLOCK // 4])
        state = [old + new & lanes.mask for old, new in zip(state, after, strict=True)]
    states = bytes(lanes.unpack(state))
    return [states[at : at + 16] for at in range(0, len(states), 16)]


def _compress(lanes: Lanes, state: Sequence[int], words: Sequence[int]) -> tuple[int, int, int, int]:
    """The four rounds of RFC 1321."""
    a, b, c, d = state
    ones, mask, rotate = lanes.ones, lanes.mask, lanes.rotate
    for turn, ((first, stride), shifts) in enumerate(zip(_ORDERS, _SHIFTS, strict=True)):
        for step, shift in zip(range(16), cycle(shifts), strict=False):
            if turn == 0:
                mixed = d ^ b & (c ^ d)
            elif turn == 1:
                mixed = c ^ d & (b ^ c)
            elif turn == 2:
                mixed = b ^ c ^ d
            else:
                mixed = c ^ (b | d ^ mask)
            total = a + mixed + words[(first + stride * step) % 16] + ones * _SINES[16 * turn + step] & mask
            a, b, c, d = d, b + rotate(total, shift) & mask, b, c
    return a, b, c, d


class Lmk(IvMode):
    @classmethod
    def split_key(cls, size: int, parts: int, iv_size: int) -> tuple[int, int]:
        """A key that is no multiple of the ciphers' has a seed behind them."""
        return (parts, 0) if size % parts == 0 else (parts + 1, size // (parts + 1))

    def __init__(self, cipher: Skcipher | Aead, sector_size: int) -> None:
        super().__init__(cipher, sector_size)
        if sector_size != 512:
            raise ValueError("Unsupported sector size for LMK")

    def set_key(self, key: bytes) -> None:
        self._seed = key[:SEED_SIZE].ljust(MD5_BLOCK, b"\0") if key else b""

    def _digests(self, data: Data, sectors: Sequence[int]) -> list[bytes]:
        parts = []
        for number, sector in enumerate(sectors):
            parts += [self._seed, data[512 * number + 16 : 512 * (number + 1)]]
            parts += [sector.to_bytes(8, "little")[:NUMBER_SIZE], PADDING]
        return [state[: self._size] for state in md5_states(b"".join(parts), len(sectors))]

    def encrypt(self, data: Data, sectors: Sequence[int], crypt: Crypter) -> Data:
        return crypt(data, self._digests(data, sectors))

    def decrypt(self, data: Data, sectors: Sequence[int], crypt: Crypter) -> Data:
        """The IV depends on what is not decrypted yet; it is only on the first block, though."""
        plain = bytearray(crypt(data, self.ivs(sectors)))
        for number, iv in enumerate(self._digests(plain, sectors)):
            first = slice(512 * number, 512 * number + len(iv))
            plain[first] = xor(plain[first], iv)
        return plain
