"""Symmetric ciphers by the names of the Linux crypto API (`cbc(aes)`, `essiv(cbc(aes),sha256)` ...), for whole runs of
sectors at a time.

One OpenSSL context per sector costs more than the cipher itself. Hence

* cbc decrypts a run with one context, as if it were one message, and then corrects the first block of each sector;
* cbc encrypts with one context too: the first block of a sector is fed with its IV, and the chained block taken out;
* xts has to make a context per sector, since OpenSSL's offer no way to set another tweak. Keys that OpenSSL refuses
  (equal halves, AES-192) go the long way round, by ecb.

The ciphers are those of the package `cryptography`; without it there is only `ecb(cipher_null)`.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .xor import xor

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext
    from cryptography.hazmat.primitives.ciphers.modes import Mode

__all__ = ["Data", "Essiv", "Skcipher", "allocate", "needs_cryptography"]

BLOCK = 16
Data = bytes | bytearray | memoryview


class Skcipher(ABC):
    """One cipher. `iv_size` in bytes, 0 when it takes no IV; `block_size` 1 for a stream cipher."""

    iv_size: ClassVar[int] = BLOCK
    block_size: ClassVar[int] = BLOCK
    key_sizes: ClassVar[tuple[int, ...]] = (16, 24, 32)

    def set_key(self, key: bytes) -> None:
        """ValueError for a key of the wrong size."""
        if len(key) not in self.key_sizes:
            raise ValueError(f"{len(key)} bytes of key: expected {' or '.join(map(str, self.key_sizes))}")
        self.key = key

    @abstractmethod
    def encrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        """Encrypt a run of as many sectors of equal size as there are `ivs`, each with its own."""

    @abstractmethod
    def decrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        """The inverse of `encrypt`."""


class Null(Skcipher):
    """`ecb(cipher_null)`."""

    iv_size = 0
    key_sizes = (0,)

    def encrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        return data

    decrypt = encrypt


class Aes(Skcipher):
    """What the modes of AES have in common."""

    def context(self, mode: Mode, *, encrypt: bool, key: bytes = b"") -> CipherContext:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        cipher: Cipher[Any] = Cipher(algorithms.AES(key or self.key), mode)
        return cipher.encryptor() if encrypt else cipher.decryptor()

    def blocks(self, data: Data, *, encrypt: bool, key: bytes = b"") -> bytes:
        """Each block by itself."""
        from cryptography.hazmat.primitives.ciphers import modes

        return self.context(modes.ECB(), encrypt=encrypt, key=key).update(data)


class Ecb(Aes):
    iv_size = 0

    def encrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        return self.blocks(data, encrypt=True)

    def decrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        return self.blocks(data, encrypt=False)


class Cbc(Aes):
    def encrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        from cryptography.hazmat.primitives.ciphers import modes

        if not ivs:
            return data
        size = len(data) // len(ivs)
        update = self.context(modes.CBC(bytes(BLOCK)), encrypt=True).update
        parts: list[bytes] = []
        chained = bytes(BLOCK)
        for at, iv in zip(range(0, len(data), size), ivs, strict=True):
            parts.append(update(xor(data[at : at + BLOCK], iv, chained)))
            parts.append(update(data[at + BLOCK : at + size]))
            chained = (parts[-1] or parts[-2])[-BLOCK:]
        return b"".join(parts)

    def decrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        from cryptography.hazmat.primitives.ciphers import modes

        if not ivs:
            return data
        size = len(data) // len(ivs)
        plain = bytearray(len(data) + BLOCK - 1)
        self.context(modes.CBC(ivs[0]), encrypt=False).update_into(data, plain)
        for at, iv in zip(range(size, len(data), size), ivs[1:], strict=True):
            plain[at : at + BLOCK] = xor(plain[at : at + BLOCK], iv, data[at - BLOCK : at])
        del plain[len(data) :]
        return plain


class Ctr(Aes):
    block_size = 1

    def encrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        from cryptography.hazmat.primitives.ciphers import modes

        size = len(data) // len(ivs) if ivs else 1
        return b"".join(
            self.context(modes.CTR(iv), encrypt=True).update(data[at : at + size])
            for at, iv in zip(range(0, len(data), size), ivs, strict=True)
        )

    decrypt = encrypt


class Xts(Aes):
    key_sizes = (32, 48, 64)

    def encrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        return self._crypt(data, ivs, encrypt=True)

    def decrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        return self._crypt(data, ivs, encrypt=False)

    def set_key(self, key: bytes) -> None:
        super().set_key(key)
        half = len(key) // 2
        self.data_key, self.tweak_key = key[:half], key[half:]
        self.by_ecb = half == 24 or self.data_key == self.tweak_key

    def _crypt(self, data: Data, ivs: Sequence[bytes], *, encrypt: bool) -> Data:
        if self.by_ecb or not ivs:
            return self._crypt_by_ecb(data, ivs, encrypt=encrypt)
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        aes, xts = algorithms.AES(self.key), modes.XTS
        size = len(data) // len(ivs)
        out = bytearray(len(data) + BLOCK - 1)
        to, start = memoryview(out), 0
        for iv in ivs:
            cipher = Cipher(aes, xts(iv))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            end = start + size
            context.update_into(data[start:end], to[start : end + BLOCK - 1])
            start = end
        return to[: len(data)]

    def _crypt_by_ecb(self, data: Data, ivs: Sequence[bytes], *, encrypt: bool) -> Data:
        """C = E(P ^ T) ^ T, where T is the encrypted IV, doubled in GF(2**128) from block to block."""
        tweaks: list[bytes] = []
        first = self.blocks(b"".join(ivs), encrypt=True, key=self.tweak_key)
        for at in range(0, len(first), BLOCK):
            tweak = int.from_bytes(first[at : at + BLOCK], "little")
            for _ in range(len(data) // len(ivs) // BLOCK):
                tweaks.append(tweak.to_bytes(BLOCK, "little"))
                tweak = _doubled(tweak)
        pad = b"".join(tweaks)
        return xor(self.blocks(xor(data, pad), encrypt=encrypt, key=self.data_key), pad)


class Lrw(Aes):
    """C = E(P ^ T) ^ T, where T is the number of the block times the second key in GF(2**128). The IV is the number of
    the first block, big-endian."""

    key_sizes = (16 + BLOCK, 24 + BLOCK, 32 + BLOCK)

    def set_key(self, key: bytes) -> None:
        super().set_key(key)
        self.key, tweak = key[:-BLOCK], int.from_bytes(key[-BLOCK:], "big")
        powers = [tweak]
        for _ in range(8 * BLOCK - 1):
            powers.append(_doubled(powers[-1]))
        self._powers = powers
        #: What counting on changes in T, by how many of the number's last bits change.
        self._steps = [0]
        for power in powers:
            self._steps.append(self._steps[-1] ^ power)

    def encrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        pad = self._pad(len(data), ivs)
        return xor(self.blocks(xor(data, pad), encrypt=True), pad)

    def decrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        pad = self._pad(len(data), ivs)
        return xor(self.blocks(xor(data, pad), encrypt=False), pad)

    def _pad(self, size: int, ivs: Sequence[bytes]) -> bytes:
        """T of all blocks."""
        tweaks: list[bytes] = []
        for iv in ivs:
            number, tweak = int.from_bytes(iv, "big"), 0
            for bit, power in enumerate(self._powers):
                if number >> bit & 1:
                    tweak ^= power
            for _ in range(size // len(ivs) // BLOCK):
                tweaks.append(tweak.to_bytes(BLOCK, "big"))
                after = number + 1 & (1 << 8 * BLOCK) - 1
                tweak ^= self._steps[(number ^ after).bit_length()]
                number = after
        return b"".join(tweaks)


class Essiv(Skcipher):
    """`essiv(CIPHER,HASH)`: the IV is encrypted with the hash of the key."""

    def __init__(self, inner: Aes, digest: str) -> None:
        self.inner = inner
        self.digest = digest

    def set_key(self, key: bytes) -> None:
        self.inner.set_key(key)
        self.salt = hashlib.new(self.digest, key).digest()
        if len(self.salt) not in Aes.key_sizes:
            raise ValueError(f"{self.digest} gives {len(self.salt)} bytes, which is no key for AES")

    def encrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        return self.inner.encrypt(data, self.salted(ivs))

    def decrypt(self, data: Data, ivs: Sequence[bytes]) -> Data:
        return self.inner.decrypt(data, self.salted(ivs))

    def salted(self, ivs: Sequence[bytes]) -> list[bytes]:
        """The IVs that the cipher within gets."""
        salted = self.inner.blocks(b"".join(ivs), encrypt=True, key=self.salt)
        return [salted[at : at + BLOCK] for at in range(0, len(salted), BLOCK)]


_MODES: dict[str, type[Aes]] = {"cbc": Cbc, "ctr": Ctr, "ecb": Ecb, "lrw": Lrw, "xts": Xts}
_MODE = re.compile(r"(\w+)\((\w+)\)\Z")
_ESSIV = re.compile(r"essiv\((.+),([\w-]+)\)\Z")


def allocate(name: str) -> Skcipher:
    """`crypto_alloc_skcipher`: the cipher called `name`. LookupError when it is not to be had, ValueError when it
    cannot be."""
    if match := _ESSIV.match(name):
        inner = allocate(match[1])
        if match[2] not in hashlib.algorithms_available:
            raise LookupError(f"no cipher {name!r}: no hash {match[2]!r}")
        digest_size = hashlib.new(match[2]).digest_size
        if not isinstance(inner, Aes) or not inner.iv_size or not 16 <= digest_size <= 32:
            raise ValueError(f"{name}: the digest is no key for AES, or the cipher takes no IV")
        return Essiv(inner, match[2])
    if name == "ecb(cipher_null)":
        return Null()
    if (match := _MODE.match(name)) and match[2] == "aes" and match[1] in _MODES:
        needs_cryptography(name)
        return _MODES[match[1]]()
    raise LookupError(f"no cipher {name!r}")


def _doubled(value: int) -> int:
    """In GF(2**128)."""
    return (value << 1 ^ (0x87 if value >> 127 else 0)) & (1 << 128) - 1


def needs_cryptography(name: str) -> None:
    """LookupError when the package is not there that has the cipher called `name`."""
    try:
        import cryptography  # noqa: F401  # is it there?
    except ImportError:
        raise LookupError(f"cipher {name!r} needs the package `cryptography` (extra `crypt`)") from None
