"""The bitmap of dm-integrity (mode B), which stands where the journal would: it tells what might have been written and
have no good tags yet. After a crash so much is recalculated.
"""

from __future__ import annotations

from ...model.dm_target import SECTOR_SIZE

__all__ = ["BLOCK_SECTORS", "Bitmap", "Bits"]

#: The bitmap is written in such blocks.
BLOCK_SIZE = 4096
BLOCK_SECTORS = BLOCK_SIZE // SECTOR_SIZE


class Bits:
    """One bit for each run of `granule` sectors, as a number. A range takes in every bit that it touches."""

    def __init__(self, granule: int, value: int = 0) -> None:
        self._granule = granule
        self.value = value

    def _mask(self, sector: int, sectors: int) -> int:
        if not sectors:
            return 0
        first, last = sector // self._granule, (sector + sectors - 1) // self._granule
        return (1 << last - first + 1) - 1 << first

    def set(self, sector: int, sectors: int) -> None:
        self.value |= self._mask(sector, sectors)

    def clear(self, sector: int, sectors: int) -> None:
        self.value &= ~self._mask(sector, sectors)

    def all_set(self, sector: int, sectors: int) -> bool:
        mask = self._mask(sector, sectors)
        return self.value & mask == mask

    def all_clear(self, sector: int, sectors: int) -> bool:
        return not self.value & self._mask(sector, sectors)


class Bitmap:
    """For `sectors` of data. `disk`: as it is on the disk; `writable`: what may be written, because its bit is on the
    disk; `stale`: what has no good tags. `blocks`: how many it takes; `marked`: bits are set that could be clear."""

    def __init__(self, granule: int, sectors: int) -> None:
        self.granule = granule
        self.sectors = sectors
        self.blocks = -(-sectors // (granule * BLOCK_SIZE * 8))
        self.marked = False
        self.disk, self.writable, self.stale = Bits(granule), Bits(granule), Bits(granule)

    @property
    def max_io_len(self) -> int:
        """Sectors whose bits are in one block."""
        return self.granule * BLOCK_SIZE * 8

    def block_of(self, sector: int) -> int:
        """The block that has the bit of a sector."""
        return sector // self.max_io_len

    def image(self, block: int, blocks: int) -> bytes:
        """Some blocks as they go to the disk."""
        return self.whole()[block * BLOCK_SIZE : (block + blocks) * BLOCK_SIZE]

    def whole(self) -> bytes:
        return self.disk.value.to_bytes(self.blocks * BLOCK_SIZE, "little")

    def load(self, image: bytes | bytearray | memoryview) -> None:
        """Take the blocks as they are on the disk, or what else is in their place."""
        self.disk.value = int.from_bytes(image[: self.blocks * BLOCK_SIZE], "little")

    def set_all(self, sector: int = 0) -> None:
        """In all three maps, from `sector` on."""
        for bits in (self.disk, self.writable, self.stale):
            bits.set(sector, self.sectors - sector)

    def clear_all(self) -> None:
        """In all three maps."""
        for bits in (self.disk, self.writable, self.stale):
            bits.clear(0, self.sectors)

    def take_over(self) -> None:
        """What is set on the disk may be written, and is stale."""
        self.writable.value = self.stale.value = self.disk.value
