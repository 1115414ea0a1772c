"""The metadata of an era device: in which era each block was last written (Linux `drivers/md/dm-era-target.c`).

Block 0 is the superblock. A bitset, the writeset, has what was written in the current era. When that ends, the writeset
goes into a tree, era -> writeset, and is digested from there into an array, block -> era, bit by bit. A snapshot of the
metadata is a copy of the superblock that shares its tree and its array, for programs that look at the metadata device.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

from ...model.dm_target import SECTOR_SIZE
from ..persistent_data.array import Array
from ..persistent_data.bitset import Bitset
from ..persistent_data.block import BLOCK_SIZE, seal
from ..persistent_data.btree import BTree
from ..persistent_data.metadata import SUPERBLOCK, Metadata, MetadataError, check_data_block_size
from ..persistent_data.superblock import BadSuperblock, check_superblock

__all__ = ["EraMetadata"]

MAGIC = 2126579579
VERSION = 1
_SALT = 146538381

#: Bits are digested so many at a time.
INSERTS_PER_STEP = 100

#: The most blocks that an origin may have.
_MAX_BLOCKS = (1 << 31) - 1

# csum, flags, blocknr, uuid, magic, version, metadata_space_map_root, data_block_size, metadata_block_size, nr_blocks,
# current_era, current_writeset (nr_bits, root), writeset_tree_root, era_array_root, metadata_snap
_SUPERBLOCK = struct.Struct("<IIQ16sQI128sIIIIIQQQQ")


@dataclass(slots=True)
class _Superblock:
    """What is in `struct superblock_disk` from `version` on, in its order. `data_block_size` in sectors."""

    version: int = VERSION
    metadata_space_map_root: bytes = bytes(128)
    data_block_size: int = 0
    metadata_block_size: int = BLOCK_SIZE // SECTOR_SIZE
    nr_blocks: int = 0
    current_era: int = 0
    writeset_bits: int = 0
    writeset_root: int = 0
    writeset_tree_root: int = 0
    era_array_root: int = 0
    metadata_snap: int = 0

    def pack(self, block: int = SUPERBLOCK) -> bytes:
        image = _SUPERBLOCK.pack(0, 0, block, bytes(16), MAGIC, *astuple(self))
        return seal(bytearray(image.ljust(BLOCK_SIZE, b"\0")), block, _SALT)

    @classmethod
    def unpack(cls, image: bytes, block: int = SUPERBLOCK) -> _Superblock:
        check_superblock(image, block, MAGIC, _SALT)
        found = cls(*_SUPERBLOCK.unpack_from(image)[5:])
        if found.version != VERSION:
            text = f"only versions between {VERSION} and {VERSION} supported."
            raise BadSuperblock(errno.EINVAL, f"Era metadata version {found.version} found, but {text}")
        return found


class EraMetadata(Metadata[_Superblock]):
    """The metadata on a device of `blocks` blocks of 4096 bytes, of which `read` reads one. `marked`: what the current
    writeset has on the disk; `archived`: there are writesets to digest."""

    def __init__(self, read: Callable[[int], bytes], blocks: int, data_block_size: int) -> None:
        """Open or, on a device that begins with zeroes, format. `data_block_size` in sectors. Raises Corrupt, OSError,
        or MetadataError when the device is for other blocks."""
        super().__init__(read)
        image = read(SUPERBLOCK)
        if any(image):
            self._open(_Superblock.unpack(image), data_block_size)
        else:
            self._format(blocks, data_block_size)

    def _bind(self) -> None:
        super()._bind()
        self._bits = Bitset(self.transaction)
        self._eras = Array(self.transaction, "I")
        counts, bits = self.transaction.counts, self._bits
        self._writesets = BTree(
            self.transaction,
            "<IQ",
            lambda writeset: counts.inc(writeset[1]),
            lambda writeset: bits.delete(writeset[1]),
        )

    def _format(self, blocks: int, data_block_size: int) -> None:
        self._bind()
        self._space_map.create(blocks)
        self._begin(
            _Superblock(
                data_block_size=data_block_size,
                writeset_tree_root=self._writesets.empty(),
                era_array_root=self._eras.empty(),
            )
        )
        self.marked: set[int] = set()
        self.archived = False

    def _open(self, superblock: _Superblock, data_block_size: int) -> None:
        check_data_block_size(superblock.data_block_size, data_block_size)
        self._load(superblock)
        roots = [(superblock.writeset_tree_root, superblock.era_array_root)]
        if superblock.metadata_snap:
            snapshot = self._snapshot()
            roots.append((snapshot.writeset_tree_root, snapshot.era_array_root))
        writesets: set[int] = set()
        for tree, array in roots:
            self._eras.read(array)
            writesets.update(root for _, (_, root) in self._writesets.items(tree))
        for root in writesets:
            self._bits.read(root)

    def _load(self, superblock: _Superblock) -> None:
        super()._load(superblock)
        root = superblock.writeset_root
        self.marked = set(self._bits.members(root)) if root else set()
        self.archived = True

    # -- what it tells ----------------------------------------------------------------------------------

    def is_current(self, image: bytes) -> bool:
        """What was committed last is what block 0 of the device holds."""
        return image == self._committed.pack()

    @property
    def used_metadata_blocks(self) -> int:
        return self.transaction.counts.allocated

    @property
    def current_era(self) -> int:
        return self._superblock.current_era

    @property
    def snapshot(self) -> int:
        """The block of the metadata snapshot, 0 without one."""
        return self._superblock.metadata_snap

    # -- eras -------------------------------------------------------------------------------------------

    def resize(self, nr_blocks: int) -> None:
        """For an origin of so many blocks. MetadataError when they are too many."""
        superblock = self._superblock
        if nr_blocks > _MAX_BLOCKS:
            raise MetadataError(errno.EINVAL, f"Invalid number of origin blocks {nr_blocks}")
        if nr_blocks != superblock.nr_blocks:
            root = superblock.era_array_root
            superblock.era_array_root = self._eras.resize(root, superblock.nr_blocks, nr_blocks)
            superblock.nr_blocks = nr_blocks
            self.changed = True

    def archive(self) -> None:
        """End the current era: what was written in it is to be digested. No block can be marked until the next."""
        superblock = self._superblock
        if superblock.writeset_root:
            superblock.writeset_tree_root = self._writesets.insert(
                superblock.writeset_tree_root,
                superblock.current_era,
                (superblock.writeset_bits, superblock.writeset_root),
            )
            superblock.writeset_root = 0
            self.archived = self.changed = True
            self.marked = set()

    def rollover(self) -> None:
        """Begin another era."""
        self.archive()
        superblock = self._superblock
        superblock.writeset_bits = superblock.nr_blocks
        superblock.writeset_root = self._bits.new(superblock.nr_blocks, ())
        superblock.current_era += 1
        self.changed = True

    def mark(self, block: int) -> None:
        """A block is written in this era. To be added to `marked` once that is committed."""
        self._superblock.writeset_root = self._bits.add(self._superblock.writeset_root, block)
        self.changed = True

    def digest(self) -> Iterator[None]:
        """Move what is archived into the array, the oldest era first, a part of it at each step."""
        superblock = self._superblock
        self.archived = False
        while found := next(self._writesets.items(superblock.writeset_tree_root), None):
            era, (_, root) = found
            members = (block for block in self._bits.members(root) if block < superblock.nr_blocks)
            for number, block in enumerate(members, 1):
                superblock.era_array_root = self._eras.set(superblock.era_array_root, block, era)
                self.changed = True
                if not number % INSERTS_PER_STEP:
                    yield
            superblock.writeset_tree_root = self._writesets.remove(superblock.writeset_tree_root, era)
            self.changed = True
            yield

    # -- snapshots of the metadata ----------------------------------------------------------------------

    def prepare_snapshot(self) -> None:
        """Begin another era, so that all before are in the snapshot; to be committed. MetadataError when there is
        one already."""
        if self._superblock.metadata_snap:
            raise MetadataError(errno.EINVAL, "metadata_take_snap: metadata snapshot already exists")
        self.rollover()

    def take_snapshot(self) -> None:
        """Keep tree and array as they were committed."""
        superblock, counts = self._superblock, self.transaction.counts
        self._space_map.touch(SUPERBLOCK)
        snapshot = superblock.metadata_snap = self.transaction.new(b"")
        self.transaction.pages[snapshot] = self._committed.pack(snapshot)
        counts.inc(superblock.writeset_tree_root)
        counts.inc(superblock.era_array_root)
        self.changed = True

    def drop_snapshot(self) -> None:
        """MetadataError when there is none."""
        block = self._superblock.metadata_snap
        if not block:
            raise MetadataError(errno.EINVAL, "metadata_drop_snap: no snap to drop")
        snapshot = self._snapshot()
        self._superblock.metadata_snap = 0
        self._writesets.delete(snapshot.writeset_tree_root)
        self._eras.delete(snapshot.era_array_root)
        self.transaction.drop(block)
        self.changed = True

    def _snapshot(self) -> _Superblock:
        block = self._superblock.metadata_snap
        return _Superblock.unpack(self.transaction.raw(block), block)
