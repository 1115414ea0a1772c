"""A mapped device: two table slots, its names, its state (NetBSD `struct dm_dev`, Linux `struct mapped_device` with
its `struct hash_cell`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from dmproto.wire import huge_encode

from ..io.bio import Bio
from ..io.blockdev import BlockDevice
from ..io.mapped import MappedIo
from .dm_table import DmTable
from .dm_target import TargetError

if TYPE_CHECKING:
    from .mapper import Mapper
    from .stats import Stats

__all__ = ["DmDev"]


class DmDev(BlockDevice):
    """`slots[cur_active]` is the live table, the other slot the inactive one; None is an empty slot.

    `name_bytes` and `uuid_bytes` are the names as bytes; the mapper sets them. `devt` is the number as Linux packs it.
    `suspended`: bios are held. `event_nr` counts this device's events. `geometry` is (cylinders, heads, sectors,
    start). `has_disk`: the block device exists (Linux makes it at the first table load). `diskseq` numbers disks
    and is never used again. `openers` is the open count. `stats` counts bios once somebody asked for it.
    """

    def __init__(self, mapper: Mapper, minor: int, name: str, uuid: str) -> None:
        self.mapper = mapper
        super().__init__(f"/dev/dm-{minor}", (mapper.major, minor))
        self.minor = minor
        self.devt = huge_encode(self.dev)
        self.name = name
        self.uuid = uuid
        self.name_bytes = self.uuid_bytes = b""
        self.slots: list[DmTable | None] = [None, None]
        self.cur_active = 0
        self.suspended = False
        self.internal_suspends = 0  #: how often a target suspended this device (`internal_suspend_count`)
        self.deferred_remove = False
        self.has_disk = False
        self.diskseq = mapper.next_diskseq()
        self.removed = False
        self.geometry = (0, 0, 0, 0)
        self.event_nr = 0
        self.uevent_seq = 0  #: uevents that targets numbered (`dm_next_uevent_seq`)
        self.stats: Stats | None = None
        self.io = MappedIo(self)
        self._suspending: list[Callable[[], None]] = []
        self._waiters: dict[int, Callable[[], None]] = {}
        self._waiter_ids = itertools.count()

    def __setattr__(self, name: str, value: object) -> None:
        """Whatever it is, from now on another answer may be right."""
        super().__setattr__(name, value)
        self.mapper.generation = object()

    def count_io(self) -> Stats:
        """The statistics of this device; from now on bios go through them."""
        if self.stats is None:
            from .stats import Stats

            self.stats = Stats(self.mapper.work.now)
        return self.stats

    @property
    def live(self) -> DmTable | None:
        return self.slots[self.cur_active]

    @property
    def inactive(self) -> DmTable | None:
        return self.slots[1 - self.cur_active]

    @inactive.setter
    def inactive(self, table: DmTable | None) -> None:
        slots = self.slots.copy()
        slots[1 - self.cur_active] = table
        self.slots = slots

    @property
    def size(self) -> int:
        return self.live.size if self.live else 0

    def swap(self) -> DmTable | None:
        """The inactive table becomes live; returns the one that was live, for the caller to destroy."""
        old, old_size = self.live, self.size
        self.cur_active = 1 - self.cur_active
        self.inactive = None
        self.io.table_changed()
        if self.live:
            self.read_only = self.live.read_only
            self.limits = self.live.limits()
            self.read_ahead = None  # `disk_update_readahead`
            if old_size != self.live.size:
                self.geometry = (0, 0, 0, 0)
        return old

    def suspend(self, done: Callable[[], None], *, noflush: bool = False) -> Callable[[], bool]:
        """Hold bios and call `done` once none is under way (`dm_suspend`): at once, or later in the commands' thread.

        Returns the function that gives the suspension up; False when it is too late for that.
        """
        self._suspending.append(done)
        if len(self._suspending) == 1:
            self.io.noflush = noflush
            for target in self.live.targets if self.live else ():
                target.presuspend()
            self._drain(noflush)
        return lambda: self._give_up(done)

    def _drain(self, noflush: bool) -> None:
        """Complete the suspension if nothing is under way, else look again once that is so."""
        if not self._suspending or not self.io.block(
            lambda: self.mapper.call_soon(lambda: self._drain(noflush)), noflush=noflush
        ):
            return
        waiting, self._suspending = self._suspending, []
        self.suspended = True
        for target in self.live.targets if self.live else ():
            target.postsuspend()
        for done in waiting:
            done()

    def _give_up(self, done: Callable[[], None]) -> bool:
        if done not in self._suspending:
            return False
        self._suspending.remove(done)
        if not self._suspending:
            for target in self.live.targets if self.live else ():
                target.presuspend_undo()
            self.io.unblock()
        return True

    def resume(self) -> None:
        """Let bios run (`dm_resume`). TargetError when a target refuses; the device then stays suspended."""
        targets = self.live.targets if self.live else []
        for target in targets:
            try:
                target.preresume()
            except TargetError as failure:
                major, minor = self.dev
                self.mapper.events.log(
                    f"device-mapper: table: {major}:{minor}: {target.name}: preresume failed, error = {-failure.errno}"
                )
                raise
        for target in targets:
            target.resume()
        self.suspended = False
        self.io.unblock()

    def event(self) -> None:
        """Something happened: the event number goes up, waiters and pollers wake. Callable from any thread."""
        with self.mapper.event_lock:
            self.event_nr += 1
            waiters, self._waiters = self._waiters, {}
        self.mapper.events.bump()
        for wake in waiters.values():
            wake()

    def uevent(self, action: str, **keys: str) -> None:
        """Send a uevent of the disk, `keys` before those that every disk has."""
        self.mapper.events.send(
            action,
            f"/devices/virtual/block/dm-{self.minor}",
            "block",
            **keys,
            MAJOR=str(self.dev[0]),
            MINOR=str(self.minor),
            DEVNAME=f"dm-{self.minor}",
            DEVTYPE="disk",
            DISKSEQ=str(self.diskseq),
        )

    def on_event(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` at the next event, once; returns the function that cancels it. An event just before may be
        missed: look at `event_nr` afterwards."""
        with self.mapper.event_lock:
            key = next(self._waiter_ids)
            self._waiters[key] = wake

        def cancel() -> None:
            with self.mapper.event_lock:
                self._waiters.pop(key, None)

        return cancel

    @property
    def mapped_io(self) -> MappedIo:
        return self.io

    def submit_bio(self, bio: Bio) -> None:
        self.io.submit(bio)

    def last_close(self) -> None:
        if self.deferred_remove:
            self.mapper.call_soon(self._remove_if_closed)

    def _remove_if_closed(self) -> None:
        if self.deferred_remove and not self.openers and not self.removed:
            self.mapper.remove(self)

    def __repr__(self) -> str:
        return f"<DmDev {self.name!r} {self.dev[0]}:{self.minor}>"
