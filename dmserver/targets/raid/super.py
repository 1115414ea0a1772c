"""What a raid keeps on its metadata devices: a superblock, and md's bitmap 4 KiB behind it.

Sources: `struct dm_raid_superblock` of drivers/md/dm-raid.c, `bitmap_super_t` of drivers/md/md-bitmap.h::

    __le32 magic, compat_features, num_devices, array_position;
    __le64 events, failed_devices, disk_recovery_offset, array_resync_offset;
    __le32 level, layout, stripe_sectors, flags;
    __le64 reshape_position;
    __le32 new_level, new_layout, new_stripe_sectors, delta_disks;
    __le64 array_sectors, data_offset, new_data_offset, sectors, extended_failed_devices[3];
    __le32 incompat_features;

A bit of the bitmap stands for a region; set, a write may have reached some devices and not others.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["BITMAP_AT", "MAX_SECTOR", "Bitmap", "Superblock"]

MAGIC = 0x64526D44
SUPPORTS_V190 = 1
RESHAPE_ACTIVE = 1
RESHAPE_BACKWARDS = 2
MAX_SECTOR = (1 << 64) - 1
#: Sectors.
BITMAP_AT = 8

_SUPER = struct.Struct("<4I4Q4IQ3Ii4Q3QI")
_BITMAP = struct.Struct("<II16sQQQIIIII")
_BITMAP_MAGIC = 0x6D746962
_BITMAP_VERSION = 4
#: Bytes in front of the bits.
_BITMAP_HEADER = 256
#: Bytes of the pages that a bitmap consists of.
PAGE = 4096
#: Regions of a raid at most (`validate_region_size`).
MAX_REGIONS = 1 << 21


@dataclass(slots=True)
class Superblock:
    """`failed`: the numbers of failed devices; offsets in sectors, MAX_SECTOR: all of it. Of a reshape: its position,
    MAX_SECTOR if there is none, the `new` level, layout and chunk, and the devices that it adds (`delta`)."""

    devices: int
    position: int
    events: int
    failed: frozenset[int]
    recovery_offset: int
    resync_offset: int
    level: int
    layout: int
    chunk: int
    array_sectors: int
    sectors: int
    reshape_position: int
    backwards: bool
    new: tuple[int, int, int]
    delta: int
    data_offset: int
    new_data_offset: int
    incompatible: int = 0
    compatible: int = SUPPORTS_V190

    @property
    def place(self) -> tuple[int, ...]:
        """All that says where the data are."""
        shapes = (self.devices, self.layout, self.chunk, *self.new)
        return (*shapes, self.reshape_position, self.data_offset, self.new_data_offset)

    def pack(self, size: int) -> bytearray:
        """A logical block of `size` bytes."""
        failed = sum(1 << number for number in self.failed)
        words = [failed >> 64 * at & MAX_SECTOR for at in range(4)]
        flags = 0
        if self.reshape_position != MAX_SECTOR:
            flags = RESHAPE_ACTIVE | (RESHAPE_BACKWARDS if self.backwards else 0)
        block = bytearray(size)
        _SUPER.pack_into(
            block, 0, MAGIC, SUPPORTS_V190, self.devices, self.position, self.events, words[0], self.recovery_offset,
            self.resync_offset, self.level, self.layout, self.chunk, flags, self.reshape_position, *self.new,
            self.delta, self.array_sectors, self.data_offset, self.new_data_offset, self.sectors, *words[1:], 0,
        )  # fmt: skip
        return block

    @classmethod
    def unpack(cls, block: bytes | bytearray) -> Superblock | None:
        """None: there is none."""
        fields = _SUPER.unpack_from(block)
        if fields[0] != MAGIC:
            return None
        words = (fields[5], *fields[21:24])
        failed = sum(word << 64 * at for at, word in enumerate(words))
        return cls(
            devices=fields[2],
            position=fields[3],
            events=fields[4],
            failed=frozenset(at for at in range(256) if failed >> at & 1),
            recovery_offset=fields[6],
            resync_offset=fields[7],
            level=fields[8],
            layout=fields[9],
            chunk=fields[10],
            array_sectors=fields[17],
            sectors=fields[20],
            reshape_position=fields[12] if fields[11] & RESHAPE_ACTIVE else MAX_SECTOR,
            backwards=bool(fields[11] & RESHAPE_BACKWARDS),
            new=(fields[13], fields[14], fields[15]),
            delta=fields[16],
            data_offset=fields[18],
            new_data_offset=fields[19],
            incompatible=fields[24],
            compatible=fields[1],
        )


class Bitmap:
    """One bit for each `region_size` sectors of `sectors`; `dirty` is 1 for each that is set."""

    def __init__(self, sectors: int, region_size: int) -> None:
        self.sectors = sectors
        self.region_size = region_size
        self.dirty = bytearray(-(-sectors // region_size))

    def grow(self, sectors: int) -> None:
        """To more sectors; nothing was written to them."""
        self.sectors = sectors
        self.dirty.extend(bytes(-(-sectors // self.region_size) - len(self.dirty)))

    def regions(self, start: int, end: int) -> range:
        """The regions that sectors `start` to `end` lie in."""
        return range(start // self.region_size, -(-end // self.region_size))

    @property
    def length(self) -> int:
        """Bytes on the disk, in whole pages."""
        return -(-(_BITMAP_HEADER + -(-len(self.dirty) // 8)) // PAGE) * PAGE

    def pack(self, events: int) -> bytearray:
        """`events`: those of the superblock that it belongs to."""
        image = bytearray(self.length)
        _BITMAP.pack_into(
            image, 0, _BITMAP_MAGIC, _BITMAP_VERSION, bytes(16), events, events, self.sectors, 0,
            self.region_size * 512, 5, 0, 0,
        )  # fmt: skip
        bits = int(self.dirty[::-1].translate(_DIGITS) or b"0", 2)
        size = -(-len(self.dirty) // 8)
        image[_BITMAP_HEADER : _BITMAP_HEADER + size] = bits.to_bytes(size, "little")
        return image

    @classmethod
    def unpack(cls, image: bytes | bytearray) -> Bitmap | None:
        """What the disk has; bits behind the end of `image` are not set. None: that is no bitmap."""
        magic, version, _, _, _, sectors, _, size, *_ = _BITMAP.unpack_from(image)
        if (magic, version) != (_BITMAP_MAGIC, _BITMAP_VERSION) or size < 512 or size & size - 1:
            return None
        if sectors > (size // 512) * MAX_REGIONS:
            return None
        found = cls(sectors, size // 512)
        count = len(found.dirty)
        bits = int.from_bytes(image[_BITMAP_HEADER:], "little") & (1 << count) - 1
        found.dirty = bytearray(f"{bits:0{count}b}"[::-1].encode().translate(_BITS))[:count]
        return found

    def take(self, other: Bitmap) -> None:
        """Set what is dirty in the bitmap of another size, or of other regions (`md_bitmap_resize`)."""
        at, size = other.dirty.find(1), other.region_size
        while at >= 0:
            for region in self.regions(at * size, min((at + 1) * size, self.sectors)):
                self.dirty[region] = 1
            at = other.dirty.find(1, at + 1)


_DIGITS = bytes.maketrans(b"\0\1", b"01")
_BITS = bytes.maketrans(b"01", b"\0\1")
