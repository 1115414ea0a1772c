"""The registry: all mapped devices, by name, uuid and minor, and what they share."""

from __future__ import annotations

import itertools
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING

from dmproto.wire import Dev, to_bytes

from ..io.blockdev import BlockDevice
from ..io.disks import Disks
from ..io.work import ThreadWork, Work
from .dm_pdev import PdevList
from .events import Events
from .minors import LowestFree, Minors

if TYPE_CHECKING:
    from .dm_dev import DmDev

__all__ = ["Mapper"]


class Mapper:
    """One device-mapper. `devices` is keyed by minor, oldest first. Names and uuids are unique unless empty.

    Commands run in one thread; only bios, `DmDev.event` and the events they cause may come from others. What they
    finish later goes back to that thread through `call_soon`; whoever runs the commands sets it.
    """

    def __init__(
        self,
        *,
        major: int = 253,
        minors: Minors | None = None,
        work: Work | None = None,
        disks: Disks | None = None,
    ) -> None:
        self.major = major
        self.minors: Minors = minors or LowestFree()
        self.work: Work = work or ThreadWork()
        self.call_soon: Callable[[Callable[[], None]], None] = self.work.queue
        self.on_remove: list[Callable[[DmDev], None]] = []
        self.disks = disks or Disks()
        self.pdevs = PdevList()
        self.events = Events()
        #: Guards the event numbers and waiters of all devices.
        self.event_lock = threading.Lock()
        #: Another object whenever anything about a device has changed: its state, its tables, its names.
        self.generation = object()
        self.devices: dict[int, DmDev] = {}
        #: What the targets of a type share (a kernel module's globals), by the class that holds it.
        self.shared: dict[type, object] = {}
        #: By the bytes of name and uuid.
        self.names: dict[bytes, DmDev] = {}
        self.uuids: dict[bytes, DmDev] = {}
        self._sorted: list[DmDev] | None = []
        self._diskseq = itertools.count(1)

    def by_name(self, name: str) -> DmDev | None:
        return self.names.get(to_bytes(name))

    def by_uuid(self, uuid: str) -> DmDev | None:
        return self.uuids.get(to_bytes(uuid))

    def by_dev(self, dev: Dev) -> BlockDevice | None:
        """The mapped device or disk of this number."""
        return self.devices.get(dev[1]) if dev[0] == self.major else self.disks.by_dev(dev)

    def lookup_bdev(self, path: str) -> BlockDevice:
        """The mapped device (`/dev/mapper/NAME`, `/dev/dm-N`) or disk at `path`. OSError when there is none."""
        node = os.path.normpath(path)
        found: BlockDevice | None = None
        if node.startswith("/dev/mapper/"):
            found = self.by_name(node[len("/dev/mapper/") :])
        elif node.startswith("/dev/dm-") and node[8:].isdecimal() and len(node) < 20:
            found = self.devices.get(int(node[8:]))
        return found or self.disks.lookup(path)

    def sorted_by_name(self, prefix: bytes = b"") -> list[DmDev]:
        """All named devices, or those whose names begin with `prefix`, in the order of their names' bytes (Linux's
        `dm_list_devices` order). The first call after a change sorts, O(n log n) at worst."""
        devices = self._sorted
        if devices is None:
            devices = self._sorted = sorted(self.names.values(), key=attrgetter("name_bytes"))
        if not prefix:
            return devices.copy()
        start = bisect_left(devices, prefix, key=lambda device: device.name_bytes)
        end = bisect_right(devices, prefix, lo=start, key=lambda device: device.name_bytes[: len(prefix)])
        return devices[start:end]

    def next_diskseq(self) -> int:
        return next(self._diskseq)

    def create(self, name: str, uuid: str = "", minor: int | None = None) -> DmDev:
        """A new device without tables. `minor` is one that the caller has reserved."""
        from .dm_dev import DmDev  # and what moves its bios: not before there is a device

        dev = DmDev(self, self.minors.take() if minor is None else minor, name, uuid)
        self.devices[dev.minor] = dev
        self._link(dev)
        return dev

    def rename(self, dev: DmDev, name: str) -> None:
        """Another name; it must be free."""
        self._unlink(dev)
        dev.name = name
        self._link(dev)

    def set_uuid(self, dev: DmDev, uuid: str) -> None:
        """Another uuid; it must be free."""
        self._unlink(dev)
        dev.uuid = uuid
        self._link(dev)

    def remove(self, dev: DmDev) -> None:
        """Take a device out and destroy its tables (`__hash_remove`, `__dm_destroy`). Its minor is free again; those of
        `on_remove` are told before."""
        for told in tuple(self.on_remove):
            told(dev)
        self._unlink(dev)
        del self.devices[dev.minor]
        self.minors.free(dev.minor)
        dev.removed = True
        if dev.live and not dev.suspended:
            for target in dev.live.targets:
                target.presuspend()
            for target in dev.live.targets:
                target.postsuspend()
        for slot, table in enumerate(dev.slots):
            if table:
                dev.slots[slot] = None
                dev.io.table_changed()
                table.destroy()

    def _link(self, dev: DmDev) -> None:
        dev.name_bytes, dev.uuid_bytes = to_bytes(dev.name), to_bytes(dev.uuid)
        if dev.name:
            self.names[dev.name_bytes] = dev
            self._sorted = None
        if dev.uuid:
            self.uuids[dev.uuid_bytes] = dev

    def _unlink(self, dev: DmDev) -> None:
        if dev.name:
            del self.names[dev.name_bytes]
            self._sorted = None
        if dev.uuid:
            del self.uuids[dev.uuid_bytes]
