from __future__ import annotations

import pytest

from dmserver.targets.integrity.journal_crypt import COMMIT_IDS, JournalCipher
from dmserver.targets.integrity.layout import Layout, SbFlag
from dmserver.targets.skcipher import allocate

ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers", reason="extra `crypt` is not installed")

KEY = bytes(range(32))


def made(name: str, sections: int = 3) -> tuple[int, JournalCipher]:
    layout = Layout(0, 4, 1, data_sectors=1 << 20, meta_sectors=1 << 20, separate=False, log2_buffer_sectors=7)
    layout.format(1, 32768, SbFlag(0), bytes(16))
    layout.sb.journal_sections = sections
    cipher = allocate(name)
    cipher.set_key(KEY)
    return layout.section_sectors * 512, JournalCipher(cipher, layout)


def openssl(mode: object, text: bytes) -> bytes:
    return bytes(ciphers.Cipher(ciphers.algorithms.AES(KEY), mode).encryptor().update(text))


def test_a_stream_runs_through_all_sections_and_on_into_the_commit_ids() -> None:
    size, cipher = made("ctr(aes)")
    pages = -(-3 * size // 4096) * 4096
    stream = openssl(ciphers.modes.CTR(bytes(16)), bytes(pages + 32))
    for section in range(3):
        assert cipher.encrypt(section, bytes(size)) == stream[section * size : (section + 1) * size]
        assert cipher.decrypt(section, cipher.encrypt(section, b"x" * size)) == b"x" * size
    ends = [int.from_bytes(stream[pages + at : pages + at + 8], "little") for at in range(0, 32, 8)]
    assert cipher.commit_ids == tuple(plain ^ end for plain, end in zip(COMMIT_IDS, ends, strict=True))


def test_a_block_cipher_has_an_iv_for_each_section() -> None:
    size, cipher = made("cbc(aes)")
    assert cipher.commit_ids == COMMIT_IDS
    for section in (0, 2):
        iv = openssl(ciphers.modes.CBC(bytes(16)), section.to_bytes(16, "little"))
        assert cipher.encrypt(section, bytes(size)) == openssl(ciphers.modes.CBC(iv), bytes(size))
        assert cipher.decrypt(section, cipher.encrypt(section, b"x" * size)) == b"x" * size


def test_a_cipher_without_iv() -> None:
    size, cipher = made("ecb(aes)")
    assert cipher.encrypt(0, bytes(size)) == cipher.encrypt(1, bytes(size))
