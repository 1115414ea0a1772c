"""Where dm-integrity keeps what (Linux `drivers/md/dm-integrity.c`): super block, journal, tags and data.

Without a device for metadata: super block (8 sectors), journal, then areas, each of tags and the data they are of. With
one: super block, journal and all tags there, and nothing but data on the other::

    struct superblock { u8 magic[8], version, log2_interleave_sectors; le16 integrity_tag_size; le32 journal_sections;
        le64 provided_data_sectors; le32 flags; u8 log2_sectors_per_block, log2_blocks_per_bitmap_bit, pad[2];
        le64 recalc_sector; u8 pad2[8], salt[16]; };
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from enum import IntFlag

from ...model.dm_target import SECTOR_SIZE
from ..shash import Shash

__all__ = ["SB_SECTORS", "Layout", "SbFlag", "Superblock"]

MAGIC = b"integrt\0"
SB_SECTORS = 8
MAX_VERSION = 5
INTERLEAVE = range(3, 32)
JOURNAL_BLOCK_SECTORS = 8
#: Bytes of a sector of the journal before its commit id, and those of them that a MAC takes.
JOURNAL_SECTOR_DATA = SECTOR_SIZE - 8
JOURNAL_MAC_PER_SECTOR = 8
METADATA_PADDING_SECTORS = 8
UINT_MAX = 0xFFFFFFFF

_SUPERBLOCK = struct.Struct("<8sBBHIQIBB2xQ8x16s")


class SbFlag(IntFlag):
    """`SB_FLAG_*`."""

    HAVE_JOURNAL_MAC = 1
    RECALCULATING = 2
    DIRTY_BITMAP = 4
    FIXED_PADDING = 8
    FIXED_HMAC = 16


@dataclass(slots=True)
class Superblock:
    magic: bytes = MAGIC
    version: int = 1
    log2_interleave_sectors: int = 0
    tag_size: int = 0
    journal_sections: int = 0
    provided_data_sectors: int = 0
    flags: int = 0
    log2_sectors_per_block: int = 0
    log2_blocks_per_bitmap_bit: int = 0
    recalc_sector: int = 0
    salt: bytes = bytes(16)

    @classmethod
    def parse(cls, data: bytes | bytearray) -> Superblock:
        return cls(*_SUPERBLOCK.unpack_from(data))

    def build(self, mac: Shash | None = None) -> bytes:
        """All its 8 sectors. With FIXED_HMAC and a `mac`, the first ends in one (`sb_mac`)."""
        image = _SUPERBLOCK.pack(*astuple(self))
        if mac is not None and self.flags & SbFlag.FIXED_HMAC:
            image = image.ljust(SECTOR_SIZE - mac.digest_size, b"\0")
            image += mac.digest(image)
        return image.ljust(SB_SECTORS * SECTOR_SIZE, b"\0")

    def recalculate(self) -> None:
        """From the first sector on."""
        self.flags |= SbFlag.RECALCULATING
        self.recalc_sector = 0

    def set_version(self, *, separate: bool, bitmap: bool) -> None:
        """The oldest version that has what is used (`sb_set_version`); `separate`: metadata have their own device;
        `bitmap`: mode B."""
        if self.flags & SbFlag.FIXED_HMAC:
            self.version = 5
        elif self.flags & SbFlag.FIXED_PADDING:
            self.version = 4
        elif bitmap or self.flags & SbFlag.DIRTY_BITMAP:
            self.version = 3
        else:
            self.version = 2 if separate or self.flags & SbFlag.RECALCULATING else 1


class Layout:
    """Positions, in sectors unless said otherwise. `start`: where all begins on the (metadata) device; `data_sectors`,
    `meta_sectors`: sizes of the devices, the same one's if not `separate`. `bitmap`: there is one in the place of the
    journal."""

    def __init__(
        self,
        start: int,
        tag_size: int,
        sectors_per_block: int,
        *,
        data_sectors: int,
        meta_sectors: int,
        separate: bool,
        log2_buffer_sectors: int,
        bitmap: bool = False,
    ) -> None:
        self.sb = Superblock(
            tag_size=tag_size,
            log2_sectors_per_block=sectors_per_block.bit_length() - 1,
        )
        self.start = start
        self.tag_size = tag_size
        self.sectors_per_block = sectors_per_block
        self.data_sectors = data_sectors
        self.meta_sectors = meta_sectors
        self.separate = separate
        self.log2_buffer_sectors = log2_buffer_sectors
        self.bitmap = bitmap
        self.metadata_run = self.initial_sectors = self.provided = 0
        self._measure_sections()

    # -- sizes ------------------------------------------------------------------------------------------

    def _measure_sections(self) -> None:
        """`calculate_journal_section_size`."""
        self.entry_size = -(-(8 + 8 * self.sectors_per_block + self.tag_size) // 8) * 8
        room = JOURNAL_SECTOR_DATA
        if self.sb.flags & SbFlag.HAVE_JOURNAL_MAC:
            room -= JOURNAL_MAC_PER_SECTOR
        self.section_entries = room // self.entry_size * JOURNAL_BLOCK_SECTORS
        self.section_sectors = self.section_entries * self.sectors_per_block + JOURNAL_BLOCK_SECTORS

    def measure(self) -> None:
        """Fill in what follows from super block and `provided` (`calculate_device_limits`). ValueError: too small."""
        self._measure_sections()
        sb = self.sb
        self.initial_sectors = SB_SECTORS + self.section_sectors * sb.journal_sections
        if self.initial_sectors + METADATA_PADDING_SECTORS >= self.meta_sectors or self.initial_sectors > UINT_MAX:
            raise ValueError(f"{self.meta_sectors} sectors: expected more than {self.initial_sectors} for the journal")
        if self.separate:
            buffer = SECTOR_SIZE << self.log2_buffer_sectors
            tags = (self.provided >> sb.log2_sectors_per_block) * self.tag_size
            self.metadata_run = 1
            last = self.initial_sectors + (-(-tags // buffer) << self.log2_buffer_sectors)
        else:
            padding = METADATA_PADDING_SECTORS * SECTOR_SIZE
            if not sb.flags & SbFlag.FIXED_PADDING:
                padding = SECTOR_SIZE << METADATA_PADDING_SECTORS
            tags = self.tag_size << sb.log2_interleave_sectors - sb.log2_sectors_per_block
            self.metadata_run = -(-tags // padding) * padding // SECTOR_SIZE
            last = self.data_sector(max(self.provided - 1, 0)) + 1
        if last > self.meta_sectors:
            raise ValueError(f"{self.meta_sectors} sectors: expected at least {last}")

    def _fits(self) -> bool:
        try:
            self.measure()
        except ValueError:
            return False
        return True

    def provide(self) -> None:
        """Find out how many sectors of data there is room for (`get_provided_data_sectors`)."""
        if self.separate:
            self.provided = self.data_sectors & ~(self.sectors_per_block - 1)
            return
        self.provided = 0
        for bit in reversed(range(3, self.meta_sectors.bit_length())):
            self.provided |= 1 << bit
            if not self._fits():
                self.provided &= ~(1 << bit)

    def measure_with_smaller_buffers(self) -> None:
        """`measure`, with smaller buffers if that helps. ValueError when it does not."""
        while not self._fits():
            if not self.separate or self.log2_buffer_sectors <= 3:
                raise ValueError("the device is too small")
            self.log2_buffer_sectors -= 1

    def format(self, journal_sectors: int, interleave_sectors: int, flags: SbFlag, salt: bytes) -> None:
        """Fill in a new super block (`initialize_superblock`). ValueError when the device is too small."""
        sb = self.sb
        sb.flags, sb.salt = flags & ~SbFlag.FIXED_PADDING if self.separate else flags, salt
        self._measure_sections()
        sections = max(journal_sectors // self.section_sectors, 1)
        if self.separate:
            self.provide()
            self._choose_sections(sections)
        else:
            sb.journal_sections = sections
            log2 = (interleave_sectors or 32768).bit_length() - 1
            sb.log2_interleave_sectors = min(max(log2, INTERLEAVE.start), INTERLEAVE.stop - 1)
            self.provide()
        if not self.provided:
            raise ValueError("the device is too small")
        sb.provided_data_sectors = self.provided
        sb.set_version(separate=self.separate, bitmap=self.bitmap)

    def _choose_sections(self, most: int) -> None:
        """As many sections of journal as there is room for beside all the tags, but no more than `most`."""
        sb = self.sb
        while True:
            sb.journal_sections = 0
            for bit in reversed(range(most.bit_length())):
                before = sb.journal_sections
                if before | 1 << bit <= most:
                    sb.journal_sections = before | 1 << bit
                    if not self._fits():
                        sb.journal_sections = before
            if sb.journal_sections:
                return
            if self.log2_buffer_sectors <= 3:
                raise ValueError("the metadata device is too small")
            self.log2_buffer_sectors -= 1

    # -- positions --------------------------------------------------------------------------------------

    def area(self, sector: int) -> tuple[int, int]:
        """(area, sector in it) of a sector of data."""
        if self.separate:
            return 0, sector
        log2 = self.sb.log2_interleave_sectors
        return sector >> log2, sector & (1 << log2) - 1

    def data_sector(self, sector: int) -> int:
        """Where a sector of data lies on the data device (`get_data_sector`)."""
        area, offset = self.area(sector)
        if self.separate:
            return offset
        areas = (area << self.sb.log2_interleave_sectors) + (area + 1) * self.metadata_run
        return areas + self.initial_sectors + offset + self.start

    def tag_position(self, sector: int) -> int:
        """Where the tag of a block lies on the metadata device, in bytes (`get_metadata_sector_and_offset`)."""
        area, offset = self.area(sector)
        areas = area * ((1 << self.sb.log2_interleave_sectors) + self.metadata_run)
        tags = (offset >> self.sb.log2_sectors_per_block) * self.tag_size
        return (self.start + self.initial_sectors + areas) * SECTOR_SIZE + tags

    def section_sector(self, section: int) -> int:
        """Where a section of the journal lies on the metadata device."""
        return self.start + SB_SECTORS + section * self.section_sectors
