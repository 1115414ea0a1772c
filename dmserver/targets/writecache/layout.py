"""What dm-writecache keeps on its cache device (Linux `drivers/md/dm-writecache.c`), and where.

A super block of 64 bytes, an entry for each block of the cache, and from the next block boundary on the blocks::

    struct wc_memory_superblock { le32 magic, version, block_size, pad; le64 n_blocks, seq_count; u8 pad2[32]; };
    struct wc_memory_entry { le64 original_sector, seq_count; };

A block counts if its entry's `seq_count` is below that of the super block.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ...model.dm_target import SECTOR_SIZE

__all__ = ["FREE", "MAGIC", "VERSION", "Metadata", "Superblock", "fit", "metadata_size"]

MAGIC = 0x23489321
VERSION = 1

#: The `seq_count` of a block that is not in use.
FREE = (1 << 64) - 1

SUPERBLOCK_SIZE = 64
ENTRY_SIZE = 16

_SUPERBLOCK = struct.Struct("<IIIxxxxQQ")
_SEQ_COUNT = struct.Struct("<Q")
_SEQ_COUNT_AT = 24
_ENTRY = struct.Struct("<QQ")

#: Bytes of metadata that are written together (`BITMAP_GRANULARITY`).
GRANULARITY = 65536


def metadata_size(n_blocks: int, block_size: int) -> int:
    """Bytes before the first block."""
    return -(-(SUPERBLOCK_SIZE + n_blocks * ENTRY_SIZE) // block_size) * block_size


def fit(size: int, block_size: int) -> int:
    """How many blocks fit into `size` bytes (`calculate_memory_size`); 0 when none does."""
    n_blocks = size // (block_size + ENTRY_SIZE)
    while n_blocks and metadata_size(n_blocks, block_size) + n_blocks * block_size > size:
        n_blocks -= 1
    return n_blocks


class Superblock:
    """The super block as it was read."""

    def __init__(self, image: bytes | bytearray) -> None:
        self.magic, self.version, self.block_size, self.n_blocks, self.seq_count = _SUPERBLOCK.unpack_from(image)


class Metadata:
    """Super block and entries: the `image` of the first `metadata_size` bytes, and which parts of it have changed since
    they were written."""

    def __init__(self, n_blocks: int, block_size: int) -> None:
        self.n_blocks = n_blocks
        self.block_size = block_size
        self.image = bytearray(metadata_size(n_blocks, block_size))
        self._dirty: set[int] = set()

    @property
    def sectors(self) -> int:
        return len(self.image) // SECTOR_SIZE

    def format(self) -> None:
        """Make it that of an empty cache, all of it to be written; only `set_magic` makes it valid."""
        _SUPERBLOCK.pack_into(self.image, 0, 0, VERSION, self.block_size, self.n_blocks, 0)
        self.forget()
        self.mark_all()

    def set_magic(self) -> None:
        struct.pack_into("<I", self.image, 0, MAGIC)
        self._dirty.add(0)

    @property
    def seq_count(self) -> int:
        count: int = _SEQ_COUNT.unpack_from(self.image, _SEQ_COUNT_AT)[0]
        return count

    @seq_count.setter
    def seq_count(self, count: int) -> None:
        _SEQ_COUNT.pack_into(self.image, _SEQ_COUNT_AT, count)

    def entries(self) -> Iterator[tuple[int, int]]:
        """(original sector, seq_count) of each block."""
        end = SUPERBLOCK_SIZE + self.n_blocks * ENTRY_SIZE
        return _ENTRY.iter_unpack(memoryview(self.image)[SUPERBLOCK_SIZE:end])

    def forget(self) -> None:
        """No block is in use."""
        end = SUPERBLOCK_SIZE + self.n_blocks * ENTRY_SIZE
        self.image[SUPERBLOCK_SIZE:end] = b"\xff" * (end - SUPERBLOCK_SIZE)

    def put(self, index: int, sector: int, seq_count: int) -> None:
        """A block is in use; it is written when it is marked."""
        _ENTRY.pack_into(self.image, SUPERBLOCK_SIZE + index * ENTRY_SIZE, sector, seq_count)

    def free(self, index: int) -> None:
        _SEQ_COUNT.pack_into(self.image, SUPERBLOCK_SIZE + index * ENTRY_SIZE + 8, FREE)
        self.mark(index)

    def mark(self, index: int) -> None:
        """The entry is to be written."""
        self._dirty.add((SUPERBLOCK_SIZE + index * ENTRY_SIZE) // GRANULARITY)

    def mark_all(self) -> None:
        self._dirty.update(range(-(-len(self.image) // GRANULARITY)))

    def take_changed(self) -> list[tuple[int, memoryview]]:
        """(sector, data) of what is to be written; it counts as written from now on."""
        runs: list[list[int]] = []
        for number in sorted(self._dirty):
            if runs and runs[-1][1] == number:
                runs[-1][1] += 1
            else:
                runs.append([number, number + 1])
        self._dirty.clear()
        whole = memoryview(self.image)
        scale = GRANULARITY // SECTOR_SIZE
        return [(begin * scale, whole[begin * GRANULARITY : end * GRANULARITY]) for begin, end in runs]

    def superblock(self) -> memoryview:
        """What is written to commit: the blocks that the super block lies in (`ssd_commit_superblock`)."""
        return memoryview(self.image)[: max(4096, self.block_size)]
