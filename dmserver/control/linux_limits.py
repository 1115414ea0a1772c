"""Whether a table fits the devices under it (drivers/md/dm-table.c: dm_calculate_queue_limits()).

Linux asks when a device gets its first table, and when a table goes live.
"""

from __future__ import annotations

from dmproto.wire import SECTOR_SIZE

from ..io.blockdev import BlockDevice
from ..io.limits import QueueLimits
from ..model.dm_table import DmTable
from ..model.dm_target import Target

__all__ = ["fits"]


def fits(table: DmTable) -> bool:
    """False when a target reaches beyond its device, or does not respect blocks. Misaligned areas are only logged."""
    limits = QueueLimits()
    for target in table.targets:
        own = _device_limits(target)
        target.io_hints(own)
        if not all(
            _area_fits(target, pdev.bdev, start, length, own) for pdev, start, length in target.iterate_devices()
        ):
            return False
        if not limits.stack(own):
            _log(
                target,
                f"adding target device (start sect {target.begin} len {target.len}) caused an alignment inconsistency",
            )
    return _lines_up(table, limits.logical_block_size // SECTOR_SIZE)


def _log(target: Target, text: str) -> None:
    major, minor = target.table.device.dev
    target.printk(f"device-mapper: table: {major}:{minor}: {text}")


def _name(bdev: BlockDevice) -> str:
    return bdev.path.rpartition("/")[2]


def _device_limits(target: Target) -> QueueLimits:
    """dm_set_device_limits() for each device."""
    limits = QueueLimits()
    for pdev, start, _ in target.iterate_devices():
        below = pdev.bdev.limits
        if not limits.stack(below, start):
            _log(
                target,
                f"adding target device {_name(pdev.bdev)} caused an alignment inconsistency: "
                f"physical_block_size={below.physical_block_size}, logical_block_size={below.logical_block_size}, "
                f"alignment_offset={below.alignment_offset}, start={start * SECTOR_SIZE}",
            )
    return limits


def _area_fits(target: Target, bdev: BlockDevice, start: int, length: int, limits: QueueLimits) -> bool:
    """device_area_is_invalid(), the other way round. A device without a size takes anything."""
    if not bdev.size:
        return True
    if start + length > bdev.size or start >= bdev.size:
        _log(target, f"{_name(bdev)} too small for target: start={start}, len={length}, dev_size={bdev.size}")
        return False
    for what, sectors in (("start", start), ("len", length)):
        if sectors * SECTOR_SIZE % limits.logical_block_size:
            _log(
                target,
                f"{what}={sectors} not aligned to h/w logical block size {limits.logical_block_size} of {_name(bdev)}",
            )
            return False
    return True


def _lines_up(table: DmTable, block: int) -> bool:
    """validate_hardware_logical_block_alignment(): a block of `block` sectors that spans targets must suit them all.
    It looks at the devices' limits once more, and what they log is logged once more."""
    start = remaining = 0
    for line, target in enumerate(table.targets):
        own = _device_limits(target).logical_block_size // SECTOR_SIZE
        if remaining < target.len and remaining % own:
            return _misfit(target, line, block)
        start = (start + target.len) % block
        remaining = block - start if start else 0
    return not remaining or _misfit(table.targets[-1], len(table.targets), block)


def _misfit(target: Target, line: int, block: int) -> bool:
    """Tell of a target that does not line up; False."""
    _log(
        target,
        f"table line {line} (start sect {target.begin} len {target.len}) "
        f"not aligned to h/w logical block size {block * SECTOR_SIZE}",
    )
    return False
