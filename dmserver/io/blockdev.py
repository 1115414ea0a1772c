"""Block devices: what a table can name and a bio can go to (Linux `struct block_device`)."""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dmproto.wire import SECTOR_SIZE, Dev

from .bio import Bio
from .limits import QueueLimits

if TYPE_CHECKING:
    from .mapped import MappedIo

__all__ = ["BlockDevice", "BlockDevices"]


class BlockDevice(ABC):
    """One block device. `size` in sectors, `dev` is (major, minor), `path` the name that clients use.

    `open`/`close` count openers; `claim` is an exclusive open: one holder at a time, who may claim repeatedly
    (`bd_prepare_to_claim`). Device-mapper itself is one holder for all its tables.
    """

    dev: Dev
    path: str
    read_only: bool = False
    #: It can be opened and stand in tables; a mapped device can from its first table on.
    has_disk: bool = True
    #: Takes requests, not only bios (`queue_is_mq`): what request-based targets ask of the devices under them.
    request_based: bool = False
    #: What the device can do and prefers; targets stack theirs on top.
    limits: QueueLimits
    #: Sectors, once a client set them.
    read_ahead: int | None = None

    def __init__(self, path: str, dev: Dev) -> None:
        self.path = path
        self.dev = dev
        self.limits = QueueLimits()
        self._openers = 0
        #: Called before openers or the holder are looked at, by who notices a close only when asked.
        self.catch_up: Callable[[], None] | None = None
        self.holder: object | None = None
        self.claims = 0
        self._opening = threading.Lock()
        #: Held by those who read a sector, change part of it, and write it.
        self.read_modify_write = threading.Lock()

    @property
    def mapped_io(self) -> MappedIo | None:
        """How bios travel through it, if this is a mapped device."""
        return None

    @property
    def whole(self) -> BlockDevice:
        """The disk whose partition this is, else itself (`bdev_whole`)."""
        return self

    @property
    @abstractmethod
    def size(self) -> int:
        """Sectors."""

    @abstractmethod
    def submit_bio(self, bio: Bio) -> None:
        """Take the bio; it ends with `bio.endio` now or later, never with an exception."""

    def open(self, *, holder: object | None = None) -> None:
        """Count an opener. With `holder`, exclusively: OSError(EBUSY) when another holder has the device. Callable
        from any thread, as is `close`."""
        if holder is not None and self.catch_up is not None:
            self.catch_up()
        with self._opening:
            if holder is not None and self.holder not in (None, holder):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), self.path)
            if self._openers == 0:
                self.first_open()
            self._openers += 1
            if holder is not None:
                self.holder = holder
                self.claims += 1

    def close(self, *, holder: object | None = None) -> None:
        """Undo one `open`."""
        with self._opening:
            if holder is not None:
                self.claims -= 1
                if not self.claims:
                    self.holder = None
            self._openers -= 1
            if self._openers == 0:
                self.last_close()

    def first_open(self) -> None:  # noqa: B027  # a hook
        """The first opener came. May raise OSError."""

    def last_close(self) -> None:  # noqa: B027  # a hook
        """The last opener went."""

    @property
    def openers(self) -> int:
        """The open count."""
        if self.catch_up is not None:
            self.catch_up()
        return self._openers

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.size * SECTOR_SIZE


class BlockDevices:
    """The block devices of this machine: found by path or by number."""

    def __init__(self) -> None:
        self._by_path: dict[str, BlockDevice] = {}
        self._by_dev: dict[Dev, BlockDevice] = {}

    def add(self, device: BlockDevice) -> None:
        """Make a device nameable. ValueError when its number or path is taken."""
        if device.path in self._by_path:
            raise ValueError(f"block device {device.path} exists already")
        if device.dev in self._by_dev:
            major, minor = device.dev
            raise ValueError(f"block device {major}:{minor} exists already: {self._by_dev[device.dev].path}")
        self._by_path[device.path] = device
        self._by_dev[device.dev] = device

    def remove(self, device: BlockDevice) -> None:
        """Forget a device."""
        del self._by_path[device.path]
        del self._by_dev[device.dev]

    def by_path(self, path: str) -> BlockDevice | None:
        return self._by_path.get(path)

    def by_dev(self, dev: Dev) -> BlockDevice | None:
        return self._by_dev.get(dev)

    def free_minor(self, major: int) -> int:
        """The lowest minor of `major` that no device has."""
        minor = 0
        while (major, minor) in self._by_dev:
            minor += 1
        return minor

    def __iter__(self) -> Iterator[BlockDevice]:
        return iter(self._by_dev.values())
