"""IV modes of dm-crypt (`struct crypt_iv_operations`): the IV of each sector, and what some do to the data besides.

Those of loop-AES (lmk) and BitLocker (elephant) are in files of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ..shash import allocate
from ..skcipher import Data, Skcipher
from ..xor import xor
from .aead import Aead

__all__ = ["U64", "Benbi", "Crypter", "Eboiv", "IvMode", "Plain", "Plain64", "Plain64Be", "Random", "Tcw"]

U64 = (1 << 64) - 1

#: What the cipher makes of a run of as many sectors as it is given IVs.
Crypter = Callable[[Data, Sequence[bytes]], Data]


class IvMode:
    """`null`: IVs are all zeroes. `cipher`: one of the target's; ValueError when mode and cipher do not go together.

    Sectors are numbers of those that IVs are counted in, from the IV offset on."""

    @classmethod
    def split_key(cls, size: int, parts: int, iv_size: int) -> tuple[int, int]:
        """Into how many parts a key of `size` bytes falls, of which the ciphers take `parts`, and how many bytes at its
        end are the mode's."""
        return parts, 0

    def __init__(self, cipher: Skcipher | Aead, sector_size: int) -> None:
        self._size = cipher.iv_size
        self._sector_size = sector_size

    def set_key(self, key: bytes) -> None:
        """The mode's own part of the key. ValueError when it is none."""

    def iv(self, sector: int) -> bytes:
        return bytes(self._size)

    def ivs(self, sectors: Sequence[int]) -> list[bytes]:
        return [self.iv(sector) for sector in sectors]

    def encrypt(self, data: Data, sectors: Sequence[int], crypt: Crypter) -> Data:
        return crypt(data, self.ivs(sectors))

    def decrypt(self, data: Data, sectors: Sequence[int], crypt: Crypter) -> Data:
        return crypt(data, self.ivs(sectors))


class Plain(IvMode):
    def iv(self, sector: int) -> bytes:
        return (sector & 0xFFFFFFFF).to_bytes(self._size, "little")


class Plain64(IvMode):
    """Also `essiv`: the cipher encrypts the IV by itself."""

    def iv(self, sector: int) -> bytes:
        return sector.to_bytes(self._size, "little")


class Plain64Be(IvMode):
    def iv(self, sector: int) -> bytes:
        return sector.to_bytes(self._size, "big")


class Benbi(IvMode):
    """Blocks of the cipher are counted, from 1 on."""

    def __init__(self, cipher: Skcipher | Aead, sector_size: int) -> None:
        super().__init__(cipher, sector_size)
        self._blocks = 512 // cipher.block_size

    def iv(self, sector: int) -> bytes:
        return (sector * self._blocks + 1 & U64).to_bytes(self._size, "big")


class Random(IvMode):
    """A write has another each time; it is kept beside the sector, whence a read has it (`Converter`)."""

    def iv(self, sector: int) -> bytes:
        return os.urandom(self._size)


class Eboiv(IvMode):
    """Each sector's offset in bytes, encrypted as if it were the IV of a block of zeroes (BitLocker in CBC mode)."""

    def __init__(self, cipher: Skcipher | Aead, sector_size: int) -> None:
        super().__init__(cipher, sector_size)
        if isinstance(cipher, Aead):
            raise ValueError("AEAD transforms not supported for EBOIV")
        self._encrypt = cipher.encrypt
        if cipher.block_size != cipher.iv_size:
            raise ValueError("Block size of EBOIV cipher does not match IV size of block cipher")

    def ivs(self, sectors: Sequence[int]) -> list[bytes]:
        size = self._size
        offsets = [(sector * self._sector_size & U64).to_bytes(size, "little") for sector in sectors]
        encrypted = bytes(self._encrypt(bytes(size * len(offsets)), offsets))
        return [encrypted[at : at + size] for at in range(0, len(encrypted), size)]


class Tcw(IvMode):
    """TrueCrypt before 4.1: the IV is the sector number on a seed, and what the cipher wrote is whitened by 8 bytes
    that the CRCs of the sector number on another seed give. Key: ciphers', IV seed, whitening seed."""

    WHITENING_SIZE = 16

    @classmethod
    def split_key(cls, size: int, parts: int, iv_size: int) -> tuple[int, int]:
        return parts + 2, iv_size + cls.WHITENING_SIZE

    def __init__(self, cipher: Skcipher | Aead, sector_size: int) -> None:
        super().__init__(cipher, sector_size)
        if sector_size != 512:
            raise ValueError("Unsupported sector size for TCW")
        self._crc = allocate("crc32")

    def set_key(self, key: bytes) -> None:
        self._iv_seed, self._whitening = key[: self._size], key[self._size :]

    def iv(self, sector: int) -> bytes:
        return xor((sector.to_bytes(8, "little") * 2)[: self._size], self._iv_seed)

    def _whiten(self, data: Data, sectors: Sequence[int]) -> bytes:
        pads = []
        for sector in sectors:
            seed = xor(sector.to_bytes(8, "little") * 2, self._whitening)
            first, second, third, last = (self._crc.digest(seed[at : at + 4]) for at in range(0, 16, 4))
            pads.append(xor(first + second, last + third) * (512 // 8))
        return xor(data, b"".join(pads))

    def encrypt(self, data: Data, sectors: Sequence[int], crypt: Crypter) -> Data:
        return self._whiten(super().encrypt(data, sectors, crypt), sectors)

    def decrypt(self, data: Data, sectors: Sequence[int], crypt: Crypter) -> Data:
        return super().decrypt(self._whiten(data, sectors), sectors, crypt)
