"""Sectors and what is beside them, as crypt lays them on a device of the type integrity."""

from __future__ import annotations

import errno

import pytest
from support.targets import Bench, pattern, read, write

from dmserver.io.bio import Bio, Op
from dmserver.model.dm_dev import DmDev
from dmserver.targets.crypt.crypt import Crypt
from dmserver.targets.integrity.integrity import Integrity

library = pytest.importorskip("cryptography.hazmat.primitives.ciphers.aead", reason="extra `crypt` is not installed")

KEY = bytes(range(32))
GCM = f"capi:gcm(aes)-random {KEY.hex()} 0 253:0 0 1 integrity:28:aead"


def stacked(cipher: str, integrity: str) -> tuple[Bench, DmDev, DmDev]:
    bench = Bench()
    below = bench.load("below", (Integrity, 1024, integrity))
    return bench, below, bench.load("c", (Crypt, 1024, cipher))


def read_with_tags(device: DmDev, sector: int, count: int, tag_size: int) -> tuple[bytes, bytes]:
    data, tags = memoryview(bytearray(512 * count)), memoryview(bytearray(tag_size * count))
    ended: list[Bio] = []
    bio = Bio(Op.READ, sector, count, data, ended.append)
    bio.tags = tags
    device.submit_bio(bio)
    assert [bio.error for bio in ended] == [0]
    return bytes(data), bytes(tags)


@pytest.mark.parametrize("integrity", ["1:0 0 28 J 0", "1:0 0 28 D 2 interleave_sectors:64 fix_padding"])
def test_tag_and_iv_are_beside_each_sector(integrity: str) -> None:
    _, below, device = stacked(GCM, integrity)
    write(device, 55, pattern(1, 55, 20))
    assert read(device, 56, 18) == pattern(1, 56, 18)
    data, tags = read_with_tags(below, 55, 20, 28)
    assert len({tags[at + 16 : at + 28] for at in range(0, len(tags), 28)}) == 20
    for number in range(20):
        tag, iv = tags[28 * number :][:16], tags[28 * number + 16 :][:12]
        sealed = data[512 * number :][:512] + tag
        head = (55 + number).to_bytes(8, "little")
        assert library.AESGCM(KEY).decrypt(iv, sealed, head + iv) == pattern(1, 55 + number)


@pytest.mark.parametrize(
    ("cipher", "size"),
    [
        (f"capi:gcm(aes)-plain64 {KEY.hex()} 8 253:0 0 1 integrity:16:aead", 16),
        (f"capi:authenc(hmac(sha256),xts(aes))-random {KEY.hex() * 3} 0 253:0 0 1 integrity:48:aead", 48),
        (f"capi:essiv(authenc(hmac(sha1),cbc(aes)),sha256)-plain64 {KEY.hex() * 2} 0 253:0 0 1 integrity:20:aead", 20),
        (f"aes-xts-random {KEY.hex()} 0 253:0 0 1 integrity:16:none", 16),
    ],
)
def test_what_is_written_is_read(cipher: str, size: int) -> None:
    if "sha1" in cipher:
        cipher = cipher.replace(KEY.hex() * 2, KEY.hex() + "00" * 20)
    _, _, device = stacked(cipher, f"1:0 0 {size} J 0")
    write(device, 16, pattern(1, 0, 16))
    assert read(device, 16, 16) == pattern(1, 0, 16)
    assert read(device, 24, 3) == pattern(1, 8, 3)


def test_large_sectors() -> None:
    cipher = f"capi:gcm(aes)-random {KEY.hex()} 0 253:0 0 2 integrity:28:aead sector_size:4096"
    _, _, device = stacked(cipher, "1:0 0 28 J 1 block_size:4096")
    write(device, 16, pattern(1, 0, 16))
    assert read(device, 24, 8) == pattern(1, 8, 8)


def test_what_somebody_else_wrote_is_refused() -> None:
    bench, below, device = stacked(GCM, "1:0 0 28 J 0")
    write(device, 0, pattern(1, 0, 16))
    write(below, 9, pattern(2))
    assert read(device, 0, 9) == pattern(1, 0, 9)
    with pytest.raises(OSError, match=f"{errno.EILSEQ}"):
        read(device, 8, 4)
    assert bench.mapper.events.lines[-1] == ("trusted_key: device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 9")


@pytest.mark.parametrize(
    ("cipher", "integrity", "words"),
    [
        (GCM, "1:0 0 29 J 0", "Integrity profile tag size mismatch."),
        (GCM, "1:0 0 28 J 1 block_size:4096", "Integrity profile sector size mismatch."),
        (GCM, "1:0 0 28 J 1 internal_hash:sha256", "Integrity profile not supported."),
        (GCM.replace(":28:", ":24:"), "1:0 0 24 J 0", "Integrity AEAD auth tag size is not supported."),
        (
            f"aes-xts-random {KEY.hex()} 0 253:0 0 1 integrity:20:none",
            "1:0 0 20 J 0",
            "Not enough space for integrity tag in the profile.",
        ),
    ],
)
def test_devices_that_keep_something_else(cipher: str, integrity: str, words: str) -> None:
    bench = Bench()
    bench.load("below", (Integrity, 1024, integrity))
    assert bench.refusal(Crypt, 64, cipher) == (errno.EINVAL, words)
