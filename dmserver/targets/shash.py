"""Hashes by the names of the Linux crypto API (`crc32c`, `sha256`, `hmac(sha256)` ...; `crypto/shash.c`)."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import re
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

__all__ = ["Shash", "allocate"]

Data = bytes | bytearray | memoryview

_HASHES = (
    *("md5", "sha1", "sha224", "sha256", "sha384", "sha512"),
    *("sha3-224", "sha3-256", "sha3-384", "sha3-512"),
)
_BLAKE2 = re.compile(r"(blake2b)-(160|256|384|512)|(blake2s)-(128|160|224|256)")
_HMAC = re.compile(r"hmac\(([\w-]+)\)\Z")
_CRC32C = 0x82F63B78
#: Up to this many blocks, one after the other is faster.
FEW = 12


class _State(Protocol):
    def copy(self) -> _State: ...
    def update(self, data: Data, /) -> None: ...
    def digest(self) -> bytes: ...


class Shash(ABC):
    """One hash, with its key if it has one. `digest_size` in bytes; `needs_key`: it gives none before `set_key`."""

    digest_size: int
    needs_key = False

    def set_key(self, key: bytes) -> None:
        """OSError: ENOSYS when the hash takes no key, EINVAL for one of the wrong size."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    @abstractmethod
    def digest(self, *parts: Data) -> bytes:
        """The digest of the parts, one after the other."""

    def digests(self, heads: Sequence[bytes], data: Data) -> list[bytes]:
        """The digests of as many blocks of equal size as there are `heads`, each with its own before it."""
        size = len(data) // max(len(heads), 1)
        return [self.digest(head, data[at * size : (at + 1) * size]) for at, head in enumerate(heads)]


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


class _Blake2(_Hashlib):
    """The key is optional."""

    def __init__(self, name: str, size: int) -> None:
        self._make = hashlib.blake2b if name == "blake2b" else hashlib.blake2s
        self._start = self._make(digest_size=size)
        self.digest_size = size

    def set_key(self, key: bytes) -> None:
        if len(key) > self._make.MAX_KEY_SIZE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._start = self._make(digest_size=self.digest_size, key=key)


class _XxHash64(Shash):
    """The key is the seed, little-endian."""

    digest_size = 8
    _seed = 0

    def set_key(self, key: bytes) -> None:
        if len(key) != self.digest_size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._seed = int.from_bytes(key, "little")

    def digest(self, *parts: Data) -> bytes:
        return _xxh64(self._seed, b"".join(parts)).to_bytes(8, "little")


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


class _Crc32c(_Crc):
    """Of many blocks at once, each byte of the CRCs is a number that has a digit for each block."""

    def __init__(self) -> None:
        super().__init__(_crc32c, 0xFFFFFFFF, 0xFFFFFFFF)

    def digests(self, heads: Sequence[bytes], data: Data) -> list[bytes]:
        count = len(heads)
        if count < FEW:
            return super().digests(heads, data)
        start, final = (value.to_bytes(4, "little") for value in (self._start, self._final_xor))
        planes = [int.from_bytes(start[at : at + 1] * count, "little") for at in range(4)]
        planes = _crc32c_many(_crc32c_many(planes, b"".join(heads), count), bytes(data), count)
        found = bytearray(4 * count)
        for at, plane in enumerate(planes):
            found[at::4] = (plane ^ int.from_bytes(final[at : at + 1] * count, "little")).to_bytes(count, "little")
        return [bytes(found[at : at + 4]) for at in range(0, 4 * count, 4)]


@cache
def _crc32c_table(bits: int) -> list[int]:
    """What so many bits at a time do to the CRC."""
    table = []
    for value in range(1 << bits):
        for _ in range(bits):
            value = value >> 1 ^ (_CRC32C if value & 1 else 0)
        table.append(value)
    return table


def _crc32c(crc: int, data: Data) -> int:
    table = _crc32c_table(16)
    for word in struct.unpack_from(f"<{len(data) // 2}H", data):
        crc = table[(crc ^ word) & 0xFFFF] ^ crc >> 16
    if len(data) % 2:
        crc = _crc32c_table(8)[(crc ^ data[-1]) & 0xFF] ^ crc >> 8
    return crc


@cache
def _crc32c_planes() -> list[bytes]:
    """The table for 8 bits, by bytes."""
    return [bytes(value >> shift & 0xFF for value in _crc32c_table(8)) for shift in (0, 8, 16, 24)]


def _crc32c_many(planes: list[int], data: bytes, count: int) -> list[int]:
    """The CRCs of `count` blocks, side by side in `planes`, each byte of all of them at a time."""
    table0, table1, table2, table3 = _crc32c_planes()
    number = int.from_bytes
    crc0, crc1, crc2, crc3 = planes
    size = len(data) // count
    for at in range(size):
        index = (crc0 ^ number(data[at::size], "little")).to_bytes(count, "little")
        crc0 = crc1 ^ number(index.translate(table0), "little")
        crc1 = crc2 ^ number(index.translate(table1), "little")
        crc2 = crc3 ^ number(index.translate(table2), "little")
        crc3 = number(index.translate(table3), "little")
    return [crc0, crc1, crc2, crc3]


_U64 = (1 << 64) - 1
_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _U64


def _xxh64(seed: int, data: bytes) -> int:
    """XXH64 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md)."""

    def mixed(lane: int, word: int) -> int:
        return _rotated(lane + word * _P2 & _U64, 31) * _P1 & _U64

    whole = len(data) // 32 * 32
    if whole:
        lanes = [seed + _P1 + _P2 & _U64, seed + _P2 & _U64, seed, seed - _P1 & _U64]
        words = struct.unpack_from(f"<{whole // 8}Q", data)
        for at in range(4):
            for word in words[at::4]:
                lanes[at] = mixed(lanes[at], word)
        total = sum(_rotated(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & _U64
        for lane in lanes:
            total = ((total ^ mixed(0, lane)) * _P1 + _P4) & _U64
    else:
        total = seed + _P5 & _U64
    total = total + len(data) & _U64
    at = whole
    while len(data) - at >= 8:
        total = _rotated(total ^ mixed(0, int.from_bytes(data[at : at + 8], "little")), 27) * _P1 + _P4 & _U64
        at += 8
    if len(data) - at >= 4:
        total = _rotated(total ^ int.from_bytes(data[at : at + 4], "little") * _P1 & _U64, 23) * _P2 + _P3 & _U64
        at += 4
    for byte in data[at:]:
        total = _rotated(total ^ byte * _P5 & _U64, 11) * _P1 & _U64
    total = (total ^ total >> 33) * _P2 & _U64
    total = (total ^ total >> 29) * _P3 & _U64
    return total ^ total >> 32


def _crc32(crc: int, data: Data) -> int:
    """zlib inverts before and after, the kernel's `crc32` does not."""
    return zlib.crc32(data, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def allocate(name: str) -> Shash:
    """`crypto_alloc_shash`: the hash called `name`. LookupError when there is none."""
    if name == "crc32c":
        return _Crc32c()
    if name == "crc32":
        return _Crc(_crc32, 0, 0)
    if name == "xxhash64":
        return _XxHash64()
    if name in _HASHES:
        return _Hashlib(name)
    if match := _BLAKE2.fullmatch(name):
        return _Blake2(match[1] or match[3], int(match[2] or match[4]) // 8)
    if (match := _HMAC.match(name)) and match[1] in _HASHES:
        return _Hmac(match[1])
    raise LookupError(f"no hash {name!r}")
