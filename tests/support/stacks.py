"""Mapped devices made straight through the model, without any control protocol."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Hashable, Iterable
from functools import lru_cache
from struct import Struct

from dmserver.io.blockdev import BlockDevice
from dmserver.io.disk import Disk
from dmserver.model.args import split_args
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_table import DmTable
from dmserver.model.dm_target import Target
from dmserver.model.mapper import Mapper
from dmserver.targets.registry import TargetRegistry

__all__ = ["Stack", "pattern"]

_SECTOR = Struct("<64Q")

Line = tuple[int, int, str, str]


class Stack:
    """A mapper with ram disks; `registry` knows the installed targets and `kinds`."""

    def __init__(self, *kinds: type[Target]) -> None:
        self.mapper = Mapper()
        self.registry = TargetRegistry.installed()
        for kind in kinds:
            self.registry.register(kind)

    def ram(self, sectors: int = 16384) -> Disk:
        """A new ram disk with `pattern(minor + 1)` on it, kept open."""
        minor = self.mapper.disks.free_minor(1)
        disk = Disk(f"/dev/ram{minor}", (1, minor), f"ram:{sectors}s")
        self.mapper.disks.add(disk)
        disk.open()
        os.pwrite(disk.fd, pattern(minor + 1, 0, sectors), 0)
        return disk

    def file(self, path: str) -> Disk:
        """The disk on an existing file."""
        disk = Disk(path, (7, self.mapper.disks.free_minor(7)), path)
        self.mapper.disks.add(disk)
        return disk

    def resolve(self, name: str) -> tuple[Hashable, str, BlockDevice]:
        major, _, minor = name.partition(":")
        bdev = self.mapper.by_dev((int(major), int(minor)))
        if bdev is None:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), name)
        return bdev.dev, bdev.path, bdev

    def load(self, dev: DmDev, lines: Iterable[Line], *, read_only: bool = False) -> None:
        """Fill the inactive slot."""
        table = DmTable(dev, self.resolve, read_only=read_only)
        for start, length, kind, params in lines:
            found = self.registry.get(kind)
            assert found is not None, kind
            table.add_target(found, start, length, split_args(params))
        dev.inactive = table

    def activate(self, dev: DmDev) -> None:
        """Suspend, swap the inactive table in if there is one, resume; waits for what is under way."""
        drained = threading.Event()
        dev.suspend(drained.set)
        assert drained.wait(10)
        if dev.inactive:
            old = dev.swap()
            if old:
                old.destroy()
        dev.resume()

    def device(self, name: str, *lines: Line, read_only: bool = False) -> DmDev:
        """A new device with a live table."""
        dev = self.mapper.create(name)
        self.load(dev, lines, read_only=read_only)
        self.activate(dev)
        return dev

    def suspend(self, dev: DmDev, *, noflush: bool = False) -> threading.Event:
        """Begin a suspension; the event is set once it is complete."""
        drained = threading.Event()
        dev.suspend(drained.set, noflush=noflush)
        return drained

    def close(self) -> None:
        self.mapper.work.close()


@lru_cache(64)
def pattern(seed: int, sector: int, sectors: int) -> bytes:
    """`sectors` sectors of the recorded vectors' `pattern(seed)`, from `sector` on."""
    firsts = (seed << 56 | at << 16 for at in range(sector, sector + sectors))
    return b"".join(_SECTOR.pack(*range(first, first + 64)) for first in firsts)
