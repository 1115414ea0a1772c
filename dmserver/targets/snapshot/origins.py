"""What snapshots and origins of one device-mapper know of each other (the globals of Linux `drivers/md/dm-snap.c`).

One lock guards all of it, and the exceptions of all snapshots; it is held for bookkeeping only, never for I/O. What
has to be done after is collected in a list of actions, which `run` performs once the lock is free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...model.dm_target import Bio, BlockDevice
from ..actions import Actions, run

if TYPE_CHECKING:
    from .snapshot import Snapshot

__all__ = ["Origins"]

#: `rounddown_pow_of_two(UINT_MAX)`: the chunk size of an origin without snapshots, in sectors.
NO_CHUNKS = 1 << 31


class Origins:
    """`snapshots` of each origin device, largest chunks first. `waiting`: called once, when an exception is made."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.snapshots: dict[BlockDevice, list[Snapshot]] = {}
        self.waiting: list[Callable[[], None]] = []

    def register(self, snapshot: Snapshot) -> None:
        """Add it before the first one with smaller chunks."""
        siblings = self.snapshots.setdefault(snapshot.origin.bdev, [])
        size = snapshot.store.chunk_size
        index = next((at for at, each in enumerate(siblings) if each.store.chunk_size < size), len(siblings))
        siblings.insert(index, snapshot)

    def unregister(self, snapshot: Snapshot) -> None:
        """Forget it, if it is known."""
        siblings = self.snapshots.get(snapshot.origin.bdev, [])
        if snapshot in siblings:
            siblings.remove(snapshot)
        if not siblings:
            self.snapshots.pop(snapshot.origin.bdev, None)

    def of(self, origin: BlockDevice) -> list[Snapshot]:
        return self.snapshots.get(origin, [])

    def minimum_chunk_size(self, origin: BlockDevice) -> int:
        """The smallest chunk size, in sectors, among an origin's snapshots."""
        sizes = [each.store.chunk_size for each in self.of(origin)]
        return min((size for size in sizes if size), default=NO_CHUNKS)

    def sharing_cow(self, snapshot: Snapshot) -> tuple[int, Snapshot | None, Snapshot | None, Snapshot | None]:
        """(how many snapshots have the same COW device, the active one of them, the one to which it is to be handed
        over, a merging snapshot of the origin)."""
        count = 0
        source = destination = merging = None
        for each in self.of(snapshot.origin.bdev):
            if each.is_merge:
                merging = each
            if each.cow.bdev is snapshot.cow.bdev:
                count += 1
                if each.active:
                    source = each
                else:
                    destination = each
        return count, source, destination, merging

    def write(self, origin: BlockDevice, sector: int, bio: Bio | None, actions: Actions) -> bool:
        """A write to `sector` of an origin, or a merge: start the exceptions that it needs. True when it has to wait
        for them; a `bio` is then queued, and sent on later (`__origin_write`)."""
        must_wait = False
        start_last: Actions = []
        for snapshot in self.of(origin):
            pending = snapshot.exception_for_origin(sector, actions)
            if pending is None:
                continue
            must_wait = True
            start = actions
            if bio is not None:
                pending.origin_bios.append(bio)
                bio, start = None, start_last
            if not pending.started:
                pending.started = True
                start.append(snapshot.copy_action(pending))
        actions += start_last
        return must_wait

    def send(self, origin: BlockDevice, bio: Bio) -> None:
        """Send a write to its origin as soon as the snapshots allow (`do_origin`)."""
        actions: Actions = []
        with self.lock:
            wait = self.write(origin, bio.sector, bio, actions)
        if not wait:
            origin.submit_bio(bio)
        run(actions)
