"""The metadata of a cache: which origin block is in which cache block (Linux `drivers/md/dm-cache-metadata.c`).

Block 0 is the superblock. From it hang an array, cache block -> origin block and flags; an array of the policy's hints;
a bitset of what of the origin is discarded; in version 2 a bitset of dirty cache blocks; and a space map. Dirty bits,
discards and hints are written by a suspension. They count only if the superblock says that nothing came after it, else
all blocks are dirty and nothing is discarded.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, repeat
from typing import NamedTuple

from ..persistent_data.array import Array
from ..persistent_data.bitset import Bitset
from ..persistent_data.metadata import SUPERBLOCK, Metadata, MetadataError, check_data_block_size
from .superblock import CLEAN_SHUTDOWN, NEEDS_CHECK, Stats, Superblock

__all__ = ["CacheMetadata", "Mapping"]

_VALID, _DIRTY = 1, 2
_FLAG_BITS = 16


class Mapping(NamedTuple):
    """A block that is cached. `hint`: what the policy knew of it, None when that is lost."""

    cblock: int
    oblock: int
    dirty: bool
    hint: int | None


class CacheMetadata(Metadata[Superblock]):
    """The metadata on a device of `blocks` blocks of 4096 bytes, of which `read` reads one."""

    def __init__(self, read: Callable[[int], bytes], blocks: int, data_block_size: int, version: int) -> None:
        """Open or, on a device that begins with zeroes, format. `data_block_size` in sectors; `version` is that of
        new metadata. Raises Corrupt, OSError, or MetadataError when the device is for another cache.

        What `prepare_commit` then gives has to be written: it says that the cache is in use."""
        super().__init__(read)
        image = read(SUPERBLOCK)
        if any(image):
            self._open(image, data_block_size)
        else:
            self._format(blocks, data_block_size, version)
        self.changed = True

    def _bind(self) -> None:
        super()._bind()
        self._mappings = Array(self.transaction, "Q")
        self._hints = Array(self.transaction, "I")
        self._bits = Bitset(self.transaction)

    def _format(self, blocks: int, data_block_size: int, version: int) -> None:
        self._bind()
        try:
            self._space_map.create(blocks)
            self._begin(
                Superblock(
                    version=version,
                    data_block_size=data_block_size,
                    mapping_root=self._mappings.empty(),
                    dirty_root=self._bits.empty() if version > 1 else 0,
                    discard_root=self._bits.empty(),
                )
            )
        except OSError as failure:
            raise MetadataError(failure.errno or errno.ENOSPC, "tm_create_with_sm failed") from failure
        self.clean_when_opened = True

    def _open(self, image: bytes, data_block_size: int) -> None:
        superblock = Superblock.unpack(image)
        check_data_block_size(superblock.data_block_size, data_block_size)
        for features, what in ((superblock.incompat_flags, ""), (superblock.compat_ro_flags, " RDWR")):
            if features:
                raise MetadataError(
                    errno.EINVAL,
                    f"could not access metadata{what} due to unsupported optional features ({features:x}).",
                )
        self._load(superblock)
        self.clean_when_opened = self.clean
        self.clean = False

    @property
    def _separate_dirty_bits(self) -> bool:
        return self._superblock.version > 1

    # -- the superblock ---------------------------------------------------------------------------------

    @property
    def clean(self) -> bool:
        """Nothing comes after this transaction: dirty bits, discards and hints are as the metadata say."""
        return bool(self._superblock.flags & CLEAN_SHUTDOWN)

    @clean.setter
    def clean(self, clean: bool) -> None:
        self._superblock.flags = self._superblock.flags & ~CLEAN_SHUTDOWN | CLEAN_SHUTDOWN * clean
        self.changed = True

    @property
    def needs_check(self) -> bool:
        return bool(self._superblock.flags & NEEDS_CHECK)

    def set_needs_check(self) -> bytes:
        """Only a repair lets this be written again from now on. Returns the superblock to write."""
        self._superblock.flags |= NEEDS_CHECK
        self._committed.flags |= NEEDS_CHECK
        return self._committed.pack()

    @property
    def free_metadata_blocks(self) -> int:
        return self.transaction.counts.free

    @property
    def data_block_size(self) -> int:
        """In sectors."""
        return self._superblock.data_block_size

    @property
    def stats(self) -> Stats:
        """As of the last suspension."""
        return self._superblock.stats

    @stats.setter
    def stats(self, stats: Stats) -> None:
        self._superblock.stats = Stats(*(count & 0xFFFFFFFF for count in stats))
        self.changed = True

    # -- mappings ---------------------------------------------------------------------------------------

    def read(self) -> None:
        """Read all that is not in memory yet, whether it counts or not. Raises Corrupt or OSError."""
        superblock = self._superblock
        for root, array in ((superblock.mapping_root, self._mappings), (superblock.hint_root, self._hints)):
            if root:
                array.read(root)
        for root in (superblock.discard_root, superblock.dirty_root):
            if root:
                self._bits.read(root)

    @property
    def cache_blocks(self) -> int:
        return self._superblock.cache_blocks

    def resize(self, blocks: int) -> None:
        """For another number of cache blocks; those that go must be clean."""
        superblock, old = self._superblock, self.cache_blocks
        dirty = self._first_dirty(blocks)
        if dirty is not None:
            where = "blocks_are_clean_separate_dirty: " if self._separate_dirty_bits else ""
            raise MetadataError(
                errno.EINVAL, f"{where}cache block {dirty} is dirty", "unable to shrink cache due to dirty blocks"
            )
        superblock.mapping_root = self._mappings.resize(superblock.mapping_root, old, blocks)
        if self._separate_dirty_bits:
            superblock.dirty_root = self._bits.resize(superblock.dirty_root, old, blocks)
        if superblock.hint_root and blocks != old:  # lest `cache_check` miss some
            hints = chain(self._hints.values(superblock.hint_root), repeat(0))
            self._replace_hints(list(islice(hints, blocks)))
        superblock.cache_blocks = blocks
        self.changed = True

    def _first_dirty(self, begin: int) -> int | None:
        """The first cache block from `begin` on that the last suspension left dirty."""
        if begin >= self.cache_blocks:
            return None
        if self._separate_dirty_bits:
            return next((cblock for cblock in self._bits.members(self._superblock.dirty_root) if cblock >= begin), None)
        both = _VALID | _DIRTY
        values = enumerate(self._mappings.values(self._superblock.mapping_root))
        return next((cblock for cblock, value in values if cblock >= begin and value & both == both), None)

    def mappings(self, policy_name: bytes, policy_version: int, hint_size: int) -> Iterator[Mapping]:
        """All that is cached, by cache block; with hints if they are those of this policy."""
        superblock = self._superblock
        hints: Iterable[int | None] = ()
        known = (superblock.policy_name, superblock.policy_version[0], superblock.policy_hint_size)
        if self.clean_when_opened and known == (policy_name, policy_version, hint_size) and superblock.hint_root:
            hints = self._hints.values(superblock.hint_root)
        dirty = set(self._bits.members(superblock.dirty_root)) if self._separate_dirty_bits else None
        values = islice(self._mappings.values(superblock.mapping_root), self.cache_blocks)
        for cblock, (value, hint) in enumerate(zip(values, chain(hints, repeat(None)), strict=False)):
            if value & _VALID:
                is_dirty = bool(value & _DIRTY) if dirty is None else cblock in dirty
                yield Mapping(cblock, value >> _FLAG_BITS, is_dirty or not self.clean_when_opened, hint)

    def insert(self, cblock: int, oblock: int) -> None:
        self._set(cblock, oblock << _FLAG_BITS | _VALID)

    def remove(self, cblock: int) -> None:
        self._set(cblock, 0)

    def _set(self, cblock: int, value: int) -> None:
        self._superblock.mapping_root = self._mappings.set(self._superblock.mapping_root, cblock, value)
        self.changed = True

    # -- what a suspension writes -----------------------------------------------------------------------

    def set_dirty(self, dirty: set[int]) -> None:
        """Which cache blocks are dirty."""
        superblock = self._superblock
        self.changed = True
        if self._separate_dirty_bits:
            self._bits.delete(superblock.dirty_root)
            superblock.dirty_root = self._bits.new(self.cache_blocks, dirty)
            return
        for cblock, value in enumerate(list(self._mappings.values(superblock.mapping_root))):
            new = value & ~_DIRTY | _DIRTY * (cblock in dirty)
            if new != value:
                self._set(cblock, new)

    def set_discards(self, block_size: int, blocks: int, discarded: set[int]) -> None:
        """Which of the origin's `blocks` blocks of `block_size` sectors are discarded."""
        superblock = self._superblock
        root = self._bits.resize(superblock.discard_root, superblock.discard_nr_blocks, blocks)
        for block in discarded.symmetric_difference(self._bits.members(root)):
            root = (self._bits.add if block in discarded else self._bits.discard)(root, block)
        superblock.discard_root, superblock.discard_block_size = root, block_size
        superblock.discard_nr_blocks = blocks
        self.changed = True

    def discards(self) -> tuple[int, list[int]]:
        """The block size in sectors, and the blocks that are discarded."""
        superblock = self._superblock
        members = self._bits.members(superblock.discard_root) if self.clean_when_opened else iter(())
        return superblock.discard_block_size, list(members)

    def write_hints(self, policy_name: bytes, policy_version: tuple[int, int, int], hints: Iterable[int]) -> None:
        """What the policy knows of each cache block, 4 bytes each."""
        superblock = self._superblock
        superblock.policy_name, superblock.policy_version = policy_name, policy_version
        superblock.policy_hint_size = 4
        self._replace_hints(hints)
        self.changed = True

    def _replace_hints(self, hints: Iterable[int]) -> None:
        if self._superblock.hint_root:
            self._hints.delete(self._superblock.hint_root)
        self._superblock.hint_root = self._hints.new(hints)
