"""How dm-integrity encrypts its journal (option journal_crypt; `create_journal`, `encrypt_journal`).

A block cipher makes of each section one message, whose IV is the section's number, encrypted. A stream cipher gives one
key stream as long as the journal, in whole pages; what follows in the stream is mixed into the commit ids.
"""

from __future__ import annotations

from ...model.dm_target import SECTOR_SIZE
from ..skcipher import Data, Skcipher
from ..xor import xor
from .layout import Layout

__all__ = ["COMMIT_IDS", "JournalCipher"]

#: How the rounds of the journal are told apart.
COMMIT_IDS = tuple(0x1111111111111111 * number for number in (1, 2, 3, 4))
PAGE_SIZE = 4096


class JournalCipher:
    """`cipher` has its key. `commit_ids`: those to be used."""

    def __init__(self, cipher: Skcipher, layout: Layout) -> None:
        self._cipher = cipher
        self._size = layout.section_sectors * SECTOR_SIZE
        self._stream = b""
        self.commit_ids = COMMIT_IDS
        if cipher.block_size == 1:
            size = -(-self._size * layout.sb.journal_sections // PAGE_SIZE) * PAGE_SIZE
            ids = b"".join(each.to_bytes(8, "little") for each in COMMIT_IDS)
            stream = bytes(cipher.encrypt(bytes(size) + ids, [bytes(cipher.iv_size)]))
            self._stream, ids = stream[:size], stream[size:]
            self.commit_ids = _different([int.from_bytes(ids[at : at + 8], "little") for at in range(0, len(ids), 8)])

    def encrypt(self, section: int, image: Data) -> Data:
        """A section as it goes to the disk."""
        if self._stream:
            return self._mixed(section, image)
        return self._cipher.encrypt(image, [self._iv(section)])

    def decrypt(self, section: int, image: Data) -> Data:
        """The inverse of `encrypt`."""
        if self._stream:
            return self._mixed(section, image)
        return self._cipher.decrypt(image, [self._iv(section)])

    def _mixed(self, section: int, image: Data) -> Data:
        return xor(image, self._stream[section * self._size : (section + 1) * self._size])

    def _iv(self, section: int) -> bytes:
        size, block = self._cipher.iv_size, self._cipher.block_size
        number = section.to_bytes(4, "little").ljust(-(-size // block) * block, b"\0")
        return bytes(self._cipher.encrypt(number, [bytes(size)]))[:size] if size else b""


def _different(ids: list[int]) -> tuple[int, ...]:
    """The ids, counted up where one is as another before it."""
    for at in range(len(ids)):
        while ids[at] in ids[:at]:
            ids[at] = ids[at] + 1 & (1 << 64) - 1
    return tuple(ids)
