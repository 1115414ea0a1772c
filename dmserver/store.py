"""The state file: devices and their tables, to outlive the server.

A JSON object, written whole to a temporary file that replaces the old one; so there is always one whole state. Tables
hold what `table` shows, encryption keys too: the file is its owner's alone.

| key       | holds                                                                                            |
|-----------|--------------------------------------------------------------------------------------------------|
| `format`  | 1                                                                                                |
| `disks`   | those that tables named without --pdev: {path, dev}                                              |
| `devices` | oldest first: {name, uuid, minor, flags, suspended, geometry, cur_active, slots: two tables or null}  |

A table is {read_only, targets: [{start, length, type, rules, params}], devices: {"MAJ:MIN": path}}; `rules` is "linux"
or "netbsd", whose target type it is. Numbers in `params` stand for the paths in `devices`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

from dmproto.wire import to_bytes

from .control.linux_resolver import LinuxResolver
from .control.netbsd_resolver import MAX_DEV_NAME
from .control.netbsd_targets import NETBSD_TARGETS, split_params
from .host import Host
from .io.blockdev import BlockDevice
from .io.disk import Disk
from .model.dm_dev import DmDev
from .model.dm_table import DmTable
from .model.dm_target import StatusType, Target, TargetError, split_args

__all__ = ["FORMAT", "Store", "lock"]

FORMAT = 1

State = dict[str, Any]

_log = logging.getLogger("dmserver")


def lock(path: str) -> int:
    """Have a state file to oneself; returns a descriptor that holds it until it is closed. OSError(EBUSY) when another
    server has it. The lock is on a file beside, `.FILE.lock`, because the state itself is replaced by each change."""
    beside = Path(path).with_name(f".{Path(path).name}.lock")
    fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise OSError(errno.EBUSY, "another server keeps its state there", path) from None
    return fd


class Store:
    """Keeps the state of `host` in the file `path`."""

    def __init__(self, path: str, host: Host) -> None:
        self._path = Path(path)
        self._host = host
        self._declared = {disk.path for disk in host.mapper.disks}
        self._saved = host.changes

    def save_changes(self) -> None:
        """Write the file if a command has changed anything since it was written. A failure is logged, and the next
        change tries again."""
        if self._saved != self._host.changes:
            try:
                self.save()
            except OSError as failure:
                _log.error("saving the state to %s: %s", self._path, failure.strerror)

    def save(self) -> None:
        """Write the file."""
        changes = self._host.changes
        _write(self._path, json.dumps(self._state(), separators=(",", ":")).encode())
        self._saved = changes

    def restore(self) -> None:
        """Make what the file tells; nothing when there is none. What cannot be made is logged, and the rest is; then
        the file is also kept beside, as FILE.rejected, since the next change writes it anew.

        ValueError for a file that is no state, or of a newer format; OSError when it cannot be read or lies nowhere.
        """
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            if not self._path.parent.is_dir():
                raise
            return
        try:
            state = json.loads(text)
            found = state["format"]
            whole = found == FORMAT and _Restorer(self._host, state).run()
        except (ValueError, LookupError, TypeError, AttributeError) as wrong:
            raise ValueError(f"{self._path}: not a state file ({type(wrong).__name__}: {wrong})") from wrong
        if found != FORMAT:
            raise ValueError(f"{self._path}: format {found!r}, expected {FORMAT}")
        if not whole:
            kept = self._path.with_name(f"{self._path.name}.rejected")
            _write(kept, text)
            _log.error("the state as it was is kept in %s", kept)
        self._saved = self._host.changes

    def _state(self) -> State:
        mapper = self._host.mapper
        return {
            "format": FORMAT,
            "disks": [
                {"path": disk.path, "dev": list(disk.dev)}
                for disk in mapper.disks
                if isinstance(disk, Disk) and disk.path not in self._declared
            ],
            "devices": [self._device(device) for device in mapper.devices.values()],
        }

    def _device(self, device: DmDev) -> State:
        return {
            "name": device.name,
            "uuid": device.uuid,
            "minor": device.minor,
            "flags": self._host.netbsd.device_flags(device),
            "suspended": device.suspended,
            "geometry": list(device.geometry),
            "cur_active": device.cur_active,
            "slots": [_table(table) if table else None for table in device.slots],
        }


def _table(table: DmTable) -> State:
    return {
        "read_only": table.read_only,
        "targets": [
            {
                "start": target.begin,
                "length": target.len,
                "type": target.name,
                "rules": "netbsd" if type(target) is NETBSD_TARGETS.get(target.name) else "linux",
                "params": target.status(StatusType.TABLE),
            }
            for target in table.targets
        ],
        "devices": {pdev.number: pdev.path if _is_whole(pdev.path) else pdev.bdev.path for pdev in table.pdevs},
    }


def _is_whole(path: str) -> bool:
    """Not one that NetBSD's list of devices may have cut."""
    return len(to_bytes(path)) < MAX_DEV_NAME - 1


def _write(path: Path, text: bytes) -> None:
    """Replace a file by another, all at once; it is its owner's alone."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.replace(temporary, path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Restorer:
    """Devices first, then their tables, each after those of the devices it stands on."""

    def __init__(self, host: Host, state: State) -> None:
        self._host = host
        self._mapper = host.mapper
        self._state = state
        self._pending: dict[int, State] = {}
        self._whole = True

    def run(self) -> bool:
        """Whether all could be made. ValueError, LookupError, TypeError or AttributeError: this is no state."""
        for saved in self._state["disks"]:
            self._try(f"disk {saved['path']}", partial(self._mapper.disks.adopt, saved["path"], tuple(saved["dev"])))
        for minor in sorted(saved["minor"] for saved in self._state["devices"]):
            self._mapper.minors.reserve(minor)
        for saved in self._state["devices"]:
            device = self._mapper.create(saved["name"], saved["uuid"], saved["minor"])
            device.has_disk = any(slot is not None for slot in saved["slots"])
            self._pending[device.minor] = saved
        while self._pending:
            self._device(*next(iter(self._pending.items())))
        return self._whole

    def _device(self, minor: int, saved: State) -> None:
        del self._pending[minor]
        device = self._mapper.devices[minor]
        device.cur_active = saved["cur_active"]
        for slot in (device.cur_active, 1 - device.cur_active):
            if saved["slots"][slot] is not None:
                table = saved["slots"][slot]
                disks = ", ".join(f"{path} ({number})" for number, path in table["devices"].items()) or "no disks"
                self._try(f"a table of {device.name!r} on {disks}", partial(self._load, device, slot, table))
        device.geometry = tuple(saved["geometry"])
        self._host.netbsd.restore_flags(device, saved["flags"])
        if saved["suspended"]:
            device.suspend(lambda: None)
        elif device.live is not None:
            self._try(f"device {device.name!r}", device.resume)

    def _load(self, device: DmDev, slot: int, saved: State) -> None:
        for number in saved["devices"]:
            major, below = map(int, number.split(":"))
            if major == self._mapper.major and below in self._pending:
                self._device(below, self._pending[below])
        table = DmTable(device, self._resolver(device, saved["devices"]), read_only=saved["read_only"])
        try:
            for target in saved["targets"]:
                kind, split = self._kind(target)
                table.add_target(kind, target["start"], target["length"], split(target["params"]))
        except BaseException:
            table.destroy()
            raise
        if slot != device.cur_active:
            device.inactive = table
            return
        device.cur_active = 1 - slot
        device.inactive = table
        device.swap()

    def _kind(self, target: State) -> tuple[type[Target], Callable[[str], list[str]]]:
        if target["rules"] == "netbsd":
            return NETBSD_TARGETS[target["type"]], split_params
        kind = self._host.registry.get(target["type"])
        if kind is None:
            raise LookupError(f"no target type {target['type']!r}")
        return kind, split_args

    def _resolver(self, device: DmDev, paths: dict[str, str]) -> Callable[[str], tuple[Hashable, str, BlockDevice]]:
        """A number stands for its path, which the personality's rules find."""
        linux = LinuxResolver(self._mapper)

        def resolve(name: str) -> tuple[Hashable, str, BlockDevice]:
            if self._host.personality == "netbsd":
                return self._host.netbsd.resolve(paths.get(name, name), device)
            return linux(name)

        return resolve

    def _try(self, what: str, make: Callable[[], object]) -> None:
        try:
            make()
        except (OSError, ValueError, LookupError, TargetError) as failure:
            _log.error("restoring %s: %s", what, failure)
            self._whole = False
