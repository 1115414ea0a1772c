from __future__ import annotations

import errno
import hashlib
import hmac

import pytest

from dmserver.targets.shash import FEW, allocate


def test_crc() -> None:
    """RFC 3720 B.4 for crc32c; the kernel's crc32 neither starts from ones nor inverts."""
    assert allocate("crc32c").digest(bytes(32)) == bytes.fromhex("aa36918a")
    assert allocate("crc32c").digest(b"\xff" * 30, b"\xff" * 2) == bytes.fromhex("43aba862")
    assert allocate("crc32").digest(bytes(64)) == bytes(4)


def test_a_crc_starts_from_its_key() -> None:
    crc = allocate("crc32")
    crc.set_key(b"\xff" * 4)
    assert int.from_bytes(crc.digest(b"123456789"), "little") ^ 0xFFFFFFFF == 0xCBF43926
    with pytest.raises(OSError, match="Invalid argument"):
        crc.set_key(b"short")


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0xEF46DB3751D8E999),
        (b"a", 0, 0xD24EC4F1A98C6E5B),
        (b"abc", 0, 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0, 0xFBCEA83C8A378BF1),
        (b"xxhash", 20141025, 0xB559B98D844E0635),
    ],
)
def test_xxhash64(data: bytes, seed: int, expected: int) -> None:
    """Published values; the kernel writes the number little-endian."""
    xxhash = allocate("xxhash64")
    if seed:
        xxhash.set_key(seed.to_bytes(8, "little"))
    assert xxhash.digest(data[:2], data[2:]) == expected.to_bytes(8, "little")
    with pytest.raises(OSError, match="Invalid argument"):
        xxhash.set_key(b"short")


def test_blake2() -> None:
    blake = allocate("blake2b-160")
    assert blake.digest(b"a", b"b") == hashlib.blake2b(b"ab", digest_size=20).digest()
    blake.set_key(b"key")
    assert blake.digest(b"ab") == hashlib.blake2b(b"ab", digest_size=20, key=b"key").digest()
    assert allocate("blake2s-256").digest(b"ab") == hashlib.blake2s(b"ab").digest()
    with pytest.raises(OSError, match="Invalid argument"):
        blake.set_key(bytes(65))
    with pytest.raises(LookupError):
        allocate("blake2b-128")


def test_hashes_and_hmac() -> None:
    assert allocate("sha256").digest(b"a", b"b") == hashlib.sha256(b"ab").digest()
    assert allocate("sha3-256").digest(b"") == hashlib.sha3_256().digest()
    keyed = allocate("hmac(sha256)")
    assert keyed.needs_key
    keyed.set_key(b"key")
    assert keyed.digest(b"a", b"b") == hmac.digest(b"key", b"ab", "sha256")
    with pytest.raises(OSError, match="not implemented") as refusal:
        allocate("sha256").set_key(b"key")
    assert refusal.value.errno == errno.ENOSYS
    with pytest.raises(LookupError, match="no hash 'bogus'"):
        allocate("bogus")


@pytest.mark.parametrize("name", ["crc32c", "crc32", "sha256"])
@pytest.mark.parametrize("count", [0, 1, FEW, 300])
def test_many_at_once_are_the_same_as_one_after_the_other(name: str, count: int) -> None:
    found = allocate(name)
    heads = [number.to_bytes(8, "little") for number in range(count)]
    blocks = [bytes(number * at & 0xFF for at in range(64)) for number in range(count)]
    wanted = [found.digest(head, block) for head, block in zip(heads, blocks, strict=True)]
    assert found.digests(heads, memoryview(b"".join(blocks))) == wanted
