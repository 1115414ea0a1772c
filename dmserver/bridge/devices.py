"""The block devices that a client sees: the mapped devices that have a disk, the disks declared by --pdev, loop
devices, and the partitions of these."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from dmproto.wire import Dev
from dmserver.io.blockdev import BlockDevice
from dmserver.io.disk import Disk
from dmserver.io.disks import LOOP_MAJOR
from dmserver.model.mapper import Mapper
from dmserver.targets.registry import TargetRegistry

from . import udev

if TYPE_CHECKING:
    from dmserver.io.partition import Partitions
    from dmserver.model.dm_dev import DmDev

__all__ = ["Devices", "has_partscan", "kernel_name", "sysfs_path"]


class Devices:
    """A view of one mapper and its target types.

    `udev_flags`: by minor, what the last resume or rename told udev (`udev`). `refresh` notices what was closed.
    """

    def __init__(self, mapper: Mapper, registry: TargetRegistry, refresh: Callable[[], None]) -> None:
        self.mapper = mapper
        self.refresh = refresh
        self.registry = registry
        self.udev_flags: dict[int, int] = {}
        self._scanned: set[Disk] = set()

    @cached_property
    def partitions(self) -> Partitions:
        """Those of all disks."""
        from dmserver.io.partition import Partitions

        return Partitions(self.mapper.disks)

    @property
    def major(self) -> int:
        return self.mapper.major

    def __iter__(self) -> Iterator[BlockDevice]:
        for disk in self.disks():
            yield disk
            yield from self.partitions.of(disk)
        yield from self.mapped()

    def wholes(self) -> Iterator[BlockDevice]:
        """All but partitions: what has a directory of its own in sysfs."""
        yield from self.disks()
        yield from self.mapped()

    def mapped(self) -> Iterator[DmDev]:
        """Mapped devices have a disk from their first table on."""
        return (device for device in self.mapper.devices.values() if device.has_disk)

    def disks(self) -> Iterator[Disk]:
        """Those with a node of their own; a file that a table names is a file."""
        self.refresh()
        for disk in tuple(self.mapper.disks):
            if isinstance(disk, Disk) and disk.backing != disk.path:
                if disk not in self._scanned:
                    self._scanned.add(disk)
                    self._scan(disk)
                yield disk

    def _scan(self, disk: Disk) -> None:
        """A disk that appears may have partitions."""
        if has_partscan(disk):
            try:
                self.partitions.scan(disk)
            except OSError:
                pass  # what cannot be read shows none

    def by_dev(self, dev: Dev) -> BlockDevice | None:
        found = self.mapper.by_dev(dev)
        return found if found is not None and found.has_disk else None

    def holders_of(self, device: BlockDevice) -> Iterator[BlockDevice]:
        """The mapped devices whose tables hold `device`."""
        for mapped in self.mapped():
            if device in [pdev.bdev for table in mapped.slots if table for pdev in table.pdevs]:
                yield mapped

    def slaves_of(self, device: BlockDevice) -> Iterator[BlockDevice]:
        """The devices with a node that the tables of a mapped device hold, each once."""
        mapped = self.mapper.devices.get(device.dev[1])
        if mapped is device:
            held = {pdev.bdev.dev: pdev.bdev for table in mapped.slots if table for pdev in table.pdevs}
            yield from (bdev for bdev in held.values() if not (isinstance(bdev, Disk) and _is_file(bdev)))

    def links(self, directory: bytes = b"") -> Iterator[tuple[bytes, DmDev]]:
        """The paths below /dev, of a directory and a name, that udev would make for mapped devices: all, or those of
        one directory."""
        within = directory and directory + b"/"
        named = b"" if directory in (b"", b"mapper") else udev.device_name(directory, b"")
        for device in self.mapped():
            if device.name_bytes.startswith(named) and device.name and device.live:
                for path in self.links_of(device):
                    if path.startswith(within):
                        yield path, device

    def linked(self, directory: bytes, name: bytes) -> DmDev | None:
        """The device that such a path leads to."""
        device = self.mapper.names.get(name if directory == b"mapper" else udev.device_name(directory, name))
        if device and device.has_disk and device.live and directory + b"/" + name in self.links_of(device):
            return device
        return None

    def links_of(self, device: DmDev) -> Iterator[bytes]:
        flags = self.udev_flags.get(device.minor, 0)
        if udev.makes_node(flags):
            yield b"mapper/" + device.name_bytes
            if volume := udev.logical_volume(device.name, device.uuid, flags):
                yield os.fsencode("/".join(volume))


def has_partscan(disk: Disk) -> bool:
    """Its partition table is read; that of a loop device only when somebody asked for it (`disk_has_partscan`)."""
    return disk.partscan or disk.dev[0] != LOOP_MAJOR


def kernel_name(device: BlockDevice) -> str:
    """The name under /sys/block."""
    return device.path.removeprefix("/dev/").replace("/", "!").lstrip("!")


def sysfs_path(device: BlockDevice) -> str:
    """The path below /sys/devices/virtual/block: a partition is in the directory of its disk."""
    name, whole = kernel_name(device), device.whole
    return name if whole is device else f"{kernel_name(whole)}/{name}"


def _is_file(disk: Disk) -> bool:
    """It stands in tables under the path of its backing, which is no node."""
    return disk.backing == disk.path and not disk.is_device
