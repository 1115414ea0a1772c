"""elephant: the IVs and the diffusers of BitLocker in CBC mode (Ferguson, "AES-CBC + Elephant diffuser", 2006).

On its way to the cipher a sector is mixed with a key of its own and then with itself, word by word, in two directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import add, sub

from ..skcipher import Data, Skcipher, allocate
from ..xor import xor
from .aead import Aead
from .ivmode import U64, Crypter, Eboiv
from .lanes import Lanes

__all__ = ["Elephant"]

MAX_KEY_SIZE = 32
#: Rounds, the distances of the two words that change a word, and by how much the second is rotated, word after word.
_Diffuser = tuple[int, int, int, tuple[int, int, int, int]]
_A: _Diffuser = (5, -2, -5, (9, 0, 13, 0))
_B: _Diffuser = (3, 2, 5, (0, 10, 0, 25))


def _diffuse(lanes: Lanes, words: list[int], diffuser: _Diffuser, *, back: bool) -> None:
    """Undo a diffuser, or run it `back`, as an encryption does."""
    rounds, near, far, rotations = diffuser
    count = len(words)
    order: Iterable[int] = range(count)
    change = add
    if back:
        order, change = range(count - 1, -1, -1), sub
    floor = (lanes.mask + lanes.ones) if back else 0
    for _ in range(rounds):
        for at in order:
            other = words[(at + far) % count]
            if bits := rotations[at % 4]:
                other = lanes.rotate(other, bits)
            words[at] = change(words[at] + floor, words[(at + near) % count] ^ other) & lanes.mask


class Elephant(Eboiv):
    @classmethod
    def split_key(cls, size: int, parts: int, iv_size: int) -> tuple[int, int]:
        if size // 2 > MAX_KEY_SIZE:
            raise ValueError(f"{size} bytes of key: expected {2 * MAX_KEY_SIZE} at most")
        return 2, size // 2

    def __init__(self, cipher: Skcipher | Aead, sector_size: int) -> None:
        super().__init__(cipher, sector_size)
        self._ecb = allocate("ecb(aes)")

    def set_key(self, key: bytes) -> None:
        self._ecb.set_key(key)

    def _mix_keys(self, data: Data, sectors: Sequence[int]) -> bytes:
        """Each sector with the encryption of its offset, twice: plainly, and with the last byte 0x80."""
        size = self._sector_size
        offsets = [(sector * size & U64).to_bytes(8, "little") for sector in sectors]
        blocks = b"".join(offset + bytes(8) + offset + bytes(7) + b"\x80" for offset in offsets)
        keys = bytes(self._ecb.encrypt(blocks, [b""]))
        return xor(data, b"".join(keys[at : at + 32] * (size // 32) for at in range(0, len(keys), 32)))

    def encrypt(self, data: Data, sectors: Sequence[int], crypt: Crypter) -> Data:
        lanes = Lanes(len(sectors))
        words = lanes.pack(self._mix_keys(data, sectors))
        _diffuse(lanes, words, _A, back=True)
        _diffuse(lanes, words, _B, back=True)
        return super().encrypt(lanes.unpack(words), sectors, crypt)

    def decrypt(self, data: Data, sectors: Sequence[int], crypt: Crypter) -> Data:
        lanes = Lanes(len(sectors))
        words = lanes.pack(super().decrypt(data, sectors, crypt))
        _diffuse(lanes, words, _B, back=False)
        _diffuse(lanes, words, _A, back=False)
        return self._mix_keys(lanes.unpack(words), sectors)
