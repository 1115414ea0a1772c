"""The way of a bio through a cache (`map_bio` and its neighbours in Linux `drivers/md/dm-cache-target.c`).

Reads and writes go their way at once, unless their block is being moved: then they wait for it. What is to be committed
first, flushes and writes with FUA, and discards are left to a worker, which also does what blocks that are moved need.
"""

from __future__ import annotations

import errno
from collections import deque
from functools import partial

from ...model.dm_target import TURN, Bio, BlockDevice, EndIo, MapResult, Op, submit
from ..actions import Actions
from .locks import BlockLocks
from .mover import Migration, Mover
from .state import CacheState, IoMode

__all__ = ["Bios", "CacheBio"]

COMMIT_PERIOD = 1


class CacheBio:
    """What a bio carries (`struct per_bio_data`). `offset`: its sector on the origin; `block`: the one it has entered;
    `counted`: the tracker counts it; `migration`: the block that it fills; `clones`: to how many devices a write
    through goes that are not done with it; `error`: the first of theirs."""

    offset = 0
    block: int | None = None
    counted = False
    migration: Migration | None = None
    clones = 0
    error = 0


class Bios:
    """The bios of a cache that are under way."""

    def __init__(self, state: CacheState) -> None:
        self._state = state
        self._locks = BlockLocks()
        self.mover = Mover(state, self._locks, self._defer)
        self._deferred: deque[Bio] = deque()
        self._scheduled = self._armed = False
        state.wake_up = self.wake

    # -- there ------------------------------------------------------------------------------------------

    def map(self, bio: Bio, offset: int) -> MapResult:
        """`offset`: the bio's sector on the origin."""
        state = self._state
        bio.per_bio.offset = offset
        if bio.op is not Op.FLUSH and offset // state.block_size >= state.origin_blocks:
            with state.store.lock:  # the end of the origin that is no whole block is not cached
                self._send_to(state.origin, offset, bio)
            return MapResult.REMAPPED
        if bio.fua or bio.op in (Op.FLUSH, Op.DISCARD):
            self._defer([bio])
            return MapResult.SUBMITTED
        with state.store.changes() as actions:
            return MapResult.REMAPPED if self._remap(bio, actions) else MapResult.SUBMITTED

    def _send_to(self, device: BlockDevice, sector: int, bio: Bio) -> None:
        bio.bdev, bio.sector = device, sector
        if bio.op is not Op.DISCARD:
            bio.per_bio.counted = True
            self._state.tracker.begin()

    def _remap(self, bio: Bio, actions: Actions) -> bool:
        """Point a bio at its data; False when something else has to be done first, which will send it."""
        state, offset = self._state, bio.per_bio.offset
        block, write = offset // state.block_size, bio.op is Op.WRITE
        if not self._locks.enter(block, bio):
            return False
        cblock = state.policy.lookup(block)
        if cblock is None:
            fast = write and self.mover.needs_no_copy(block, bio)
            if work := state.policy.missed(block, fast=fast):
                self._locks.leave(block, actions)
                self._arm()
                self.mover.start(work, bio, actions)
                return False
            self._count(write, hit=False)
            self._to_origin(bio, write)
            if state.policy.has_queued:
                actions.append(self.wake)
        else:
            self._count(write, hit=True)
            if state.features.io_mode is not IoMode.PASSTHROUGH or cblock in state.dirty:
                self._to_cache(bio, cblock, write, actions)
            elif write:
                self._locks.leave(block, actions)
                state.counters.demotions += 1
                self.mover.invalidate(block, cblock, bio, actions)
                return False
            else:
                self._to_origin(bio, write)
        bio.per_bio.block = block
        return True

    def _count(self, write: bool, *, hit: bool) -> None:
        counters = self._state.counters
        counters.write_hits += write and hit
        counters.write_misses += write and not hit
        counters.read_hits += not write and hit
        counters.read_misses += not (write or hit)

    def _to_origin(self, bio: Bio, write: bool) -> None:
        offset = bio.per_bio.offset
        if write:
            self._state.discards.clear(offset)
        self._send_to(self._state.origin, offset, bio)

    def _to_cache(self, bio: Bio, cblock: int, write: bool, actions: Actions) -> None:
        state, offset = self._state, bio.per_bio.offset
        if write:
            state.discards.clear(offset)
            if state.features.io_mode is IoMode.WRITETHROUGH and cblock not in state.dirty:
                self._clone_to_origin(bio, actions)
            else:
                state.set_dirty(cblock)
                self._arm()
        self._send_to(state.cache, cblock * state.block_size + offset % state.block_size, bio)

    def _clone_to_origin(self, bio: Bio, actions: Actions) -> None:
        """A write through goes to both; the bio that goes to the cache ends when both are done."""
        carried: CacheBio = bio.per_bio
        carried.clones = 2
        origin, data, fua, done = self._state.origin, bio.data, bio.fua, partial(self._clone_done, bio)
        actions.append(lambda: submit(Op.WRITE, origin, carried.offset, data, done, fua=fua))

    def _clone_done(self, bio: Bio, error: int) -> None:
        if self._last_clone(bio.per_bio, error):
            bio.endio(bio.per_bio.error)

    def _last_clone(self, carried: CacheBio, error: int) -> bool:
        with self._state.store.lock:
            carried.error = carried.error or error
            carried.clones -= 1
            return not carried.clones

    # -- and back ---------------------------------------------------------------------------------------

    def end_io(self, bio: Bio, error: int) -> int | EndIo:
        carried: CacheBio = bio.per_bio
        if carried.clones:
            if not self._last_clone(carried, error):
                return EndIo.INCOMPLETE
            error = carried.error
        with self._state.store.changes() as actions:
            if carried.counted:
                carried.counted = False
                self._state.tracker.end()
            migration, carried.migration = carried.migration, None
            if carried.block is not None:
                block, carried.block = carried.block, None
                self._locks.leave(block, actions)
        if migration is not None:
            self.mover.go_on(migration, error)
            return EndIo.INCOMPLETE
        return error

    # -- the worker -------------------------------------------------------------------------------------

    def _defer(self, bios: list[Bio]) -> None:
        with self._state.store.lock:
            self._deferred.extend(bios)
        self.wake()

    def wake(self) -> None:
        """Look for work soon."""
        with self._state.store.lock:
            if self._scheduled:
                return
            self._scheduled = True
        self._state.device.mapper.work.queue(self._do_worker)

    def _do_worker(self) -> None:
        with self._state.store.changes() as actions:
            self._scheduled = False
            self._work(actions)

    def _work(self, actions: Actions) -> None:
        self.mover.work(actions)
        while self._deferred:
            self._process(self._deferred.popleft(), actions)
        self.mover.move_more(actions)
        if self._state.store.metadata.changed or self._state.policy.busy:
            self._arm()

    def _process(self, bio: Bio, actions: Actions) -> None:
        state, carried = self._state, bio.per_bio
        if bio.op is Op.FLUSH:
            self._send_to((state.origin, state.cache)[bio.target_bio_nr], 0, bio)
            self._after_commit(bio, actions)
        elif bio.op is Op.DISCARD:
            state.discards.add(carried.offset, carried.offset + bio.nr_sectors)
            if state.features.discard_passdown:
                self._send_to(state.origin, carried.offset, bio)
                actions.append(partial(state.origin.submit_bio, bio))
            else:
                actions.append(bio.endio)
        elif self._remap(bio, actions):
            if bio.fua:
                self._after_commit(bio, actions)
            else:
                assert bio.bdev is not None
                actions.append(partial(bio.bdev.submit_bio, bio))

    def _after_commit(self, bio: Bio, actions: Actions) -> None:
        assert bio.bdev is not None
        bdev = bio.bdev

        def committed(error: int) -> None:
            if error:
                bio.endio(errno.EIO)
            else:
                bdev.submit_bio(bio)

        self._state.store.after_commit(committed, actions)

    # -- time -------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Look again in a second: whether the cache is idle, and what is to be committed."""
        if not self._armed and self.mover.allowed:
            self._armed = True
            self._state.device.mapper.work.later(COMMIT_PERIOD, self._tick)

    def _tick(self) -> None:
        """`do_waker`."""
        with self._state.store.changes() as actions:
            self._armed = False
            self.look_again(actions)

    def look_again(self, actions: Actions) -> None:
        """Move what there is to move, and commit."""
        if not self.mover.allowed:
            return
        self.mover.try_again()
        self._work(actions)
        if self._state.store.metadata.changed and not self._state.read_only:
            self._state.store.after_commit(lambda error: None, actions)

    def drain(self) -> bool:
        """Wait until no block is being moved; False when that might be for ever. For the thread of commands."""
        store = self._state.store
        while self.mover.under_way:
            with store.changes() as actions:
                self.mover.work(actions)
                if not actions and self.mover.under_way:
                    if store.held_up:
                        return False
                    store.lock.wait(TURN)
        return True
