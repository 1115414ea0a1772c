"""The metadata that the tables of a cache share (the open metadata of Linux `drivers/md/dm-cache-metadata.c`)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...model.dm_target import BlockDevice, TargetError, is_suspended
from ..actions import Actions
from ..persistent_data.committer import Committer
from ..persistent_data.device import block_reader, commit_now, metadata_blocks
from ..persistent_data.metadata import METADATA_FAILURES, MetadataError, errno_of, tell_why_not_opened
from .metadata import CacheMetadata

if TYPE_CHECKING:
    from ...model.dm_dev import DmDev
    from .state import CacheState

__all__ = ["Store", "Stores"]


class Store(Committer):
    """`users`: targets that have it. The owner is the cache that is live, the one who changes the metadata."""

    commit_operation = "dm_cache_commit"

    def __init__(self, device: DmDev, metadata_device: BlockDevice, metadata: CacheMetadata) -> None:
        super().__init__(device, metadata_device, [], metadata)
        self.metadata = metadata
        self.users = 0
        self._owner: CacheState | None = None

    def adopt(self, owner: CacheState) -> None:
        """From now on it is `owner` whose changes are committed. TargetError(EAGAIN) while those of another are."""
        with self.quiet():
            self._owner = owner
            self.device, self._data_devices = owner.device, owner.data_devices

    @property
    def committing(self) -> bool:
        """Nothing may be changed now; `wake` tells when that is over."""
        return self._committing

    @property
    def read_only(self) -> bool:
        return self._owner is None or self._owner.read_only

    def operation_failed(self, what: str, failure: Exception, actions: Actions) -> None:
        if self._owner is not None:
            self._owner.operation_failed(what, failure, actions)

    def _succeeded(self, actions: Actions) -> None:
        """Nothing is left to be done."""

    def _wake(self) -> None:
        with self.changes() as actions:
            if self._commit_first and not self._committing:
                self._begin_commit(actions)
        if self._owner is not None:
            self._owner.wake()


class Stores:
    """Stores by their metadata devices."""

    def __init__(self) -> None:
        self._stores: dict[BlockDevice, Store] = {}

    def take(self, device: DmDev, metadata_device: BlockDevice, block_size: int, version: int) -> Store:
        """The metadata on a device, opened if need be (`dm_cache_metadata_open`). TargetError when that fails."""
        store = self._stores.get(metadata_device)
        if store is None:
            store = Store(device, metadata_device, _open(device, metadata_device, block_size, version))
            self._stores[metadata_device] = store
        elif (found := store.metadata.data_block_size) != block_size:
            text = f"data_block_size ({block_size}) different from that in metadata ({found})"
            device.mapper.events.log(f"device-mapper: cache metadata: {text}")
            raise _failure(errno.EINVAL)
        store.users += 1
        return store

    def release(self, store: Store) -> None:
        """One user less."""
        store.users -= 1
        if not store.users:
            del self._stores[store.metadata_device]


def _failure(number: int) -> TargetError:
    return TargetError(number, "Error creating metadata object")


def _open(device: DmDev, metadata_device: BlockDevice, block_size: int, version: int) -> CacheMetadata:
    if is_suspended(metadata_device):
        raise _failure(errno.EAGAIN)
    read = block_reader(metadata_device)
    try:
        metadata = CacheMetadata(read, metadata_blocks(metadata_device), block_size, version)
        commit_now(metadata.prepare_commit(), metadata_device)
        metadata.committed()
        return metadata
    except (*METADATA_FAILURES, MetadataError) as failure:
        tell_why_not_opened(failure, "cache metadata", "read lock", device.mapper.events.log)
        raise _failure(errno_of(failure)) from failure
