"""The uevents of Linux's device-mapper, with the kernel's keys in the kernel's order (drivers/md/dm.c:
dm_kobject_uevent(), block/genhd.c, drivers/base/core.c).

A device has none before its disk exists, which is from its first table on.
"""

from __future__ import annotations

from ..model.dm_dev import DmDev

__all__ = ["added", "changed", "disk_ro_changed", "removed", "removing"]


def _bdi(device: DmDev, action: str) -> None:
    device.mapper.events.send(action, f"/devices/virtual/bdi/{device.dev[0]}:{device.minor}", "bdi")


def _cookie(cookie: int) -> dict[str, str]:
    return {"DM_COOKIE": str(cookie)} if cookie else {}


def added(device: DmDev) -> None:
    """The disk appears."""
    _bdi(device, "add")
    device.uevent("add")


def changed(device: DmDev, cookie: int, *, resized: bool = False) -> None:
    """Resumed or renamed; `cookie` is the request's event_nr, by which udev tells the client that it is done."""
    device.uevent("change", **_cookie(cookie), **({"RESIZE": "1"} if resized else {}))


def disk_ro_changed(device: DmDev) -> None:
    """The disk became read-only, or writeable."""
    device.uevent("change", DISK_RO=str(int(device.read_only)))


def removing(device: DmDev, cookie: int) -> None:
    """DEV_REMOVE announces the removal with the client's cookie; `removed` follows."""
    device.uevent("remove", **_cookie(cookie))


def removed(device: DmDev) -> None:
    """The disk goes."""
    _bdi(device, "remove")
    device.uevent("remove")
