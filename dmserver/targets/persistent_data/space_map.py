"""Space maps: reference counts of blocks, on disk (Linux `drivers/md/persistent-data/dm-space-map-*.c`).

Two bits for each block in bitmaps; what counts 3 or more is in a tree. Where the bitmaps are says an index: a tree for
data blocks, one block for the metadata itself. In memory they are `Counts`, written by `commit`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .block import BLOCK_SIZE, Corrupt, seal, unseal
from .btree import BTree
from .transaction import PER_BITMAP, Counts, Transaction

__all__ = ["MAX_METADATA_BLOCKS", "DataSpaceMap", "MetadataSpaceMap"]

BITMAP_SALT, INDEX_SALT = 240779, 160478

_ROOT = struct.Struct("<QQQQ")  # nr_blocks, nr_allocated, bitmap_root, ref_count_root
_HEADER = 16
_INDEX_ENTRY = "<QII"  # blocknr, nr_free, none_free_before
_MAX_BITMAPS = 255

#: The most blocks that one index block can tell of.
MAX_METADATA_BLOCKS = _MAX_BITMAPS * ((1 << 14) - 64)

#: A byte of a bitmap as four counts. The first bit of each pair is the high one.
_SWAP = bytes((0, 2, 1, 3))
_COUNTS = [bytes(_SWAP[byte >> shift & 3] for shift in (0, 2, 4, 6)) for byte in range(256)]
_TO_PAIRS = bytes((*_SWAP, *range(4, 256)))


def _pack_bitmap(counts: bytes, block: int) -> bytes:
    pairs = counts.ljust(PER_BITMAP, b"\0").translate(_TO_PAIRS)
    packed = 0
    for shift in range(4):
        packed |= int.from_bytes(pairs[shift::4], "little") << 2 * shift
    return seal(bytearray(_HEADER) + packed.to_bytes(PER_BITMAP // 4, "little"), block, BITMAP_SALT)


def _unpack_bitmap(image: bytes, block: int) -> bytes:
    return b"".join(map(_COUNTS.__getitem__, unseal(image, block, BITMAP_SALT, "bitmap")[_HEADER:]))


@dataclass(slots=True)
class _Entry:
    """`struct disk_index_entry`."""

    block: int
    free: int = 0
    none_free_before: int = 0


class _SpaceMap:
    """`counts`, the `index` of its bitmaps, and the tree of large counts."""

    def __init__(self, transaction: Transaction, counts: Counts) -> None:
        self.transaction = transaction
        self.counts = counts
        self.index: list[_Entry] = []
        self._large = BTree(transaction, "<I")
        self._large_root = 0
        self._bitmap_root = 0

    @property
    def root(self) -> bytes:
        """`struct disk_sm_root`, as of the last commit."""
        return _ROOT.pack(len(self.counts), self.counts.allocated, self._bitmap_root, self._large_root)

    def _load(self, blocks: int) -> None:
        """Read the counts, the index being there."""
        numbers = {entry.block for entry in self.index}
        if len(numbers) < len(self.index) or len(numbers) * PER_BITMAP < blocks:
            raise Corrupt(f"{len(numbers)} bitmaps, {len(self.index)} in the index, count {blocks} blocks")
        images = ((entry.block, self.transaction.raw(entry.block)) for entry in self.index)
        low = b"".join(_unpack_bitmap(image, block) for block, image in images)
        self.counts.low = bytearray(low[:blocks])
        self.counts.many = dict(self._large.items(self._large_root))
        self.counts.allocated = blocks - self.counts.low.count(0)

    def _commit_large(self) -> None:
        changed, self.counts.many_changed = self.counts.many_changed, set()
        for block in sorted(changed):
            count = self.counts.many.get(block)
            if count is not None:
                self._large_root = self._large.insert(self._large_root, block, count)
            elif self._large.lookup(self._large_root, block) is not None:
                self._large_root = self._large.remove(self._large_root, block)

    def _renew(self, number: int) -> _Entry:
        """Another block for a bitmap that changed."""
        if number == len(self.index):
            self.index.append(_Entry(self.transaction.renew(None)))
        else:
            self.index[number].block = self.transaction.renew(self.index[number].block)
        return self.index[number]

    def _write(self, number: int) -> None:
        entry, low = self.index[number], self.counts.low
        begin = number * PER_BITMAP
        end = min(begin + PER_BITMAP, len(low))
        first = low.find(0, begin, end)
        entry.free = low.count(0, begin, end) + begin + PER_BITMAP - end
        entry.none_free_before = (first if first >= 0 else end) - begin
        self.transaction.pages[entry.block] = _pack_bitmap(bytes(low[begin:end]), entry.block)


class DataSpaceMap(_SpaceMap):
    """Counts of the data blocks (`dm-space-map-disk`)."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(transaction, Counts())
        self._index = BTree(transaction, _INDEX_ENTRY)

    def create(self) -> None:
        """Of no blocks; `counts.extend` adds some."""
        self._bitmap_root = self._index.empty()
        self._large_root = self._large.empty()

    def open(self, root: bytes) -> None:
        """Read what `root` says of an earlier transaction."""
        blocks, _, self._bitmap_root, self._large_root = _ROOT.unpack_from(root)
        self.index = [_Entry(*entry) for _, entry in self._index.items(self._bitmap_root)]
        self._load(blocks)

    def commit(self) -> None:
        self._commit_large()
        dirty, self.counts.dirty = self.counts.dirty, set()
        for number in sorted(dirty):
            entry = self._renew(number)
            self._write(number)
            value = (entry.block, entry.free, entry.none_free_before)
            self._bitmap_root = self._index.insert(self._bitmap_root, number, value)


class MetadataSpaceMap(_SpaceMap):
    """Counts of the blocks of the metadata device, its own among them (`dm-space-map-metadata`)."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(transaction, transaction.counts)

    def create(self, blocks: int) -> None:
        """Block 0, the superblock, is in use."""
        self.counts.extend(blocks)
        self.counts.allocate()
        self._bitmap_root = self.transaction.renew(None)
        self._large_root = self._large.empty()

    def open(self, root: bytes) -> None:
        """Read what `root` says of an earlier transaction."""
        blocks, _, self._bitmap_root, self._large_root = _ROOT.unpack_from(root)
        image = unseal(self.transaction.raw(self._bitmap_root), self._bitmap_root, INDEX_SALT, "index")
        entries = struct.iter_unpack(_INDEX_ENTRY, image[_HEADER : _HEADER + 16 * -(-blocks // PER_BITMAP)])
        self.index = [_Entry(*entry) for entry in entries]
        self._load(blocks)

    def touch(self, block: int) -> None:
        """Give the bitmap that counts `block` another block now, as the kernel does with the first change to one."""
        self.counts.dirty.add(block // PER_BITMAP)
        self._renew(block // PER_BITMAP)

    def commit(self) -> None:
        """Last of all: no block may be allocated or freed from here to the end of the transaction."""
        self._commit_large()
        self._bitmap_root = self.transaction.renew(self._bitmap_root)
        renewed: set[int] = set()
        while pending := sorted(self.counts.dirty - renewed):
            for number in pending:
                self._renew(number)
                renewed.add(number)
        self.counts.dirty.clear()
        for number in sorted(renewed):
            self._write(number)
        index = bytearray(_HEADER)
        for entry in self.index:
            index += struct.pack(_INDEX_ENTRY, entry.block, entry.free, entry.none_free_before)
        self.transaction.pages[self._bitmap_root] = seal(index.ljust(BLOCK_SIZE, b"\0"), self._bitmap_root, INDEX_SALT)
