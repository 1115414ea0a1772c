"""The IVs of loop-AES are MD5's: of a library where it can be asked."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.targets import Bench, pattern, read, write

from dmserver.targets.crypt.crypt import Crypt
from dmserver.targets.crypt.lmk import Lmk, md5_states

ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers", reason="extra `crypt` is not installed")

KEYS = [bytes([number] * 32) for number in range(64)]
SEED = bytes(range(32))


@given(st.integers(0, 200), st.integers(1, 4), st.binary(min_size=1))
def test_md5_padded_is_the_librarys(size: int, count: int, seed: bytes) -> None:
    texts = [hashlib.shake_128(seed + bytes([number])).digest(size) for number in range(count)]
    zeroes = bytes((55 - size) % 64)
    padded = [text + b"\x80" + zeroes + (8 * size).to_bytes(8, "little") for text in texts]
    assert md5_states(b"".join(padded), count) == [hashlib.md5(text).digest() for text in texts]


@pytest.mark.parametrize(
    ("size", "expected"), [(64 * 16, (64, 0)), (64 * 32, (64, 0)), (65 * 16, (65, 16)), (65 * 32, (65, 32))]
)
def test_one_key_more_is_the_seed(size: int, expected: tuple[int, int]) -> None:
    assert Lmk.split_key(size, 64, 16) == expected


def cbc(key: bytes, iv: bytes, text: bytes) -> bytes:
    cipher = ciphers.Cipher(ciphers.algorithms.AES(key), ciphers.modes.CBC(iv))
    return bytes(cipher.encryptor().update(text))


@pytest.mark.parametrize("seed", [b"", SEED])
def test_each_sector_has_its_key_and_iv(seed: bytes) -> None:
    bench = Bench()
    key = (b"".join(KEYS) + seed).hex()
    device = bench.load("l", (Crypt, 256, f"aes:64-cbc-lmk {key} 8 1:0 0"))
    write(device, 60, pattern(1, 60, 8))
    for sector in range(60, 68):
        text = pattern(1, sector)
        message = text[16:] + (sector + 8).to_bytes(7, "little")
        if seed:
            padding = b"\x80" + (8 * len(message)).to_bytes(8, "little")
            (iv,) = md5_states(seed[:16] + bytes(48) + message + padding, 1)
        else:
            iv = hashlib.md5(message).digest()
        assert read(bench.disks[0], sector) == cbc(KEYS[(sector + 8) % 64], iv, text)
    assert read(device, 61, 6) == pattern(1, 61, 6)
