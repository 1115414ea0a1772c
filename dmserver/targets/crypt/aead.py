"""Ciphers that authenticate, by the names of the crypto API (`gcm(aes)`, `authenc(hmac(sha256),xts(aes))` ...), for
whole runs of sectors. What is authenticated besides a sector are a head, which is its number for dm-crypt, and the IV.

Tags of gcm, ccm and poly1305 are 16 bytes, no less. OpenSSL lacks aegis128.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..shash import Shash
from ..shash import allocate as allocate_shash
from ..skcipher import Data, Essiv, Skcipher, allocate, needs_cryptography

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

__all__ = ["Aead", "Authenc", "BadMessageError", "allocate_aead"]


class BadMessageError(Exception):
    """A tag is not that of what was read (EBADMSG). `number`: of the sector in the run, from 0."""

    def __init__(self, number: int) -> None:
        super().__init__(f"sector {number} is not what was written")
        self.number = number


class Aead(ABC):
    """One cipher. `iv_size` in bytes; `mac_size`: bytes of the key that are the MAC's."""

    iv_size: int
    block_size: int = 1
    mac_size: int = 0
    auth_size: int

    @abstractmethod
    def set_key(self, key: bytes) -> None:
        """ValueError for a key of the wrong size."""

    @abstractmethod
    def set_auth_size(self, size: int) -> None:
        """How long tags are (`crypto_aead_setauthsize`), in bytes. ValueError when they cannot be."""

    @abstractmethod
    def encrypt(self, data: Data, ivs: Sequence[bytes], heads: Sequence[bytes]) -> tuple[Data, list[bytes]]:
        """Encrypt a run of as many sectors of equal size as there are `ivs` and `heads`; also returns the tags."""

    @abstractmethod
    def decrypt(self, data: Data, ivs: Sequence[bytes], heads: Sequence[bytes], tags: Sequence[bytes]) -> Data:
        """The inverse of `encrypt`. BadMessageError for the first wrong tag."""


class _Whole(Aead):
    """A cipher of OpenSSL's that makes the tag itself."""

    iv_size = 12
    auth_size = 16
    key_sizes: ClassVar[tuple[int, ...]] = (16, 24, 32)
    aead: AESCCM | AESGCM | ChaCha20Poly1305

    def set_key(self, key: bytes) -> None:
        if len(key) not in self.key_sizes:
            raise ValueError(f"{len(key)} bytes of key: expected {' or '.join(map(str, self.key_sizes))}")
        self.aead = self.make(key)

    @abstractmethod
    def make(self, key: bytes) -> AESCCM | AESGCM | ChaCha20Poly1305:
        """OpenSSL's."""

    def set_auth_size(self, size: int) -> None:
        if size != self.auth_size:
            raise ValueError(f"tags of {size} bytes: expected {self.auth_size}")

    def nonce(self, iv: bytes) -> bytes:
        return iv

    def associated(self, head: bytes, iv: bytes) -> bytes:
        return head + iv

    def encrypt(self, data: Data, ivs: Sequence[bytes], heads: Sequence[bytes]) -> tuple[Data, list[bytes]]:
        size = len(data) // len(ivs)
        out, tags = bytearray(), []
        for at, iv, head in zip(range(0, len(data), size), ivs, heads, strict=True):
            sealed = self.aead.encrypt(self.nonce(iv), data[at : at + size], self.associated(head, iv))
            out += sealed[:size]
            tags.append(sealed[size:])
        return out, tags

    def decrypt(self, data: Data, ivs: Sequence[bytes], heads: Sequence[bytes], tags: Sequence[bytes]) -> Data:
        from cryptography.exceptions import InvalidTag

        size = len(data) // len(ivs)
        out = bytearray()
        for number, (iv, head, tag) in enumerate(zip(ivs, heads, tags, strict=True)):
            sealed = bytes(data[number * size : (number + 1) * size]) + tag
            try:
                out += self.aead.decrypt(self.nonce(iv), sealed, self.associated(head, iv))
            except InvalidTag:
                raise BadMessageError(number) from None
        return out


class Gcm(_Whole):
    def make(self, key: bytes) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(key)


class ChaCha(_Whole):
    """`rfc7539(chacha20,poly1305)`."""

    key_sizes = (32,)

    def make(self, key: bytes) -> ChaCha20Poly1305:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        return ChaCha20Poly1305(key)


class Ccm(_Whole):
    """`rfc4309(ccm(aes))`: the end of the key begins the nonce, and the IV is not authenticated again."""

    SALT_SIZE = 3
    iv_size = 8
    key_sizes = (16 + SALT_SIZE, 24 + SALT_SIZE, 32 + SALT_SIZE)

    def set_key(self, key: bytes) -> None:
        super().set_key(key)
        self.salt = key[-self.SALT_SIZE :]

    def make(self, key: bytes) -> AESCCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESCCM

        return AESCCM(key[: -self.SALT_SIZE], self.auth_size)

    def nonce(self, iv: bytes) -> bytes:
        return self.salt + iv

    def associated(self, head: bytes, iv: bytes) -> bytes:
        return head


class Authenc(Aead):
    """`authenc(MAC,CIPHER)`: what was encrypted is hashed. Key: the cipher's, the MAC's. In `essiv(authenc(...),HASH)`
    the MAC is of the IV that the cipher gets."""

    def __init__(self, mac: Shash, cipher: Skcipher) -> None:
        self._mac = mac
        self._cipher = cipher
        self.iv_size, self.block_size = cipher.iv_size, cipher.block_size
        self.mac_size = self.auth_size = mac.digest_size

    def set_key(self, key: bytes) -> None:
        if len(key) < self.mac_size:
            raise ValueError(f"{len(key)} bytes of key: expected {self.mac_size} for the MAC alone")
        end = len(key) - self.mac_size
        self._cipher.set_key(key[:end])
        self._mac.set_key(key[end:])

    def set_auth_size(self, size: int) -> None:
        if not 0 < size <= self.mac_size:
            raise ValueError(f"tags of {size} bytes: expected {self.mac_size} at most")
        self.auth_size = size

    def encrypt(self, data: Data, ivs: Sequence[bytes], heads: Sequence[bytes]) -> tuple[Data, list[bytes]]:
        out = self._cipher.encrypt(data, ivs)
        return out, self._tags(out, ivs, heads)

    def decrypt(self, data: Data, ivs: Sequence[bytes], heads: Sequence[bytes], tags: Sequence[bytes]) -> Data:
        for number, (found, wanted) in enumerate(zip(tags, self._tags(data, ivs, heads), strict=True)):
            if found != wanted:
                raise BadMessageError(number)
        return self._cipher.decrypt(data, ivs)

    def _tags(self, data: Data, ivs: Sequence[bytes], heads: Sequence[bytes]) -> list[bytes]:
        used = self._cipher.salted(ivs) if isinstance(self._cipher, Essiv) else ivs
        digests = self._mac.digests([head + iv for head, iv in zip(heads, used, strict=True)], data)
        return [digest[: self.auth_size] for digest in digests]


_WHOLE: dict[str, type[_Whole]] = {
    "gcm(aes)": Gcm,
    "rfc4309(ccm(aes))": Ccm,
    "rfc7539(chacha20,poly1305)": ChaCha,
}
_AUTHENC = re.compile(r"(essiv\()?authenc\((hmac\([\w-]+\)|\w+),([\w()]+)\)(?(1),([\w-]+)\))\Z")


def allocate_aead(name: str) -> Aead:
    """`crypto_alloc_aead`: the cipher called `name`. LookupError when it is not to be had, ValueError when it cannot
    be."""
    if name in _WHOLE:
        needs_cryptography(name)
        return _WHOLE[name]()
    match = _AUTHENC.match(name)
    if match is None:
        raise LookupError(f"no AEAD cipher {name!r}")
    cipher = f"essiv({match[3]},{match[4]})" if match[1] else match[3]
    return Authenc(allocate_shash(match[2]), allocate(cipher))
