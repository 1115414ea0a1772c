"""The journal of dm-integrity (Linux `drivers/md/dm-integrity.c`): where blocks and their tags go first.

It is a ring of sections. A section is 8 sectors of entries, then the data of each. Every sector ends in a commit id,
which tells section, sector and the round in which it was written; the bytes of data in its place are in the entry::

    struct journal_entry { le64 sector; le64 last_bytes[sectors_per_block]; u8 tag[]; };   /* sector_hi -1: unused */
    struct journal_sector { u8 entries[496], mac[8]; le64 commit_id; };
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...model.dm_target import SECTOR_SIZE
from ..shash import Shash
from .journal_crypt import COMMIT_IDS, JournalCipher
from .layout import JOURNAL_BLOCK_SECTORS, JOURNAL_SECTOR_DATA, Layout, SbFlag

__all__ = ["Entry", "Journal", "JournalError", "Replay"]

UNUSED = 0xFFFFFFFF << 32
MAC_SIZE = 8


class Entry(NamedTuple):
    """A block: `sector` of the data it begins at."""

    sector: int
    data: bytes
    tag: bytes


class Replay(NamedTuple):
    """What to do about a journal found: write `entries` where they belong, and clear it if `clear`."""

    entries: list[Entry]
    clear: bool


class JournalError(Exception):
    """The journal is not one. `what`: the kernel's words."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Journal:
    """`section`: the next to be written, with `commit_seq`. `mac` signs sections, `cipher` encrypts them."""

    def __init__(self, layout: Layout, mac: Shash | None, cipher: JournalCipher | None = None) -> None:
        self._layout = layout
        self.mac = mac
        self._cipher = cipher
        self._commit_ids = cipher.commit_ids if cipher else COMMIT_IDS
        self.sections = layout.sb.journal_sections
        self.section = 0
        self.commit_seq = 0
        self._erase_from, self._erase_seq = 0, 2

    # -- sections ---------------------------------------------------------------------------------------

    def _commit_id(self, section: int, sector: int, seq: int) -> bytes:
        return (self._commit_ids[seq] ^ section << 32 ^ sector).to_bytes(8, "little")

    def _place(self, number: int) -> int:
        """The byte of a section at which an entry lies."""
        row, sector = divmod(number, JOURNAL_BLOCK_SECTORS)
        return sector * SECTOR_SIZE + row * self._layout.entry_size

    def build(self, section: int, seq: int, entries: Sequence[Entry] = ()) -> bytearray:
        """A section that holds some entries, as it is on the disk."""
        layout = self._layout
        image = bytearray(layout.section_sectors * SECTOR_SIZE)
        for number in range(layout.section_entries):
            at = self._place(number)
            if number >= len(entries):
                image[at : at + 8] = UNUSED.to_bytes(8, "little")
                continue
            sector, data, tag = entries[number]
            head = sector.to_bytes(8, "little")
            for part in range(layout.sectors_per_block):
                end = (part + 1) * SECTOR_SIZE
                head += data[end - 8 : end]
                to = (JOURNAL_BLOCK_SECTORS + number * layout.sectors_per_block + part) * SECTOR_SIZE
                image[to : to + JOURNAL_SECTOR_DATA] = data[end - SECTOR_SIZE : end - 8]
            image[at : at + len(head) + len(tag)] = head + tag
        if self.mac is not None:
            mac = self._section_mac(self.mac, section, image)
            for sector in range(JOURNAL_BLOCK_SECTORS):
                end = (sector + 1) * SECTOR_SIZE - 8
                image[end - MAC_SIZE : end] = mac[sector * MAC_SIZE : (sector + 1) * MAC_SIZE]
        for sector in range(layout.section_sectors):
            end = (sector + 1) * SECTOR_SIZE
            image[end - 8 : end] = self._commit_id(section, sector, seq)
        return bytearray(self._cipher.encrypt(section, image)) if self._cipher else image

    def parse(self, section: int, image: memoryview) -> Iterator[Entry]:
        """The entries of a section. JournalError when its MAC is wrong."""
        layout = self._layout
        if self.mac is not None:
            ends = range(JOURNAL_SECTOR_DATA, JOURNAL_BLOCK_SECTORS * SECTOR_SIZE, SECTOR_SIZE)
            if b"".join(image[end - MAC_SIZE : end] for end in ends) != self._section_mac(self.mac, section, image):
                raise JournalError("journal mac")
        for number in range(layout.section_entries):
            at = self._place(number)
            sector = int.from_bytes(image[at : at + 8], "little")
            if sector >> 32 == UNUSED >> 32:
                continue
            data = bytearray()
            for part in range(layout.sectors_per_block):
                to = (JOURNAL_BLOCK_SECTORS + number * layout.sectors_per_block + part) * SECTOR_SIZE
                data += image[to : to + JOURNAL_SECTOR_DATA]
                data += image[at + 8 + 8 * part : at + 16 + 8 * part]
            tag = at + 8 + 8 * layout.sectors_per_block
            yield Entry(sector, bytes(data), bytes(image[tag : tag + layout.tag_size]))

    def _section_mac(self, mac: Shash, section: int, image: bytearray | memoryview) -> bytes:
        places = map(self._place, range(self._layout.section_entries))
        sectors = [bytes(image[at : at + 8]) for at in places]
        salted = [self._layout.sb.salt, section.to_bytes(8, "little")]
        parts = salted + sectors if self._layout.sb.flags & SbFlag.FIXED_HMAC else sectors
        size = JOURNAL_BLOCK_SECTORS * MAC_SIZE
        return mac.digest(*parts)[:size].ljust(size, b"\0")

    # -- the ring ---------------------------------------------------------------------------------------

    def format(self) -> Iterator[tuple[int, bytearray]]:
        """A new journal: all sections, empty, as (section, image)."""
        self.section, self.commit_seq = 0, 1
        for section in range(self.sections):
            yield section, self.build(section, 0)

    def next(self, entries: Sequence[Entry]) -> tuple[int, bytearray]:
        """The next section, with these entries, as (section, image)."""
        section = self.section
        image = self.build(section, self.commit_seq, entries)
        self._step()
        return section, image

    def _step(self) -> None:
        self.section += 1
        if self.section == self.sections:
            self.section = 0
            self.commit_seq = (self.commit_seq + 1) % len(COMMIT_IDS)

    def clear(self) -> Iterator[tuple[int, bytearray]]:
        """Begin again: all sections, empty, in the order in which to write them."""
        self.section, self.commit_seq = 0, (self._erase_seq + 1) % len(COMMIT_IDS)
        for number in range(self.sections):
            section = (self._erase_from + number) % self.sections
            yield section, self.build(section, self._erase_seq)

    def read(self, image: memoryview, *, keep: bool) -> Replay:
        """Take up a journal as it is on the disk (`replay_journal`). `keep`: it need not be cleared once its entries
        are written. JournalError when it is not one; then `clear` it."""
        size = self._layout.section_sectors * SECTOR_SIZE
        images = [image[at : at + size] for at in range(0, self.sections * size, size)]
        if self._cipher is not None:
            images = [memoryview(self._cipher.decrypt(section, part)) for section, part in enumerate(images)]
        seqs = [self._seqs(section, part) for section, part in enumerate(images)]
        used = set().union(*seqs)
        empty = all(self._is_empty(part) for part in images)
        count = len(COMMIT_IDS)
        if count - 1 not in used:
            unused = max(used) + 1
        else:
            unused = next((seq for seq in range(count) if seq not in used), count)
            if unused == count:
                raise JournalError("journal commit ids")
        last = (unused - 1) % count
        want = (last - 1) % count
        if want not in used and (want - 1) % count in used:
            empty = True
        newest = max((section for section, found in enumerate(seqs) if last in found), default=0)
        self.section, self.commit_seq = newest, want
        self._step()
        self._erase_from, self._erase_seq = self.section, (last - 2) % count
        found: list[int] = []
        while len(found) < self.sections and seqs[self.section] == {self.commit_seq}:
            found.append(self.section)
            self._step()
        entries = [] if empty else [entry for section in found for entry in self.parse(section, images[section])]
        return Replay(entries, len(found) < self.sections or not (keep or empty))

    def _seqs(self, section: int, image: memoryview) -> set[int]:
        """The rounds in which the sectors of a section were written."""
        found = set()
        for sector in range(self._layout.section_sectors):
            end = (sector + 1) * SECTOR_SIZE
            value = int.from_bytes(image[end - 8 : end], "little") ^ section << 32 ^ sector
            if value not in self._commit_ids:
                raise JournalError("journal commit id")
            found.add(self._commit_ids.index(value))
        return found

    def _is_empty(self, image: memoryview) -> bool:
        places = map(self._place, range(self._layout.section_entries))
        return all(bytes(image[at + 4 : at + 8]) == b"\xff\xff\xff\xff" for at in places)
