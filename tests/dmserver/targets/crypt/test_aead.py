"""Whatever runs of sectors are cut into, each sector and its tag are what the library makes of it alone."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.crypt.aead import Aead, BadMessageError, allocate_aead
from dmserver.targets.skcipher import allocate

library = pytest.importorskip("cryptography.hazmat.primitives.ciphers.aead", reason="extra `crypt` is not installed")

HMAC_KEY = bytes(range(32))


def gcm(key: bytes, iv: bytes, head: bytes, text: bytes) -> bytes:
    return bytes(library.AESGCM(key).encrypt(iv, text, head + iv))


def chacha(key: bytes, iv: bytes, head: bytes, text: bytes) -> bytes:
    return bytes(library.ChaCha20Poly1305(key).encrypt(iv, text, head + iv))


def ccm(key: bytes, iv: bytes, head: bytes, text: bytes) -> bytes:
    return bytes(library.AESCCM(key[:-3], 16).encrypt(key[-3:] + iv, text, head))


def authenc(key: bytes, iv: bytes, head: bytes, text: bytes) -> bytes:
    cipher = allocate("xts(aes)")
    cipher.set_key(key[:64])
    out = bytes(cipher.encrypt(text, [iv]))
    return out + hmac.digest(HMAC_KEY, head + iv + out, "sha256")


def authenc_essiv(key: bytes, iv: bytes, head: bytes, text: bytes) -> bytes:
    cipher, salt = allocate("cbc(aes)"), allocate("ecb(aes)")
    cipher.set_key(key[:16])
    salt.set_key(hashlib.sha256(key[:16]).digest())
    iv = bytes(salt.encrypt(iv, [b""]))
    out = bytes(cipher.encrypt(text, [iv]))
    return out + hmac.digest(HMAC_KEY, head + iv + out, "sha256")


KINDS: dict[str, tuple[Any, int, int]] = {
    "gcm(aes)": (gcm, 32, 12),
    "rfc7539(chacha20,poly1305)": (chacha, 32, 12),
    "rfc4309(ccm(aes))": (ccm, 19, 8),
    "authenc(hmac(sha256),xts(aes))": (authenc, 64, 16),
    "essiv(authenc(hmac(sha256),cbc(aes)),sha256)": (authenc_essiv, 16, 16),
}


def allocated(name: str, key: bytes) -> Aead:
    cipher = allocate_aead(name)
    cipher.set_key(key + HMAC_KEY if "hmac" in name else key)
    return cipher


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 3), st.integers(1, 255))
def test_as_the_library_does(name: str, count: int, seed: int) -> None:
    alone, key_size, iv_size = KINDS[name]
    chance = hashlib.shake_128(bytes([seed])).digest(4096)
    key, plain = chance[:key_size], chance[100 : 100 + 512 * count]
    ivs = [chance[at : at + iv_size] for at in range(3000, 3000 + count)]
    heads = [at.to_bytes(8, "little") for at in range(7, 7 + count)]
    wanted = [
        alone(key, iv, head, plain[512 * at :][:512]) for at, (iv, head) in enumerate(zip(ivs, heads, strict=True))
    ]
    cipher = allocated(name, key)
    assert cipher.iv_size == iv_size
    out, tags = cipher.encrypt(memoryview(plain), ivs, heads)
    assert [bytes(out[512 * at :][:512]) + tag for at, tag in enumerate(tags)] == wanted
    assert bytes(cipher.decrypt(memoryview(bytes(out)), ivs, heads, tags)) == plain
    tags[-1] = bytes([tags[-1][0] ^ 1]) + tags[-1][1:]
    with pytest.raises(BadMessageError) as bad:
        cipher.decrypt(memoryview(bytes(out)), ivs, heads, tags)
    assert bad.value.number == count - 1


def test_a_mac_may_be_cut() -> None:
    cipher = allocated("authenc(hmac(sha256),xts(aes))", bytes(range(64)))
    _, (whole,) = cipher.encrypt(bytes(512), [bytes(16)], [b""])
    cipher.set_auth_size(20)
    out, tags = cipher.encrypt(bytes(512), [bytes(16)], [b""])
    assert tags == [whole[:20]]
    assert cipher.decrypt(out, [bytes(16)], [b""], tags) == bytes(512)


@pytest.mark.parametrize(("name", "size"), [("gcm(aes)", 12), ("authenc(hmac(sha1),cbc(aes))", 21)])
def test_tags_of_the_wrong_size(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="tags of"):
        allocate_aead(name).set_auth_size(size)


@pytest.mark.parametrize(
    ("name", "size"), [("gcm(aes)", 17), ("rfc4309(ccm(aes))", 16), ("authenc(hmac(sha256),cbc(aes))", 31)]
)
def test_keys_of_the_wrong_size(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="bytes of key"):
        allocate_aead(name).set_key(bytes(size))


@pytest.mark.parametrize("name", ["aegis128", "authenc(hmac(no),cbc(aes))", "authenc(hmac(sha1),no(aes))", "cbc(aes)"])
def test_what_is_not_to_be_had(name: str) -> None:
    with pytest.raises(LookupError, match="no "):
        allocate_aead(name)
