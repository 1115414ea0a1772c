"""The state of a cache: its devices, its mode, what is dirty (`struct cache` and `metadata_operation_failed` of Linux
`drivers/md/dm-cache-target.c`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING

from ...model.dm_target import BlockDevice, Op, submit
from ..actions import Actions
from ..io_tracker import IoTracker
from ..persistent_data.metadata import METADATA_FAILURES, errno_of
from .discards import Discards
from .policy import Policy, Settings
from .store import Store

if TYPE_CHECKING:
    from ...model.dm_table import DmTable

__all__ = ["CacheState", "Counters", "Features", "IoMode", "Mode"]

#: Seconds.
_IDLE_AFTER = 1


class Mode(IntEnum):
    """`enum cache_metadata_mode`."""

    WRITE = 0
    READ_ONLY = 1
    FAIL = 2


_MODES = ("write", "read-only", "fail")


class IoMode(Enum):
    """`enum cache_io_mode`."""

    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    PASSTHROUGH = "passthrough"


@dataclass(slots=True)
class Features:
    """`struct cache_features`."""

    io_mode: IoMode = IoMode.WRITEBACK
    metadata_version: int = 1
    discard_passdown: bool = True


@dataclass(slots=True)
class Counters:
    """`struct cache_stats`, those that the status shows."""

    read_hits: int
    read_misses: int
    write_hits: int
    write_misses: int
    demotions: int = 0
    promotions: int = 0


class CacheState:
    """`block_size` in sectors; `dirty`: cache blocks that differ from the origin. `wake_up` is called when there may be
    work to do. The lock of `store` guards it all."""

    def __init__(
        self,
        table: DmTable,
        origin: BlockDevice,
        cache: BlockDevice,
        block_size: int,
        origin_sectors: int,
        features: Features,
        settings: Settings,
        policy: Policy,
        store: Store,
    ) -> None:
        self.table = table
        self.device = table.device
        self.origin = origin
        self.cache = cache
        self.block_size = block_size
        self.origin_blocks = origin_sectors // block_size
        self.features = features
        self.settings = settings
        self.policy = policy
        self.store = store
        self.mode = Mode.WRITE
        self.dirty: set[int] = set()
        self.discards = Discards(block_size, origin_sectors)
        self.counters = Counters(*store.metadata.stats)
        self.tracker = IoTracker(self.device.mapper.work.now)
        self.wake_up: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """`dm_device_name`."""
        return "{}:{}".format(*self.device.dev)

    def log(self, text: str) -> None:
        self.device.mapper.events.log(f"device-mapper: cache: {self.name}: {text}")

    @property
    def data_devices(self) -> Sequence[BlockDevice]:
        """What the metadata tell of."""
        return self.origin, self.cache

    @property
    def read_only(self) -> bool:
        """The metadata cannot be changed any more."""
        return self.mode >= Mode.READ_ONLY

    @property
    def idle(self) -> bool:
        """Nothing has been under way for more than a second."""
        return self.tracker.idle_time > _IDLE_AFTER

    def wake(self) -> None:
        self.wake_up()

    # -- what is dirty ----------------------------------------------------------------------------------

    def set_dirty(self, cblock: int) -> None:
        if cblock not in self.dirty:
            self.dirty.add(cblock)
            self.policy.set_dirty(cblock, dirty=True)

    def set_clean(self, cblock: int, actions: Actions) -> None:
        if cblock in self.dirty:
            self.dirty.remove(cblock)
            if not self.dirty:
                actions.append(self._event)
        self.policy.set_dirty(cblock, dirty=False)

    def _event(self) -> None:
        """`dm_table_event`: heard of live tables only."""
        if self.table is self.device.live:
            self.device.event()

    # -- modes ------------------------------------------------------------------------------------------

    def set_mode(self, new: Mode, actions: Actions) -> None:
        """Change the mode, as far as that is possible (`set_cache_mode`). No mode is left for a better one."""
        old = self.mode
        if new is Mode.WRITE and self.store.metadata.needs_check:
            self.log("unable to switch cache to write mode until repaired.")
            new = old if old is not new else Mode.READ_ONLY
        if old is Mode.FAIL:
            new = old
        self.mode = new
        if new is not old:
            self.policy.migrates = False
            actions.append(self._event)
            self.log(f"switching cache to {_MODES[new]} mode")

    def operation_failed(self, what: str, failure: Exception, actions: Actions) -> None:
        """What was not committed is lost, and nothing more is written. To be called under the lock."""
        number = errno_of(failure)
        self.log(f"metadata operation '{what}' failed: error = {-number}")
        if not self.read_only:
            self._abort(actions)
        self.set_mode(Mode.READ_ONLY if self.mode is Mode.WRITE else self.mode, actions)

    def _abort(self, actions: Actions) -> None:
        metadata = self.store.metadata
        self.log("aborting current metadata transaction")
        try:
            metadata.abort()
        except METADATA_FAILURES:
            self.log("failed to abort metadata transaction")
            self.set_mode(Mode.FAIL, actions)
            return
        superblock = memoryview(metadata.set_needs_check())

        def written(error: int) -> None:
            if error:
                with self.store.changes() as late:
                    self.log("failed to set 'needs_check' flag in metadata")
                    self.set_mode(Mode.FAIL, late)

        actions.append(lambda: submit(Op.WRITE, self.store.metadata_device, 0, superblock, written, fua=True))
