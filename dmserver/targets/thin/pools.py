"""The pools of one device-mapper (`dm_thin_pool_table` of Linux `drivers/md/dm-thin.c`)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...model.dm_target import BlockDevice, TargetError
from ..persistent_data.device import block_reader, metadata_blocks
from ..persistent_data.metadata import METADATA_FAILURES, MetadataError, errno_of, tell_why_not_opened
from .metadata import ThinMetadata
from .pool import Pool

if TYPE_CHECKING:
    from ...model.dm_dev import DmDev

__all__ = ["Pools"]


class Pools:
    """Pools by their mapped devices. A pool lives as long as targets use it: it outlasts the tables of its device."""

    def __init__(self) -> None:
        self._pools: dict[DmDev, Pool] = {}

    def of(self, device: DmDev) -> Pool | None:
        return self._pools.get(device)

    def find(
        self, device: DmDev, metadata: BlockDevice, data: BlockDevice, block_size: int, *, read_only: bool
    ) -> Pool:
        """The pool of a mapped device, made if need be (`__pool_find`). TargetError when it cannot be had."""
        for pool in self._pools.values():
            if pool.metadata_device is metadata and pool.device is not device:
                raise TargetError(errno.EBUSY, "metadata device already in use by a pool")
            if pool.metadata_device is metadata and pool.data_device is not data:
                raise TargetError(errno.EBUSY, "data device already in use by a pool")
        pool_of_device = self._pools.get(device)
        if pool_of_device is None:
            pool = Pool(device, metadata, data, block_size, _open(device, metadata, block_size, read_only))
            self._pools[device] = pool
            return pool
        if pool_of_device.metadata_device is not metadata:
            raise TargetError(errno.EINVAL, "different pool cannot replace a pool")
        return pool_of_device

    def take(self, pool: Pool) -> None:
        pool.users += 1

    def release(self, pool: Pool) -> None:
        """One user less; the last one leaves everything on the disk."""
        pool.users -= 1
        if not pool.users:
            pool.commit()
            del self._pools[pool.device]


def _open(device: DmDev, metadata: BlockDevice, block_size: int, read_only: bool) -> ThinMetadata:
    try:
        return ThinMetadata(block_reader(metadata), metadata_blocks(metadata), block_size, writable=not read_only)
    except (*METADATA_FAILURES, MetadataError) as failure:
        tell_why_not_opened(failure, "thin metadata", "read", device.mapper.events.log)
        raise TargetError(errno_of(failure), "Error creating metadata object") from failure
