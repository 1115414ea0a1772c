"""Hashes by the names of the Linux crypto API (`crc32c`, `sha256`, `hmac(sha256)` ...; `crypto/shash.c`)."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import re
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Protocol

__all__ = ["Shash", "allocate"]

Data = bytes | bytearray | memoryview

_HASHES = (
    *("md5", "sha1", "sha224", "sha256", "sha384", "sha512"),
    *("sha3-224", "sha3-256", "sha3-384", "sha3-512"),
)
_HMAC = re.compile(r"hmac\(([\w-]+)\)\Z")
_CRC32C = 0x82F63B78


class _State(Protocol):
    def copy(self) -> _State: ...
    def update(self, data: Data, /) -> None: ...
    def digest(self) -> bytes: ...


class Shash:
    """One hash, with its key if it has one. `digest_size` in bytes; `needs_key`: it gives none before `set_key`."""

    digest_size: int
    needs_key = False

    def set_key(self, key: bytes) -> None:
        """OSError: ENOSYS when the hash takes no key, EINVAL for one of the wrong size."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def digest(self, *parts: Data) -> bytes:
        """The digest of the parts, one after the other."""
        raise NotImplementedError


class _Hashlib(Shash):
    def __init__(self, name: str) -> None:
        self._start: _State = hashlib.new(name.replace("sha3-", "sha3_"))
        self.digest_size = len(self._start.digest())

    def digest(self, *parts: Data) -> bytes:
        state = self._start.copy()
        for part in parts:
            state.update(part)
        return state.digest()


class _Hmac(_Hashlib):
    needs_key = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._name = name.replace("sha3-", "sha3_")

    def set_key(self, key: bytes) -> None:
        self._start = hmac.new(key, digestmod=self._name)
        self.needs_key = False


class _Crc(Shash):
    """The key is the value to start from, little-endian."""

    digest_size = 4

    def __init__(self, update: Callable[[int, Data], int], start: int, final_xor: int) -> None:
        self._update, self._start, self._final_xor = update, start, final_xor

    def set_key(self, key: bytes) -> None:
        if len(key) != self.digest_size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._start = int.from_bytes(key, "little")

    def digest(self, *parts: Data) -> bytes:
        crc = self._start
        for part in parts:
            crc = self._update(crc, part)
        return (crc ^ self._final_xor).to_bytes(self.digest_size, "little")


@cache
def _crc32c_table() -> list[int]:
    """What two bytes at a time do to the CRC."""
    table = []
    for value in range(1 << 16):
        for _ in range(16):
            value = value >> 1 ^ (_CRC32C if value & 1 else 0)
        table.append(value)
    return table


def _crc32c(crc: int, data: Data) -> int:
    table = _crc32c_table()
    if len(data) % 2:
        raise ValueError(f"{len(data)} bytes: expected an even number")
    for word in struct.unpack(f"<{len(data) // 2}H", data):
        crc = table[(crc ^ word) & 0xFFFF] ^ crc >> 16
    return crc


def _crc32(crc: int, data: Data) -> int:
    """zlib inverts before and after, the kernel's `crc32` does not."""
    return zlib.crc32(data, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def allocate(name: str) -> Shash:
    """`crypto_alloc_shash`: the hash called `name`. LookupError when there is none."""
    if name == "crc32c":
        return _Crc(_crc32c, 0xFFFFFFFF, 0xFFFFFFFF)
    if name == "crc32":
        return _Crc(_crc32, 0, 0)
    if name in _HASHES:
        return _Hashlib(name)
    if (match := _HMAC.match(name)) and match[1] in _HASHES:
        return _Hmac(match[1])
    raise LookupError(f"no hash {name!r}")
