"""The uevents of Linux's device-mapper, with the kernel's keys in the kernel's order (drivers/md/dm.c:
dm_kobject_uevent(), block/genhd.c, drivers/base/core.c).

A device has none before its disk exists, which is from its first table on.
"""

from __future__ import annotations

from ..model.dm_dev import DmDev
from ..model.events import Uevent

__all__ = ["added", "changed", "disk_ro_changed", "removed", "removing"]


def _block(device: DmDev, action: str, **keys: str) -> None:
    node = f"dm-{device.minor}"
    _send(
        device,
        action,
        f"/devices/virtual/block/{node}",
        "block",
        **keys,
        MAJOR=str(device.dev[0]),
        MINOR=str(device.minor),
        DEVNAME=node,
        DEVTYPE="disk",
        DISKSEQ=str(device.diskseq),
    )


def _bdi(device: DmDev, action: str) -> None:
    _send(device, action, f"/devices/virtual/bdi/{device.dev[0]}:{device.minor}", "bdi")


def _send(device: DmDev, action: str, path: str, subsystem: str, **keys: str) -> None:
    events = device.mapper.events
    events.seqnum += 1
    env = {"ACTION": action, "DEVPATH": path, "SUBSYSTEM": subsystem, **keys, "SEQNUM": str(events.seqnum)}
    events.uevent(Uevent(action, path, env))


def _cookie(cookie: int) -> dict[str, str]:
    return {"DM_COOKIE": str(cookie)} if cookie else {}


def added(device: DmDev) -> None:
    """The disk appears."""
    _bdi(device, "add")
    _block(device, "add")


def changed(device: DmDev, cookie: int, *, resized: bool = False) -> None:
    """Resumed or renamed; `cookie` is the request's event_nr, by which udev tells the client that it is done."""
    _block(device, "change", **_cookie(cookie), **({"RESIZE": "1"} if resized else {}))


def disk_ro_changed(device: DmDev) -> None:
    """The disk became read-only, or writeable."""
    _block(device, "change", DISK_RO=str(int(device.read_only)))


def removing(device: DmDev, cookie: int) -> None:
    """DEV_REMOVE announces the removal with the client's cookie; `removed` follows."""
    _block(device, "remove", **_cookie(cookie))


def removed(device: DmDev) -> None:
    """The disk goes."""
    _bdi(device, "remove")
    _block(device, "remove")
