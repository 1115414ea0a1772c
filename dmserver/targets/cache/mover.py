"""Moving blocks between the origin and the cache (migrations and invalidations of Linux
`drivers/md/dm-cache-target.c`).

Theory of operation. Whoever moves a block locks it: bios to it wait. When the last bio has left, the block is copied,
if that is needed, or a bio is sent that fills it. Then the metadata are changed, unless a commit is being written: so
that is left to a worker. Whoever gives up a cache block waits for the commit that says so before anybody else may have
it, lest a crash bring back the mapping, with the data of another. At last the block is unlocked, and the bios go on.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ...model.dm_target import Bio, Kcopyd, Op
from ..actions import Actions
from ..persistent_data.metadata import METADATA_FAILURES
from .locks import BlockLocks
from .policy import Operation, Work
from .state import CacheState, IoMode

__all__ = ["Migration", "Mover"]

_FAILED = {
    Operation.PROMOTE: ("migration failed; couldn't insert mapping", "dm_cache_insert_mapping"),
    Operation.DEMOTE: ("migration failed; couldn't update on disk metadata", "dm_cache_remove_mapping"),
    None: ("invalidation failed; couldn't update on disk metadata", "dm_cache_remove_mapping"),
}


@dataclass(slots=True, eq=False)
class Migration:
    """`struct dm_cache_migration`. `work`: None for an invalidation. `bio`: what fills the block, or what invalidates
    it."""

    oblock: int
    cblock: int
    work: Work | None = None
    bio: Bio | None = None
    error: int = 0


class Mover:
    """`defer` takes bios that waited for a block; `allowed`: blocks may be moved, a suspension ends that."""

    def __init__(self, state: CacheState, locks: BlockLocks, defer: Callable[[list[Bio]], None]) -> None:
        self.allowed = False
        self._state = state
        self._locks = locks
        self._defer = defer
        self._kcopyd = Kcopyd()
        self._under_way = self._copies = 0
        self._failed = False
        self._ready: deque[Migration] = deque()

    @property
    def under_way(self) -> bool:
        """A block is being moved."""
        return bool(self._under_way)

    # -- beginning --------------------------------------------------------------------------------------

    def try_again(self) -> None:
        """Some time has passed since something could not be moved."""
        self._failed = False

    def move_more(self, actions: Actions) -> None:
        """Begin what the policy wants moved (`check_migrations`), unless a block could not be moved just now."""
        state, threshold = self._state, self._state.settings.migration_threshold
        while self.allowed and not self._failed:
            volume = (self._copies + 1) * state.block_size
            work = state.policy.next_work(idle=state.idle and volume <= threshold)
            if work is None:
                return
            self.start(work, None, actions)

    def start(self, work: Work, bio: Bio | None, actions: Actions) -> None:
        """Move a block; `bio` fills it."""
        self._copies += bio is None
        self._lock(Migration(work.oblock, work.cblock, work, bio), self._copy, actions)

    def invalidate(self, oblock: int, cblock: int, bio: Bio, actions: Actions) -> None:
        """Forget that a block is cached, and then send `bio` to the origin."""
        self._lock(Migration(oblock, cblock, bio=bio), self._is_ready, actions)

    def _lock(self, migration: Migration, then: Callable[[Migration, Actions], None], actions: Actions) -> None:
        self._state.device.io.hold()
        self._under_way += 1
        self._locks.lock(migration.oblock, partial(then, migration), actions)

    def needs_no_copy(self, oblock: int, bio: Bio) -> bool:
        """Whether a bio may fill a block (`optimisable_bio`)."""
        state = self._state
        whole = bio.op is Op.WRITE and bio.nr_sectors == state.block_size
        discarded = oblock * state.block_size in state.discards
        return state.features.io_mode is IoMode.WRITEBACK and (whole or discarded)

    def _copy(self, migration: Migration, actions: Actions) -> None:
        state, work, bio = self._state, migration.work, migration.bio
        assert work is not None
        if bio is not None:
            if self.needs_no_copy(work.oblock, bio):
                self._overwrite(migration, bio, actions)
                return
            self._locks.wait(work.oblock, bio)
            migration.bio = None
            self._copies += 1
        promote = work.operation is Operation.PROMOTE
        sector = work.oblock * state.block_size
        if sector in state.discards or not (promote or work.cblock in state.dirty):
            self._is_ready(migration, actions)
            return
        here, there = (state.origin, sector), (state.cache, work.cblock * state.block_size)
        source, destination = (here, there) if promote else (there, here)
        done = partial(self._copied, migration)
        actions.append(lambda: self._kcopyd.copy(source, [destination], state.block_size, done))

    def _overwrite(self, migration: Migration, bio: Bio, actions: Actions) -> None:
        state = self._state
        bio.per_bio.migration = migration
        bio.per_bio.counted = True
        state.tracker.begin()
        bio.bdev, bio.sector = state.cache, migration.cblock * state.block_size + bio.per_bio.offset % state.block_size
        actions.append(lambda: state.cache.submit_bio(bio))

    # -- going on ---------------------------------------------------------------------------------------

    def _copied(self, migration: Migration, read_failed: bool, write_failed: frozenset[int]) -> None:
        self.go_on(migration, errno.EIO if read_failed or write_failed else 0)

    def go_on(self, migration: Migration, error: int) -> None:
        """The block holds what it should, or does not. In any thread."""
        migration.error = error
        with self._state.store.changes() as actions:
            self._is_ready(migration, actions)

    def _is_ready(self, migration: Migration, actions: Actions) -> None:
        self._ready.append(migration)
        self._state.store.lock.notify_all()
        actions.append(self._state.wake)

    def work(self, actions: Actions) -> None:
        """Change the metadata for what is ready."""
        while self._ready and not self._state.store.committing:
            self._update(self._ready.popleft(), actions)

    def _update(self, migration: Migration, actions: Actions) -> None:
        state = self._state
        operation = migration.work.operation if migration.work else None
        failed = migration.error or (state.read_only and operation is not Operation.WRITEBACK)
        if failed or operation is Operation.WRITEBACK:
            self._end(migration, actions, success=not failed)
            return
        try:
            if operation is Operation.PROMOTE:
                state.store.metadata.insert(migration.cblock, migration.oblock)
            elif operation is Operation.DEMOTE or state.policy.invalidate(migration.cblock):
                state.store.metadata.remove(migration.cblock)
        except METADATA_FAILURES as failure:
            message, what = _FAILED[operation]
            state.log(message)
            state.operation_failed(what, failure, actions)
            self._end(migration, actions, success=False)
            return
        if operation is Operation.PROMOTE and not (migration.bio and migration.bio.fua):
            self._end(migration, actions, success=True)
        else:
            state.store.after_commit(partial(self._committed, migration), actions)

    def _committed(self, migration: Migration, error: int) -> None:
        migration.error = error
        with self._state.store.changes() as actions:
            self._end(migration, actions, success=not error)

    # -- ending -----------------------------------------------------------------------------------------

    def _end(self, migration: Migration, actions: Actions, *, success: bool) -> None:
        """`mg_complete` and `invalidate_complete`."""
        work, bio = migration.work, migration.bio
        if work is None:
            assert bio is not None
            self._end_invalidation(migration, bio, actions, success=success)
        elif work.operation is Operation.PROMOTE:
            self._end_promotion(migration, work, actions, success=success)
        else:
            if success:
                self._state.set_clean(work.cblock, actions)
                self._state.counters.demotions += work.operation is Operation.DEMOTE
            self._state.policy.complete(work, success=success)
        if waiting := self._locks.unlock(migration.oblock):
            actions.append(lambda: self._defer(waiting))
        self._copies -= work is not None and bio is None
        self._under_way -= 1
        self._failed |= not success
        self._state.store.lock.notify_all()
        actions.append(self._state.device.io.release)
        if success:
            actions.append(self._state.wake)

    def _end_promotion(self, migration: Migration, work: Work, actions: Actions, *, success: bool) -> None:
        state, bio = self._state, migration.bio
        state.discards.clear(work.oblock * state.block_size)
        state.policy.complete(work, success=success)
        state.counters.promotions += success
        if bio is not None:
            if success:
                state.set_dirty(work.cblock)
            error = 0 if success else migration.error or errno.EIO
            actions.append(lambda: bio.endio(error))

    def _end_invalidation(self, migration: Migration, bio: Bio, actions: Actions, *, success: bool) -> None:
        state = self._state
        if not success:
            actions.append(lambda: bio.endio(errno.EIO))
            return
        state.discards.clear(bio.per_bio.offset)
        state.tracker.begin()
        bio.per_bio.counted = True
        bio.bdev, bio.sector = state.origin, bio.per_bio.offset
        actions.append(lambda: state.origin.submit_bio(bio))
