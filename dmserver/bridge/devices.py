"""The block devices that a client sees: the mapped devices that have a disk, and the disks declared by --pdev."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dmproto.wire import Dev
from dmserver.io.blockdev import BlockDevice
from dmserver.io.disk import Disk
from dmserver.model.mapper import Mapper
from dmserver.targets.registry import TargetRegistry

from . import udev

if TYPE_CHECKING:
    from dmserver.model.dm_dev import DmDev

__all__ = ["Devices", "kernel_name"]


class Devices:
    """A view of one mapper and its target types.

    `udev_flags`: by minor, what the last resume or rename told udev (`udev`). `refresh` notices what was closed.
    """

    def __init__(self, mapper: Mapper, registry: TargetRegistry, refresh: Callable[[], None]) -> None:
        self.mapper = mapper
        self.refresh = refresh
        self.registry = registry
        self.udev_flags: dict[int, int] = {}

    @property
    def major(self) -> int:
        return self.mapper.major

    def __iter__(self) -> Iterator[BlockDevice]:
        yield from self.mapped()
        yield from self.disks()

    def mapped(self) -> Iterator[DmDev]:
        """Mapped devices have a disk from their first table on."""
        return (device for device in self.mapper.devices.values() if device.has_disk)

    def disks(self) -> Iterator[Disk]:
        """Those with a node of their own; a file that a table names is a file."""
        self.refresh()
        for disk in tuple(self.mapper.disks):
            if isinstance(disk, Disk) and disk.backing != disk.path:
                yield disk

    def by_dev(self, dev: Dev) -> BlockDevice | None:
        found = self.mapper.by_dev(dev)
        return found if found is not None and found.has_disk else None

    def holders_of(self, device: BlockDevice) -> Iterator[BlockDevice]:
        """The mapped devices whose tables hold `device`."""
        for mapped in self.mapped():
            if any(slave is device for slave in self.slaves_of(mapped)):
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


def kernel_name(device: BlockDevice) -> str:
    """The name under /sys/block."""
    return device.path.removeprefix("/dev/").replace("/", "!").lstrip("!")


def _is_file(disk: Disk) -> bool:
    """It stands in tables under the path of its backing, which is no node."""
    return disk.backing == disk.path and not disk.is_device
