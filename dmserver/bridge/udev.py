"""udev's part, which the bridge plays: the links that its rules make for mapped devices (10-dm.rules of dmsetup and
56-lvm.rules of lvm2).

Flags are libdevmapper's (libdevmapper.h), the upper half of the event number of a resume or rename.
"""

from __future__ import annotations

import re

__all__ = ["device_name", "logical_volume", "makes_node"]

DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG, DM_UDEV_DISABLE_LIBRARY_FALLBACK, DM_UDEV_PRIMARY_SOURCE_FLAG = 0x02, 0x20, 0x40

#: VG-LV or VG-LV-LAYER; a hyphen within one of them is doubled (dm_split_lvm_name()).
_split = re.compile(r"((?:--|[^-])+)-((?:--|[^-])+)(-.*)?", re.DOTALL).fullmatch


def makes_node(flags: int) -> bool:
    """/dev/mapper/NAME is udev's to make, not the library's."""
    return bool(flags & DM_UDEV_DISABLE_LIBRARY_FALLBACK) or not flags & DM_UDEV_PRIMARY_SOURCE_FLAG


def device_name(group: bytes, volume: bytes) -> bytes:
    """The name of a logical volume's device (dm_build_dm_name()); of no volume, how those of a group begin."""
    return group.replace(b"-", b"--") + b"-" + volume.replace(b"-", b"--")


def logical_volume(name: str, uuid: str, flags: int) -> tuple[str, str] | None:
    """Volume group and logical volume of a device that gets a link /dev/VG/LV."""
    found = _split(name)
    if found is None or not uuid.startswith("LVM-") or flags & DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG:
        return None
    group, volume = (part.replace("--", "-") for part in found.groups()[:2])
    if found[3] or re.fullmatch(r"pvmove.+|.+_vorigin", volume):
        return None
    return group, volume
