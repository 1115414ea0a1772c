"""The metadata of a thin pool: devices, and where their blocks are (Linux `drivers/md/dm-thin-metadata.c`).

Block 0 is the superblock. From it hang a tree of trees, device -> virtual block -> data block and time; a tree of what
is to be known of each device; and two space maps. A snapshot shares its origin's tree until one of both changes; a
mapping made before the device's last snapshot is shared, too, and its data must be copied before they are written.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import NamedTuple

from ...model.dm_target import SECTOR_SIZE
from ..persistent_data.block import BLOCK_SIZE, seal
from ..persistent_data.btree import BTree
from ..persistent_data.commit import Commit
from ..persistent_data.metadata import SUPERBLOCK, Metadata, MetadataError, check_data_block_size
from ..persistent_data.space_map import DataSpaceMap
from ..persistent_data.superblock import check_superblock

__all__ = ["Found", "ThinDevice", "ThinMetadata"]

MAGIC = 27022010
VERSION = 2
_SALT = 160774
_NEEDS_CHECK = 1
_MAX_RESERVE = 4096
_TIME_BITS = 24

# csum, flags, blocknr, uuid, magic, version, time, trans_id, held_root, data_space_map_root, metadata_space_map_root,
# data_mapping_root, device_details_root, data_block_size, metadata_block_size, metadata_nr_blocks, compat_flags,
# compat_ro_flags, incompat_flags
_SUPERBLOCK = struct.Struct("<IIQ16sQIIQQ128s128sQQIIQIII")


@dataclass(slots=True)
class _Superblock:
    """What is in `struct thin_disk_superblock`, in its order. `data_block_size` in sectors."""

    flags: int = 0
    uuid: bytes = bytes(16)
    version: int = VERSION
    time: int = 0
    trans_id: int = 0
    held_root: int = 0
    data_space_map_root: bytes = bytes(128)
    metadata_space_map_root: bytes = bytes(128)
    data_mapping_root: int = 0
    device_details_root: int = 0
    data_block_size: int = 0
    metadata_block_size: int = BLOCK_SIZE // SECTOR_SIZE
    metadata_nr_blocks: int = 0
    compat_flags: int = 0
    compat_ro_flags: int = 0
    incompat_flags: int = 0

    def pack(self, block: int = SUPERBLOCK) -> bytes:
        flags, uuid, *rest = astuple(self)
        image = _SUPERBLOCK.pack(0, flags, block, uuid, MAGIC, *rest)
        return seal(bytearray(image.ljust(BLOCK_SIZE, b"\0")), block, _SALT)

    @classmethod
    def unpack(cls, image: bytes, block: int = SUPERBLOCK) -> _Superblock:
        check_superblock(image, block, MAGIC, _SALT)
        _, flags, _, uuid, _, *rest = _SUPERBLOCK.unpack_from(image)
        return cls(flags, uuid, *rest)


@dataclass(slots=True, eq=False)
class ThinDevice:
    """`struct dm_thin_device`, and of it in this order on disk: `mapped_blocks`, `transaction_id`, `creation_time`,
    `snapshotted_time`. `openers`: those who use it; `aborted`: changes to it were lost."""

    id: int
    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int
    changed: bool = False
    aborted: bool = False
    openers: int = 0

    @property
    def details(self) -> tuple[int, int, int, int]:
        return self.mapped_blocks, self.transaction_id, self.creation_time, self.snapshotted_time


class Found(NamedTuple):
    """Where a virtual block is; `shared`: others may see it, so it is not to be written."""

    block: int
    shared: bool


class ThinMetadata(Metadata[_Superblock]):
    """The metadata on a device of `blocks` blocks of 4096 bytes, of which `read` reads one. `in_service`: something was
    committed since they were opened."""

    def __init__(self, read: Callable[[int], bytes], blocks: int, data_block_size: int, *, writable: bool) -> None:
        """Open or, on a device that begins with zeroes, format. `data_block_size` in sectors. Raises Corrupt, or
        MetadataError when the device is for another pool, or unformatted and not `writable`."""
        super().__init__(read)
        self.in_service = False
        self._devices: dict[int, ThinDevice] = {}
        self._reserve = min(_MAX_RESERVE, blocks // 10)
        image = read(SUPERBLOCK)
        if any(image):
            self._open(image, data_block_size)
        elif writable:
            self._format(blocks, data_block_size)
        else:
            raise MetadataError(errno.EPERM)

    def _bind(self) -> None:
        super()._bind()
        counts = self.transaction.counts
        self._data_map = DataSpaceMap(self.transaction)
        data = self._data_map.counts
        shift = _TIME_BITS
        self._mappings = BTree(
            self.transaction, "<Q", lambda value: data.inc(value >> shift), lambda value: data.dec(value >> shift)
        )
        self._roots = BTree(self.transaction, "<Q", counts.inc, self._mappings.delete)
        self._details = BTree(self.transaction, "<QQII")

    def _format(self, blocks: int, data_block_size: int) -> None:
        self._bind()
        self._space_map.create(blocks)
        self._data_map.create()
        self._begin(
            _Superblock(
                data_mapping_root=self._roots.empty(),
                device_details_root=self._details.empty(),
                data_block_size=data_block_size,
                metadata_nr_blocks=blocks,
            )
        )

    def _open(self, image: bytes, data_block_size: int) -> None:
        self._load(_Superblock.unpack(image))
        features = self._superblock.incompat_flags
        if features:
            raise MetadataError(
                errno.EINVAL, f"could not access metadata due to unsupported optional features ({features:x})."
            )
        check_data_block_size(self._superblock.data_block_size, data_block_size)
        roots = [(self._superblock.data_mapping_root, self._superblock.device_details_root)]
        if held := self._superblock.held_root:
            snapshot = _Superblock.unpack(self.transaction.raw(held), held)
            roots.append((snapshot.data_mapping_root, snapshot.device_details_root))
        seen: set[int] = set()
        for mapping_root, details_root in roots:
            for _ in self._details.items(details_root):
                pass
            for _, root in self._roots.items(mapping_root):
                if root not in seen:
                    seen.add(root)
                    for _ in self._mappings.items(root):
                        pass

    def _load(self, superblock: _Superblock) -> None:
        super()._load(superblock)
        self._data_map.open(superblock.data_space_map_root)

    # -- transactions -----------------------------------------------------------------------------------

    def prepare_commit(self) -> Commit:
        superblock = self._superblock
        for device in self._devices.values():
            if device.changed:
                root = superblock.device_details_root
                superblock.device_details_root = self._details.insert(root, device.id, device.details)
        self._data_map.commit()
        superblock.data_space_map_root = self._data_map.root
        return super().prepare_commit()

    def committed(self) -> None:
        super().committed()
        self.in_service = True
        self._data_map.counts.committed()
        for device in self._devices.values():
            device.changed = False
        self._forget_closed()

    def abort(self) -> None:
        super().abort()
        for device in self._devices.values():
            device.aborted |= device.changed
            device.changed = False
            details = self._details.lookup(self._superblock.device_details_root, device.id)
            if details is not None:
                device.mapped_blocks, device.transaction_id, device.creation_time, device.snapshotted_time = details
        self._forget_closed()

    def _forget_closed(self) -> None:
        self._devices = {device.id: device for device in self._devices.values() if device.openers}

    @property
    def needs_check(self) -> bool:
        return bool(self._superblock.flags & _NEEDS_CHECK)

    def set_needs_check(self) -> bytes:
        """Only a repair lets this be written again from now on. Returns the superblock to write."""
        self._superblock.flags |= _NEEDS_CHECK
        self._committed.flags |= _NEEDS_CHECK
        return self._committed.pack()

    # -- the pool ---------------------------------------------------------------------------------------

    @property
    def transaction_id(self) -> int:
        return self._superblock.trans_id

    def set_transaction_id(self, old: int, new: int) -> None:
        if self._superblock.trans_id != old:
            raise MetadataError(errno.EINVAL, "mismatched transaction id")
        self._superblock.trans_id = new
        self.changed = True

    @property
    def held_root(self) -> int:
        """The block of the metadata snapshot, 0 without one."""
        return self._superblock.held_root

    def reserve_snapshot(self) -> None:
        """Keep the trees as they are, for programs that look at the metadata device. To be committed before."""
        if self._superblock.held_root:
            text = "Pool metadata snapshot already exists: release this before taking another."
            raise MetadataError(errno.EBUSY, text)
        copy = replace(self._superblock, data_space_map_root=b"", metadata_space_map_root=b"")
        self._space_map.touch(SUPERBLOCK)
        held = self._superblock.held_root = self.transaction.new(b"")
        self.transaction.pages[held] = copy.pack(held)
        self.transaction.counts.inc(copy.data_mapping_root)
        self.transaction.counts.inc(copy.device_details_root)
        self.changed = True

    def release_snapshot(self) -> None:
        held = self._superblock.held_root
        if not held:
            raise MetadataError(errno.EINVAL, "No pool metadata snapshot found: nothing to release.")
        copy = _Superblock.unpack(self.transaction.raw(held), held)
        self._superblock.held_root = 0
        self._roots.delete(copy.data_mapping_root)
        self._details.delete(copy.device_details_root)
        self.transaction.drop(held)
        self.changed = True

    @property
    def free_metadata_blocks(self) -> int:
        """Without those kept in reserve for the end of a transaction."""
        return max(self.transaction.counts.free - self._reserve, 0)

    @property
    def data_blocks(self) -> int:
        return len(self._data_map.counts)

    @property
    def free_data_blocks(self) -> int:
        return self._data_map.counts.free

    @property
    def freed_data_blocks(self) -> int:
        """Data blocks that a commit would set free."""
        return len(self._data_map.counts.freed)

    def resize_data(self, blocks: int) -> None:
        self._data_map.counts.extend(blocks)
        self.changed = True

    def resize_metadata(self, blocks: int) -> None:
        self.transaction.counts.extend(blocks)
        self._superblock.metadata_nr_blocks = blocks
        self._reserve = min(_MAX_RESERVE, blocks // 10)
        self.changed = True

    def allocate_data_block(self) -> int:
        """OSError(ENOSPC) when none is free."""
        self.changed = True
        return self._data_map.counts.allocate()

    def free_data_block(self, block: int) -> None:
        """Give back a block that was allocated, and mapped nowhere."""
        self._data_map.counts.dec(block)

    # -- devices ----------------------------------------------------------------------------------------

    def _device(self, number: int) -> ThinDevice:
        device = self._devices.get(number)
        if device is None:
            details = self._details.lookup(self._superblock.device_details_root, number)
            if details is None:
                raise MetadataError(errno.ENODATA)
            device = self._devices[number] = ThinDevice(number, *details)
        return device

    def open_device(self, number: int) -> ThinDevice:
        """ENODATA when there is none."""
        device = self._device(number)
        device.openers += 1
        return device

    def close_device(self, device: ThinDevice) -> None:
        device.openers -= 1
        if not device.openers and not device.changed and self._devices.get(device.id) is device:
            del self._devices[device.id]

    def create_thin(self, number: int) -> None:
        self._must_be_new(number)
        self._create(number, self._mappings.empty())

    def create_snap(self, number: int, origin_number: int) -> None:
        self._must_be_new(number)
        root = self._roots.lookup(self._superblock.data_mapping_root, origin_number)
        if root is None:
            raise MetadataError(errno.ENODATA)
        self.transaction.counts.inc(root)
        self._superblock.time += 1
        origin, snapshot = self._device(origin_number), self._create(number, root)
        origin.snapshotted_time = snapshot.snapshotted_time = self._superblock.time
        origin.changed = True
        snapshot.mapped_blocks = origin.mapped_blocks

    def _must_be_new(self, number: int) -> None:
        if number in self._devices or self._details.lookup(self._superblock.device_details_root, number) is not None:
            raise MetadataError(errno.EEXIST)

    def _create(self, number: int, root: int) -> ThinDevice:
        superblock = self._superblock
        superblock.data_mapping_root = self._roots.insert(superblock.data_mapping_root, number, root)
        device = ThinDevice(number, 0, superblock.trans_id, superblock.time, superblock.time, changed=True)
        self._devices[number] = device
        superblock.device_details_root = self._details.insert(superblock.device_details_root, number, device.details)
        self.changed = True
        return device

    def delete(self, number: int) -> None:
        if self._device(number).openers:
            raise MetadataError(errno.EBUSY)
        del self._devices[number]
        superblock = self._superblock
        superblock.device_details_root = self._details.remove(superblock.device_details_root, number)
        superblock.data_mapping_root = self._roots.remove(superblock.data_mapping_root, number)
        self.changed = True

    # -- mappings ---------------------------------------------------------------------------------------

    def find(self, device: ThinDevice, virtual: int) -> Found | None:
        value = self._mappings.lookup(self._root(device), virtual)
        if value is None:
            return None
        time = value & (1 << _TIME_BITS) - 1
        return Found(value >> _TIME_BITS, device.snapshotted_time > time)

    def highest(self, device: ThinDevice) -> int | None:
        """The highest virtual block that is mapped."""
        return self._mappings.highest(self._root(device))

    def mapped(self, device: ThinDevice, begin: int, end: int) -> list[tuple[int, int]]:
        """(virtual block, data block) of what is mapped between two virtual blocks."""
        items = self._mappings.items(self._root(device), begin, end)
        return [(virtual, value >> _TIME_BITS) for virtual, value in items]

    def insert(self, device: ThinDevice, virtual: int, block: int) -> None:
        """Map to a data block of the caller's. What was mapped there before has one reference less."""

        def change(old: int | None) -> int:
            if old is None:
                device.mapped_blocks += 1
            else:
                self._data_map.counts.dec(old >> _TIME_BITS)
            return block << _TIME_BITS | self._superblock.time

        self._change(device, lambda root: self._mappings.update(root, virtual, change))

    def remove(self, device: ThinDevice, begin: int, end: int) -> None:
        """Unmap what is mapped between two virtual blocks."""
        virtuals = [virtual for virtual, _ in self.mapped(device, begin, end)]
        if not virtuals:
            return

        def change(root: int) -> int:
            for virtual in virtuals:
                root = self._mappings.remove(root, virtual)
            return root

        self._change(device, change)
        device.mapped_blocks -= len(virtuals)

    def is_used_elsewhere(self, block: int) -> bool:
        """A data block is referred to more than once."""
        return self._data_map.counts[block] > 1

    def use_data_block(self, block: int) -> None:
        """One more reference to a data block, `free_data_block` takes it back."""
        self._data_map.counts.inc(block)
        self.changed = True

    def _root(self, device: ThinDevice) -> int:
        root: int = self._roots.lookup(self._superblock.data_mapping_root, device.id)
        return root

    def _change(self, device: ThinDevice, change: Callable[[int], int]) -> None:
        self._superblock.data_mapping_root = self._roots.update(self._superblock.data_mapping_root, device.id, change)
        device.changed = True
        self.changed = True
