"""The superblock of a cache's metadata (`struct cache_disk_superblock` of Linux `drivers/md/dm-cache-metadata.c`)."""

from __future__ import annotations

import errno
import struct
from dataclasses import astuple, dataclass, field
from typing import NamedTuple

from ...model.dm_target import SECTOR_SIZE
from ..persistent_data.block import BLOCK_SIZE, seal
from ..persistent_data.superblock import BadSuperblock, check_superblock

__all__ = ["CLEAN_SHUTDOWN", "NEEDS_CHECK", "Stats", "Superblock"]

MAGIC = 0o6142003
_SALT = 9031977
_VERSIONS = (1, 2)

CLEAN_SHUTDOWN, NEEDS_CHECK = 1, 2

# csum, flags, blocknr, uuid, magic, version, policy_name, policy_hint_size, metadata_space_map_root, mapping_root,
# hint_root, discard_root, discard_block_size, discard_nr_blocks, data_block_size, metadata_block_size, cache_blocks,
# compat_flags, compat_ro_flags, incompat_flags, read_hits, read_misses, write_hits, write_misses, policy_version,
# dirty_root
_LAYOUT = struct.Struct("<IIQ16sQI16sI128s5Q3I3I4I3IQ")


class Stats(NamedTuple):
    """What hits and misses there were."""

    read_hits: int = 0
    read_misses: int = 0
    write_hits: int = 0
    write_misses: int = 0


@dataclass(slots=True)
class Superblock:
    """In the order of the disk. Block sizes in sectors; roots are blocks, 0: there is none. `version` 2 has the dirty
    bits apart from the mappings, at `dirty_root`."""

    flags: int = 0
    uuid: bytes = bytes(16)
    version: int = 1
    policy_name: bytes = b""
    policy_hint_size: int = 0
    metadata_space_map_root: bytes = bytes(128)
    mapping_root: int = 0
    hint_root: int = 0
    discard_root: int = 0
    discard_block_size: int = 0
    discard_nr_blocks: int = 0
    data_block_size: int = 0
    metadata_block_size: int = BLOCK_SIZE // SECTOR_SIZE
    cache_blocks: int = 0
    compat_flags: int = 0
    compat_ro_flags: int = 0
    incompat_flags: int = 0
    stats: Stats = field(default_factory=Stats)
    policy_version: tuple[int, int, int] = (0, 0, 0)
    dirty_root: int = 0

    def pack(self) -> bytes:
        flags, uuid, *middle, stats, policy_version, dirty_root = astuple(self)
        image = _LAYOUT.pack(0, flags, 0, uuid, MAGIC, *middle, *stats, *policy_version, dirty_root)
        return seal(bytearray(image.ljust(BLOCK_SIZE, b"\0")), 0, _SALT)

    @classmethod
    def unpack(cls, image: bytes) -> Superblock:
        """BadSuperblock when it is none."""
        check_superblock(image, 0, MAGIC, _SALT)
        _, flags, _, uuid, _, version, *middle = _LAYOUT.unpack_from(image)
        low, high = _VERSIONS
        if not low <= version <= high:
            raise BadSuperblock(
                errno.EINVAL,
                f"Cache metadata version {version} found, but only versions between {low} and {high} supported.",
            )
        *fields, read_hits, read_misses, write_hits, write_misses, one, two, three, dirty_root = middle
        found = cls(flags, uuid, version, *fields)
        found.stats = Stats(read_hits, read_misses, write_hits, write_misses)
        found.policy_version = (one, two, three)
        found.dirty_root = dirty_root
        found.policy_name = found.policy_name.rstrip(b"\0")
        return found
