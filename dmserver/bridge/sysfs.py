"""sysfs of a block device as clients read it (Linux block/genhd.c, blk-sysfs.c, drivers/md/dm-sysfs.c).

| what reads it                     | attributes                                                            |
|-----------------------------------|-----------------------------------------------------------------------|
| libdevmapper                      | bdi/read_ahead_kb, dm/name                                            |
| cryptsetup                        | dm/uuid, holders, loop/backing_file                                   |
| lvm                               | holders, loop/partscan, queue/{minimum,optimal}_io_size, alignment_offset |
| parted                            | ext_range                                                             |
| lsblk, blkid, mkfs                | size, dev, ro, removable, hidden, slaves, queue/*, uevent             |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from dmserver.io.blockdev import BlockDevice
from dmserver.io.disk import Disk
from dmserver.io.disks import LOOP_MAJOR

from .devices import Devices, kernel_name, sysfs_path
from .nodes import Dir, File, Link, Node

if TYPE_CHECKING:
    from dmserver.io.partition import Partition
    from dmserver.model.dm_dev import DmDev

__all__ = ["bdi_directory", "block_directory", "read_ahead_sectors"]

READ_AHEAD_SECTORS = 256
UNLIMITED = 4294966784  # the largest multiple of 512 in 32 bits


def read_ahead_sectors(device: BlockDevice) -> int:
    """What a client set, else at least twice the optimal I/O size (`disk_update_readahead`)."""
    if device.read_ahead is not None:
        return device.read_ahead
    return max(READ_AHEAD_SECTORS, device.limits.io_opt * 2 // 512)


def block_directory(device: BlockDevice, devices: Devices) -> Dir:
    """/sys/devices/virtual/block/NAME."""

    def entries() -> Mapping[bytes, Node]:
        major, minor = device.dev
        return {
            **_files(_attributes(device)),
            b"bdi": Link(f"../../bdi/{major}:{minor}".encode()),
            b"subsystem": Link(b"../../../../class/block"),
            b"queue": Dir(lambda: _files(_queue(device))),
            b"slaves": Dir(lambda: _links("../../", devices.slaves_of(device))),
            b"holders": Dir(lambda: _links("../../", devices.holders_of(device))),
            **_own(device),
            **_partitions(device, devices),
        }

    return Dir(entries)


def _partitions(disk: BlockDevice, devices: Devices) -> dict[bytes, Node]:
    if not isinstance(disk, Disk):
        return {}
    return {kernel_name(part).encode(): _partition_directory(part, devices) for part in devices.partitions.of(disk)}


def _partition_directory(partition: Partition, devices: Devices) -> Dir:
    """/sys/devices/virtual/block/DISK/NAME (block/partitions/core.c)."""

    def entries() -> Mapping[bytes, Node]:
        attributes = _attributes(partition)
        uevent = f"{attributes['uevent']}\nPARTN={partition.number}"
        own = {
            "partition": partition.number,
            "start": partition.start,
            "uevent": f"{uevent}\nPARTNAME={partition.name}" if partition.name else uevent,
        }
        shown = ("dev", "size", "ro", "alignment_offset", "discard_alignment")
        return {
            **_files({**{name: attributes[name] for name in shown}, **own}),
            b"subsystem": Link(b"../../../../../class/block"),
            b"holders": Dir(lambda: _links("../../../", devices.holders_of(partition))),
        }

    return Dir(entries)


def bdi_directory(device: BlockDevice) -> Dir:
    """/sys/devices/virtual/bdi/MAJ:MIN."""
    return Dir(
        lambda: _files(
            {
                "read_ahead_kb": read_ahead_sectors(device) // 2,
                "min_ratio": 0,
                "max_ratio": 100,
                "stable_pages_required": 0,
            }
        )
    )


def _files(values: Mapping[str, object]) -> dict[bytes, Node]:
    return {name.encode(): _file(value) for name, value in values.items()}


def _file(value: object) -> File:
    return File(lambda: f"{value}\n".encode())


def _links(up: str, devices: Iterator[BlockDevice]) -> dict[bytes, Node]:
    return {kernel_name(device).encode(): Link(f"{up}{sysfs_path(device)}".encode()) for device in devices}


def _attributes(device: BlockDevice) -> dict[str, object]:
    major, minor = device.dev
    kind = "disk" if device.whole is device else "partition"
    return {
        "dev": f"{major}:{minor}",
        "size": device.size,
        "ro": int(device.read_only),
        "range": 1,
        "ext_range": 1 if device.mapped_io else 256,  # how many partitions there can be
        "removable": 0,
        "hidden": 0,
        "capability": 4 if device.mapped_io else 0,
        "alignment_offset": 0,
        "discard_alignment": 0,
        "uevent": f"MAJOR={major}\nMINOR={minor}\nDEVNAME={kernel_name(device)}\nDEVTYPE={kind}",
    }


def _own(device: BlockDevice) -> dict[bytes, Node]:
    if io := device.mapped_io:
        return {b"dm": Dir(lambda: _files(_dm(io.device)))}
    if isinstance(device, Disk) and device.dev[0] == LOOP_MAJOR and device.bound:
        return {b"loop": Dir(lambda: _files(_loop(device)))}
    return {}


def _loop(disk: Disk) -> dict[str, object]:
    return {
        "backing_file": disk.backing,
        "offset": disk.offset,
        "sizelimit": disk.limit,
        "autoclear": int(disk.autoclear),
        "partscan": int(disk.partscan),
        "dio": 0,
    }


def _dm(device: DmDev) -> dict[str, object]:
    return {
        "name": device.name,
        "uuid": device.uuid,
        "suspended": int(device.suspended),
        "use_blk_mq": 1,
        "rq_based_seq_io_merge_deadline": 0,
    }


def _queue(device: BlockDevice) -> dict[str, object]:
    limits = device.limits
    discard = UNLIMITED if limits.discard else 0
    return {
        "logical_block_size": limits.logical_block_size,
        "hw_sector_size": limits.logical_block_size,
        "physical_block_size": limits.physical_block_size,
        "minimum_io_size": limits.io_min,
        "optimal_io_size": limits.io_opt,
        "discard_granularity": limits.discard_granularity,
        "discard_max_bytes": discard,
        "discard_max_hw_bytes": discard,
        "discard_zeroes_data": 0,
        "write_zeroes_max_bytes": UNLIMITED if limits.write_zeroes else 0,
        "write_same_max_bytes": 0,
        "rotational": int(limits.rotational),
        "read_ahead_kb": read_ahead_sectors(device) // 2,
        "write_cache": "write back" if limits.discard else "write through",
        "scheduler": "none",
        "nr_requests": 128,
        "add_random": 0,
        "dax": 0,
        "dma_alignment": 511,
        "zoned": "none",
        "nr_zones": 0,
        "chunk_sectors": 0,
    }
