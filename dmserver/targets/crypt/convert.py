"""Sectors of crypt through its ciphers (`crypt_convert`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...model.dm_target import SECTOR_SIZE
from ..skcipher import Data, Skcipher
from .aead import Aead
from .ivmode import U64, IvMode

__all__ = ["Converter", "SectorFormat"]


class SectorFormat(NamedTuple):
    """`size` of a sector in bytes. IVs are made of the sector's number and the `iv_offset`, in these sectors if
    `large_ivs`, else in those of 512 bytes. Each has `tag_size` bytes on the disk: a tag, the IV if `stores_iv`, and
    zeroes."""

    size: int = SECTOR_SIZE
    iv_offset: int = 0
    large_ivs: bool = False
    tag_size: int = 0
    stores_iv: bool = False


class Converter:
    """`ciphers`: of many, each in turn gets a sector; an Aead comes alone. Sectors are the target's."""

    def __init__(self, ciphers: Sequence[Skcipher] | Aead, iv: IvMode, form: SectorFormat) -> None:
        self._ciphers = ciphers
        self._iv = iv
        self._form = form

    def encrypt(self, data: memoryview, sector: int) -> tuple[Data, bytes]:
        """What to write of sectors from `sector` on, and their tags."""
        sectors, counted = self._sectors(sector, len(data))
        tags: list[bytes] = []

        def crypt(data: Data, ivs: Sequence[bytes]) -> Data:
            stored = ivs if self._form.stores_iv else [b""] * len(ivs)
            if isinstance(self._ciphers, Aead):
                out, auths = self._ciphers.encrypt(data, ivs, self._heads(sectors))
            else:
                out = self._by_turns(data, ivs, sectors, encrypt=True)
                auths = [b""] * len(ivs)
            tags[:] = [auth + iv for auth, iv in zip(auths, stored, strict=True)]
            return out

        out = self._iv.encrypt(data, counted, crypt)
        return out, b"".join(tag.ljust(self._form.tag_size, b"\0") for tag in tags)

    def decrypt(self, data: memoryview, sector: int, tags: Data = b"") -> Data:
        """The inverse. BadMessageError when a tag is wrong."""
        sectors, counted = self._sectors(sector, len(data))
        size = self._form.tag_size
        found = [bytes(tags[at : at + size]) for at in range(0, len(tags), size)] if tags else []

        def crypt(data: Data, ivs: Sequence[bytes]) -> Data:
            ciphers = self._ciphers
            auth = ciphers.auth_size if isinstance(ciphers, Aead) else 0
            if self._form.stores_iv:
                ivs = [tag[auth : auth + len(iv)] for tag, iv in zip(found, ivs, strict=True)]
            if isinstance(ciphers, Aead):
                return ciphers.decrypt(data, ivs, self._heads(sectors), [tag[:auth] for tag in found])
            return self._by_turns(data, ivs, sectors, encrypt=False)

        return self._iv.decrypt(data, counted, crypt)

    def _sectors(self, sector: int, length: int) -> tuple[list[int], list[int]]:
        """The numbers of the sectors, with the IV offset, and those of their IVs."""
        step = self._form.size // SECTOR_SIZE
        first = sector + self._form.iv_offset
        sectors = [at & U64 for at in range(first, first + length // SECTOR_SIZE, step)]
        return sectors, [at // step for at in sectors] if self._form.large_ivs else sectors

    def _heads(self, sectors: Sequence[int]) -> list[bytes]:
        return [(at - self._form.iv_offset & U64).to_bytes(8, "little") for at in sectors]

    def _by_turns(self, data: Data, ivs: Sequence[bytes], sectors: Sequence[int], *, encrypt: bool) -> Data:
        """Each sector through its own cipher."""
        assert not isinstance(self._ciphers, Aead)
        if len(self._ciphers) == 1:
            cipher = self._ciphers[0]
            return cipher.encrypt(data, ivs) if encrypt else cipher.decrypt(data, ivs)
        out, size = bytearray(), self._form.size
        for number, (sector, iv) in enumerate(zip(sectors, ivs, strict=True)):
            cipher = self._ciphers[sector & len(self._ciphers) - 1]
            part = data[number * size : (number + 1) * size]
            out += cipher.encrypt(part, [iv]) if encrypt else cipher.decrypt(part, [iv])
        return out
