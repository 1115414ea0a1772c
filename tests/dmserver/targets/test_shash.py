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
