"""BitLocker's diffusers, against the published equations done word by word."""

from __future__ import annotations

import struct

import pytest
from support.targets import Bench, pattern, read, write

from dmserver.targets.crypt.crypt import Crypt
from dmserver.targets.crypt.elephant import Elephant

ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers", reason="extra `crypt` is not installed")

KEY, TWEAK_KEY = bytes(range(16)), bytes(range(16, 32))


def rotate(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & 0xFFFFFFFF


def ecb(key: bytes, text: bytes) -> bytes:
    return bytes(ciphers.Cipher(ciphers.algorithms.AES(key), ciphers.modes.ECB()).encryptor().update(text))


def undiffused(text: bytes) -> bytes:
    """B and A as their inventor defines them for decryption."""
    count = len(text) // 4
    d = list(struct.unpack(f"<{count}I", text))
    for rounds, sign, turns in ((3, 1, (0, 10, 0, 25)), (5, -1, (9, 0, 13, 0))):
        for at in list(range(count)) * rounds:
            near, far = d[(at + 2 * sign) % count], d[(at + 5 * sign) % count]
            d[at] = d[at] + (near ^ rotate(far, turns[at % 4])) & 0xFFFFFFFF
    return struct.pack(f"<{count}I", *d)


@pytest.mark.parametrize("size", [512, 4096])
def test_decryption_is_as_published(size: int) -> None:
    bench = Bench()
    key = (KEY + TWEAK_KEY).hex()
    options = f"2 sector_size:{size} iv_large_sectors" if size > 512 else ""
    device = bench.load("e", (Crypt, 64, f"aes-cbc-elephant {key} 0 1:0 0 {options}"))
    write(device, 16, pattern(1, 0, 16))
    assert read(device, 16, 16) == pattern(1, 0, 16)
    offset = (24 * 512).to_bytes(8, "little") + bytes(8)
    cbc = ciphers.Cipher(ciphers.algorithms.AES(KEY), ciphers.modes.CBC(ecb(KEY, offset))).decryptor()
    mixed = undiffused(cbc.update(read(bench.disks[0], 24, size // 512)))
    pad = (ecb(TWEAK_KEY, offset) + ecb(TWEAK_KEY, offset[:15] + b"\x80")) * (size // 32)
    assert bytes(a ^ b for a, b in zip(mixed, pad, strict=True)) == pattern(1, 8, size // 512)


def test_half_the_key_is_the_modes() -> None:
    assert Elephant.split_key(64, 1, 16) == (2, 32)
    with pytest.raises(ValueError, match="66 bytes of key"):
        Elephant.split_key(66, 1, 16)
