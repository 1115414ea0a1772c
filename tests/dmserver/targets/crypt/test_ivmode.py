from __future__ import annotations

import zlib

import pytest
from support.targets import Bench, pattern, read, write

from dmserver.targets.crypt.crypt import Crypt
from dmserver.targets.crypt.ivmode import Benbi, Eboiv, Plain, Plain64, Plain64Be, Tcw
from dmserver.targets.skcipher import allocate

ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers", reason="extra `crypt` is not installed")

SECTOR = 0x12345678_9ABCDEF0


@pytest.mark.parametrize(
    ("mode", "cipher", "iv"),
    [
        (Plain, "cbc(aes)", "f0debc9a" + "00" * 12),
        (Plain64, "cbc(aes)", "f0debc9a78563412" + "00" * 8),
        (Plain64Be, "cbc(aes)", "00" * 8 + "123456789abcdef0"),
        (Benbi, "cbc(aes)", "00" * 8 + "468acf13579bde01"),
        (Benbi, "ctr(aes)", "00" * 8 + "68acf13579bde001"),
    ],
)
def test_numbers_of_sectors(mode: type[Plain], cipher: str, iv: str) -> None:
    assert mode(allocate(cipher), 512).iv(SECTOR).hex() == iv


def test_eboiv_wants_blocks_of_the_ivs_size() -> None:
    with pytest.raises(ValueError, match="EBOIV"):
        Eboiv(allocate("ctr(aes)"), 512)


def test_tcw_as_truecrypt_describes_it() -> None:
    key, iv_seed, whitening = bytes(range(32)), bytes(range(100, 116)), bytes(range(200, 216))
    bench = Bench()
    device = bench.load("t", (Crypt, 64, f"aes-cbc-tcw {(key + iv_seed + whitening).hex()} 1 1:0 0"))
    write(device, 5, pattern(1, 5, 3))
    assert read(device, 6, 2) == pattern(1, 6, 2)
    for sector in (5, 6, 7):
        number = (sector + 1).to_bytes(8, "little") * 2
        iv = bytes(a ^ b for a, b in zip(number, iv_seed, strict=True))
        seed = bytes(a ^ b for a, b in zip(number, whitening, strict=True))
        crcs = [zlib.crc32(seed[at : at + 4], 0xFFFFFFFF) ^ 0xFFFFFFFF for at in (0, 4, 8, 12)]
        pad = (crcs[0] ^ crcs[3]).to_bytes(4, "little") + (crcs[1] ^ crcs[2]).to_bytes(4, "little")
        aes = ciphers.Cipher(ciphers.algorithms.AES(key), ciphers.modes.CBC(iv)).encryptor()
        expected = bytes(a ^ b for a, b in zip(aes.update(pattern(1, sector)), pad * 64, strict=True))
        assert read(bench.disks[0], sector) == expected


def test_tcw_takes_iv_and_whitening_off_the_key() -> None:
    assert Tcw.split_key(64, 1, 16) == (3, 32)
