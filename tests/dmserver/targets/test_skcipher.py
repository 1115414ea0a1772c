"""Whatever runs of sectors are cut into, each sector is what OpenSSL makes of it alone."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.skcipher import Skcipher, allocate

ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers", reason="extra `crypt` is not installed")
AES, modes = ciphers.algorithms.AES, ciphers.modes

KEYS = {
    "cbc(aes)": (16, 24, 32),
    "ctr(aes)": (16, 24, 32),
    "xts(aes)": (32, 64),
    "essiv(cbc(aes),sha256)": (16, 24, 32),
}


def openssl(name: str, key: bytes, iv: bytes, sector: bytes) -> bytes:
    if name.startswith("essiv"):
        salt = ciphers.Cipher(AES(hashlib.sha256(key).digest()), modes.ECB()).encryptor()
        iv, name = salt.update(iv), "cbc(aes)"
    mode = {"cbc(aes)": modes.CBC, "ctr(aes)": modes.CTR, "xts(aes)": modes.XTS}[name]
    return bytes(ciphers.Cipher(AES(key), mode(iv)).encryptor().update(sector))


def allocated(name: str, key: bytes) -> Skcipher:
    cipher = allocate(name)
    cipher.set_key(key)
    return cipher


@given(st.data(), st.sampled_from(sorted(KEYS)), st.sampled_from([16, 512, 1024, 4096]), st.integers(1, 4))
def test_as_openssl_does(data: st.DataObject, name: str, size: int, count: int) -> None:
    length = data.draw(st.sampled_from(KEYS[name]))
    key = data.draw(st.binary(min_size=length, max_size=length))
    if name == "xts(aes)" and key[: length // 2] == key[length // 2 :]:
        key = bytes([key[0] ^ 1]) + key[1:]
    ivs = data.draw(st.lists(st.binary(min_size=16, max_size=16), min_size=count, max_size=count))
    seed = data.draw(st.binary(min_size=1, max_size=40))
    plain = hashlib.shake_128(seed).digest(size * count)
    expected = b"".join(openssl(name, key, iv, plain[at * size : (at + 1) * size]) for at, iv in enumerate(ivs))
    cipher = allocated(name, key)
    assert bytes(cipher.encrypt(memoryview(plain), ivs)) == expected
    assert bytes(cipher.decrypt(memoryview(expected), ivs)) == plain


@given(st.binary(min_size=64, max_size=64), st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=3))
def test_xts_by_ecb_is_xts(key: bytes, ivs: list[bytes]) -> None:
    if key[:32] == key[32:]:
        return
    plain = hashlib.shake_128(key).digest(512 * len(ivs))
    straight, round_about = allocated("xts(aes)", key), allocated("xts(aes)", key)
    assert not straight.by_ecb
    round_about.by_ecb = True
    assert bytes(straight.encrypt(plain, ivs)) == round_about.encrypt(plain, ivs)
    assert bytes(straight.decrypt(plain, ivs)) == round_about.decrypt(plain, ivs)


@pytest.mark.parametrize("key", [bytes(range(32)) * 2, bytes(range(48))])
def test_xts_takes_keys_that_openssl_refuses(key: bytes) -> None:
    cipher = allocated("xts(aes)", key)
    plain = bytes(1024)
    assert cipher.decrypt(cipher.encrypt(plain, [bytes(16), bytes([1] * 16)]), [bytes(16), bytes([1] * 16)]) == plain


LRW_KEY = bytes.fromhex("4562ac25f828176d4c268414b5680185258e2a05e73e9d03ee5a830ccc094c87")


def test_lrw_is_that_of_ieee_p1619() -> None:
    cipher = allocated("lrw(aes)", LRW_KEY)
    iv = (1).to_bytes(16, "big")
    assert bytes(cipher.encrypt(b"0123456789ABCDEF", [iv])).hex() == "f1b273cd65a3df5fe95d489254634eb8"


@given(st.integers(0, (1 << 128) - 1) | st.integers(-40, -1), st.integers(1, 40))
def test_lrw_counts_blocks(first: int, count: int) -> None:
    cipher = allocated("lrw(aes)", LRW_KEY)
    ivs = [(first + at & (1 << 128) - 1).to_bytes(16, "big") for at in range(count)]
    plain = hashlib.shake_128(ivs[0]).digest(16 * count)
    expected = b"".join(cipher.encrypt(plain[16 * at : 16 * at + 16], [iv]) for at, iv in enumerate(ivs))
    assert cipher.encrypt(plain, ivs[:1]) == expected
    assert cipher.decrypt(memoryview(expected), ivs[:1]) == plain


@pytest.mark.parametrize("name", ["bogus(aes)", "cbc(serpent)", "essiv(cbc(aes),no)", "aes"])
def test_what_is_not_to_be_had(name: str) -> None:
    with pytest.raises(LookupError, match="no cipher"):
        allocate(name)


@pytest.mark.parametrize(("name", "size"), [("cbc(aes)", 17), ("xts(aes)", 16), ("ecb(cipher_null)", 1)])
def test_keys_of_the_wrong_size(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="bytes of key"):
        allocated(name, bytes(size))


def test_a_digest_that_is_no_key() -> None:
    with pytest.raises(ValueError, match="no key for AES"):
        allocated("essiv(cbc(aes),sha1)", bytes(16))


@pytest.mark.parametrize("name", ["essiv(ecb(aes),sha256)", "essiv(cbc(aes),sha512)"])
def test_what_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="no key for AES"):
        allocate(name)
