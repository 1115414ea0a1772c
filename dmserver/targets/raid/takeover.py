"""Which level may take over the devices of another as they are (`rs_check_takeover` of Linux drivers/md/dm-raid.c).

raid4 is level 5 here as in dm-raid's types.
"""

from __future__ import annotations

from .geometry import RAID10_OFFSET
from .personality import Shape

__all__ = ["can_take_over"]

PARITY_N = 5
#: raid5's layouts whose parity turns, and what raid6 calls them with Q on the last device.
TURNING, TURNING_6 = range(4), range(16, 20)


def can_take_over(now: Shape, wanted: Shape) -> bool:
    """From `now`, that of the superblocks, to `wanted`, the table's. To raid0 there is nothing to check: superblocks
    do not concern it."""
    return {0: _raid0, 1: _raid1, 5: _raid5, 6: _raid6, 10: _raid10}[now.level](now, wanted)


def _raid0(now: Shape, wanted: Shape) -> bool:
    if now.devices == 1 and wanted.level in (1, 5):
        return True
    if wanted.level == 10:
        return wanted.devices % now.devices == 0
    return wanted.level in (5, 6) and wanted.layout == PARITY_N and now.devices > 1


def _raid1(now: Shape, wanted: Shape) -> bool:
    return wanted.level == 10 or (wanted.level == 5 and now.devices == 2)


def _raid5(now: Shape, wanted: Shape) -> bool:
    if wanted.level == 6:
        return now.layout == wanted.layout == PARITY_N or wanted.layout in TURNING_6
    # a raid10 is allowed here, and cannot be set up then
    return wanted.level == 1 and now.devices == 2


def _raid6(now: Shape, wanted: Shape) -> bool:
    return wanted.level == 5 and (now.layout == wanted.layout == PARITY_N or wanted.layout in TURNING)


def _raid10(now: Shape, wanted: Shape) -> bool:
    if now.layout & RAID10_OFFSET:
        return False
    if wanted.level == 1:
        return max(now.layout & 255, now.layout >> 8 & 255) == now.devices
    return wanted.level == 5 and now.devices == 2
