"""The pool behind a `thin-pool` and its `thin` devices (`struct pool` of Linux `drivers/md/dm-thin.c`).

Theory of operation. A bio of a thin device that only has to be remapped goes its way at once. All others are deferred
to a worker, which provisions blocks, copies what is shared, unmaps, or holds bios that nothing can be done for. While a
block is prepared, further bios to the same virtual block wait in its cell. Changes of the metadata are committed when a
flush needs it, at the latest a second after; nothing changes them while a commit is being written. `pool_state` has the
lock, the mode, and the commits.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ...model.dm_target import SECTOR_SIZE, Bio, BlockDevice, Extent, Kcopyd, Op, submit
from ..actions import Actions
from ..persistent_data.metadata import METADATA_FAILURES
from .io import copy_block, discard_runs
from .metadata import ThinMetadata
from .pool_state import Mode, PoolState

if TYPE_CHECKING:
    from ...model.dm_dev import DmDev
    from .thin import Thin

__all__ = ["Pool"]

COMMIT_PERIOD = 1


@dataclass(slots=True, eq=False)
class _Mapping:
    """`struct dm_thin_new_mapping`: a data block that will be mapped once it holds what it should. `whole`: `bio` is
    what fills it. For a discard, `blocks` that are being discarded underneath."""

    thin: Thin
    bio: Bio
    virtual: int
    block: int = 0
    whole: bool = False
    blocks: list[int] = field(default_factory=list)
    error: int = 0


class Pool(PoolState):
    """`block_size` in sectors. `users`: targets that have it, its `thins` among them."""

    def __init__(
        self, device: DmDev, metadata_device: BlockDevice, data_device: BlockDevice, size: int, metadata: ThinMetadata
    ) -> None:
        super().__init__(device, metadata_device, data_device, metadata)
        self.block_size = size
        self.users = 0
        self.thins: list[Thin] = []
        self.suspended = True
        self._low_water_triggered = self._scheduled = self._timer = False
        self._deferred: deque[tuple[Thin, Bio]] = deque()
        self._retry: list[tuple[Thin, Bio]] = []
        self._cells: dict[tuple[int, int], list[tuple[Thin, Bio]]] = {}
        self._prepared: deque[_Mapping] = deque()
        self._busy: Counter[int] = Counter()
        self._kcopyd = Kcopyd()

    # -- suspension -------------------------------------------------------------------------------------

    def suspend(self) -> None:
        """Bios of thin devices are held from now on."""
        with self.lock:
            self.suspended = True
        for thin in self.thins:
            thin.table.device.internal_suspends += 1

    def resume(self) -> None:
        for thin in self.thins:
            thin.table.device.internal_suspends -= 1
        with self.lock:
            self._low_water_triggered = self.suspended = False
            self._try_again()
        self._wake()

    def _try_again(self) -> None:
        self._deferred.extendleft(reversed(self._retry))
        self._retry = []

    def _fail_retries(self, error: int, actions: Actions) -> None:
        waiting, self._retry = self._retry, []
        for _, bio in waiting:
            _end(bio, error, actions)

    def take_back(self, thin: Thin) -> list[Bio]:
        """The bios of a thin device that nothing has been done for yet."""
        with self.lock:
            taken = [bio for owner, bio in (*self._retry, *self._deferred) if owner is thin]
            self._retry = [entry for entry in self._retry if entry[0] is not thin]
            self._deferred = deque(entry for entry in self._deferred if entry[0] is not thin)
            return taken

    # -- the way of a bio -------------------------------------------------------------------------------

    def remap(self, thin: Thin, bio: Bio) -> bool:
        """Point a bio at its data, if nothing else has to be done for it. To be called under the lock."""
        virtual = thin.offset(bio.sector) // self.block_size
        if self.suspended or thin.requeueing or (thin.device.id, virtual) in self._cells:
            return False
        found = self.metadata.find(thin.device, virtual)
        if found is None or found.shared:
            return False
        self._point(thin, bio, found.block)
        return True

    def _point(self, thin: Thin, bio: Bio, block: int) -> None:
        bio.bdev, bio.sector = self.data_device, block * self.block_size + thin.offset(bio.sector) % self.block_size
        bio.per_bio.block = block
        self._busy[block] += 1

    def leave(self, block: int) -> None:
        """A bio to this data block is done."""
        with self.lock:
            self._busy[block] -= 1
            if not self._busy[block]:
                del self._busy[block]

    def defer(self, thin: Thin, bio: Bio) -> None:
        """Leave a bio to the worker."""
        with self.lock:
            self._deferred.append((thin, bio))
        self._wake()

    def _wake(self) -> None:
        with self.lock:
            idle = not self._deferred or self.suspended
            if self._scheduled or self._committing or (idle and not (self._prepared or self._commit_first)):
                return
            self._scheduled = True
        self.device.mapper.work.queue(self._do_worker)

    def _do_worker(self) -> None:
        with self.changes() as actions:
            self._scheduled = False
            while self._prepared and not self._committing:
                self._map_prepared(self._prepared.popleft(), actions)
            while self._deferred and not (self.suspended or self._committing):
                self._process(*self._deferred.popleft(), actions)
            if self._commit_first and not self._committing:
                self._begin_commit(actions)
            self._check_metadata_low(actions)
            if self.metadata.changed and not self._timer:
                self._timer = True
                self.device.mapper.work.later(COMMIT_PERIOD, self._commit_due)

    def _process(self, thin: Thin, bio: Bio, actions: Actions) -> None:
        if self.mode is Mode.FAIL:
            _end(bio, errno.EIO, actions)
        elif bio.op is Op.DISCARD:
            self._discard(thin, bio, actions)
        elif bio.op is Op.FLUSH:
            bio.bdev = self.data_device
            self._issue(thin, bio, actions)
        else:
            virtual = thin.offset(bio.sector) // self.block_size
            waiting = self._cells.get((thin.device.id, virtual))
            if waiting is None:
                self._read_or_write(thin, bio, virtual, actions)
            else:
                waiting.append((thin, bio))

    def _read_or_write(self, thin: Thin, bio: Bio, virtual: int, actions: Actions) -> None:
        found = self.metadata.find(thin.device, virtual)
        if found and not (found.shared and bio.op is Op.WRITE):
            self._point(thin, bio, found.block)
            self._issue(thin, bio, actions)
        elif bio.op is Op.READ:
            actions.append(lambda: thin.read_origin(bio))
        elif self.mode is not Mode.WRITE:
            self._hold_or_fail(thin, bio, actions)
        else:
            self._provision(thin, bio, virtual, found.block if found else None, actions)

    def _issue(self, thin: Thin, bio: Bio, actions: Actions) -> None:
        """Send a bio to the data; one that flushes, after a commit if there is something to commit."""
        assert bio.bdev is not None
        bdev = bio.bdev
        if (bio.fua or bio.op is Op.FLUSH) and (thin.device.changed or thin.device.aborted):
            self._after_commit(thin, bio, lambda: bdev.submit_bio(bio))
        else:
            actions.append(lambda: bdev.submit_bio(bio))

    def _after_commit(self, thin: Thin, bio: Bio, action: Callable[[], None]) -> None:
        def committed(error: int) -> None:
            if error or thin.device.aborted:
                bio.endio(errno.EIO)
            else:
                action()

        self._commit_first.append(committed)

    def _hold_or_fail(self, thin: Thin, bio: Bio, actions: Actions) -> None:
        """`handle_unserviceable_bio`."""
        if self.mode is not Mode.OUT_OF_DATA_SPACE:
            _end(bio, errno.EIO, actions)
        elif self.features.error_if_no_space:
            _end(bio, errno.ENOSPC, actions)
        else:
            self._retry.append((thin, bio))

    # -- new blocks -------------------------------------------------------------------------------------

    def _provision(self, thin: Thin, bio: Bio, virtual: int, shared: int | None, actions: Actions) -> None:
        """Map a new block, which begins as a copy of the `shared` one, of the origin, or with zeroes."""
        try:
            block = self._allocate(actions)
        except METADATA_FAILURES as failure:
            self.operation_failed("dm_pool_alloc_data_block", failure, actions)
            _end(bio, errno.EIO, actions)
            return
        if block is None:
            if self.mode is Mode.WRITE:  # blocks come free by a commit
                self._deferred.appendleft((thin, bio))
                self._begin_commit(actions)
            else:
                self._hold_or_fail(thin, bio, actions)
            return
        mapping = _Mapping(thin, bio, virtual, block, whole=bio.nr_sectors == self.block_size)
        self._cells[thin.device.id, virtual] = []
        self.device.io.hold()
        actions.append(lambda: self._fill(mapping, shared))

    def _allocate(self, actions: Actions) -> int | None:
        """A data block, if one is free; else either a commit helps, or the mode has changed."""
        metadata = self.metadata
        free = metadata.free_data_blocks
        if free <= self.low_water_blocks and not self._low_water_triggered:
            self.log(f"{self.name}: reached low water mark for data device: sending event.")
            self._low_water_triggered = True
            actions.append(self.device.event)
        if not metadata.free_metadata_blocks:
            if not metadata.changed:
                self._set_mode(Mode.OUT_OF_METADATA_SPACE, actions)
            return None
        passed_by = []
        block = None
        while free and block is None:
            block = metadata.allocate_data_block()
            free -= 1
            if block in self._busy:  # it was freed while somebody still reads or writes it
                passed_by.append(block)
                block = None
        for each in passed_by:
            metadata.free_data_block(each)
        if block is None and not metadata.freed_data_blocks:
            self._set_mode(Mode.OUT_OF_DATA_SPACE, actions)
        return block

    def _fill(self, mapping: _Mapping, shared: int | None) -> None:
        data, size, done = self.data_device, self.block_size, partial(self._prepared_one, mapping)
        sector = mapping.block * size
        origin = mapping.thin.origin_extent(mapping.virtual)
        if mapping.whole:
            submit(Op.WRITE, data, sector, mapping.bio.data, done)
        elif shared is not None:
            copy_block(self._kcopyd, Extent(data, shared * size, size), data, sector, size, done)
        elif origin is not None:
            copy_block(self._kcopyd, origin, data, sector, size, done)
        elif self.features.zero_new_blocks:
            submit(Op.WRITE, data, sector, memoryview(bytes(size * SECTOR_SIZE)), done)
        else:
            done(0)

    def _prepared_one(self, mapping: _Mapping, error: int) -> None:
        mapping.error = error
        with self.lock:
            self._prepared.append(mapping)
        self._wake()

    def _map_prepared(self, mapping: _Mapping, actions: Actions) -> None:
        actions.append(self.device.io.release)
        if mapping.blocks:
            self._end_passdown(mapping, actions)
            return
        thin, bio = mapping.thin, mapping.bio
        waiting = self._cells.pop((thin.device.id, mapping.virtual))
        error = mapping.error
        try:
            if self.mode is not Mode.WRITE and self.mode is not Mode.OUT_OF_DATA_SPACE:
                error = error or errno.EIO
            elif error:
                self.metadata.free_data_block(mapping.block)
            else:
                self.metadata.insert(thin.device, mapping.virtual, mapping.block)
        except METADATA_FAILURES as failure:
            self.operation_failed("dm_thin_insert_block", failure, actions)
            error = errno.EIO
        if error:
            for each in (bio, *(other for _, other in waiting)):
                _end(each, errno.EIO, actions)
            return
        if not mapping.whole:
            waiting.insert(0, (thin, bio))
        elif bio.fua:
            self._after_commit(thin, bio, bio.endio)
        else:
            _end(bio, 0, actions)
        self._deferred.extendleft(reversed(waiting))

    # -- discards ---------------------------------------------------------------------------------------

    def _discard(self, thin: Thin, bio: Bio, actions: Actions) -> None:
        """Unmap the blocks that lie in a discard as a whole."""
        size, offset = self.block_size, thin.offset(bio.sector)
        begin, end = -(-offset // size), (offset + bio.nr_sectors) // size
        if begin >= end or self.mode > Mode.OUT_OF_DATA_SPACE:
            _end(bio, 0, actions)
            return
        for (number, virtual), waiting in self._cells.items():
            if number == thin.device.id and begin <= virtual < end:
                waiting.append((thin, bio))
                return
        try:
            blocks = [block for _, block in self.metadata.mapped(thin.device, begin, end)]
            if self.features.discard_passdown:
                for block in blocks:
                    self.metadata.use_data_block(block)
            self.metadata.remove(thin.device, begin, end)
        except METADATA_FAILURES as failure:
            self.operation_failed("dm_thin_remove_range", failure, actions)
            _end(bio, errno.EIO, actions)
            return
        if not blocks or not self.features.discard_passdown:
            _end(bio, 0, actions)
            return
        self.device.io.hold()
        ours = [block for block in blocks if not self.metadata.is_used_elsewhere(block)]
        runs = [(block * size, size) for block in ours]
        done = partial(self._prepared_one, _Mapping(thin, bio, begin, blocks=blocks))
        actions.append(lambda: discard_runs(self.data_device, runs, done))

    def _end_passdown(self, mapping: _Mapping, actions: Actions) -> None:
        if self.mode <= Mode.OUT_OF_DATA_SPACE:
            for block in mapping.blocks:
                self.metadata.free_data_block(block)
        _end(mapping.bio, mapping.error, actions)


def _end(bio: Bio, error: int, actions: Actions) -> None:
    actions.append(lambda: bio.endio(error))
