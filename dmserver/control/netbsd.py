"""NetBSD's device-mapper as property-list clients meet it (sys/dev/dm/device-mapper.c, dm_ioctl.c, dm_dev.c; January
2025): order of checks, flags, errno, and what each command writes.

The reply is the request's dictionary, changed in place, so whatever the driver does not write comes back as sent.
A device's flags are kept apart from its table slots, as the driver keeps them, and may disagree with them.

`mended` puts the driver's bugs right that lose a device or a table; each is in specs/netbsd-driver.md. Where the
kernel would panic the answer is EINVAL, where it would read uninitialised memory it reads 0.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from dmproto.commands import BY_VERB
from dmproto.flags import DmFlag
from dmproto.objects import describe
from dmproto.proplib import Unsigned
from dmproto.wire import DM_NAME_LEN, DM_UUID_LEN, netbsd_encode, to_bytes, to_text

from ..io.blockdev import BlockDevice
from ..model.dm_dev import DmDev
from ..model.dm_table import DmTable
from ..model.dm_target import StatusType, Target, TargetError, split_args
from ..model.mapper import Mapper
from ..targets.registry import TargetRegistry
from . import linux_uevent
from .netbsd_call import Call, Dictionary, Refusal, text, unsigned
from .netbsd_resolver import NetbsdResolver
from .netbsd_targets import NETBSD_TARGETS, split_params
from .session import Cancel, Session

__all__ = ["VERSION", "NetbsdControl"]

VERSION = (4, 16, 0)
_OURS = tuple(map(Unsigned, VERSION))

#: Plain numbers: arithmetic on enumeration members costs more than the rest of a command.
_READONLY, _SUSPEND, _EXISTS = DmFlag.READONLY.value, DmFlag.SUSPEND.value, DmFlag.EXISTS.value
_ACTIVE_PRESENT, _INACTIVE_PRESENT = DmFlag.ACTIVE_PRESENT.value, DmFlag.INACTIVE_PRESENT.value
_STATUS_TABLE, _QUERY_INACTIVE = DmFlag.STATUS_TABLE.value, DmFlag.QUERY_INACTIVE.value
_NOFLUSH = DmFlag.NOFLUSH.value


@dataclass(frozen=True, slots=True)
class _Verb:
    function: Callable[[Call], Cancel | None]
    anyone: bool = False


class NetbsdControl:
    """The control node of one `mapper`. `registry` holds the target types that the driver lacks, for `mended`."""

    def __init__(self, mapper: Mapper, registry: TargetRegistry, *, mended: bool) -> None:
        self.mapper = mapper
        self.mended = mended
        self._registry = registry
        self._resolver = NetbsdResolver(mapper, mended=mended)
        self._device_flags: dict[int, int] = {}
        mapper.on_remove.append(self._forget)
        self._verbs = {
            "version": _Verb(lambda call: None, anyone=True),
            "targets": _Verb(self._targets, anyone=True),
            "create": _Verb(self._create),
            "info": _Verb(self._info, anyone=True),
            "mknodes": _Verb(self._info, anyone=True),
            "names": _Verb(self._names, anyone=True),
            "suspend": _Verb(self._suspend),
            "remove": _Verb(self._remove),
            "rename": _Verb(self._rename),
            "resume": _Verb(self._resume),
            "clear": _Verb(self._clear),
            "deps": _Verb(self._deps, anyone=True),
            "reload": _Verb(self._reload),
            "status": _Verb(self._table, anyone=True),
            "table": _Verb(self._table, anyone=True),
        }

    def dictionary(self, session: Session, request: Dictionary, done: Callable[[Dictionary], None]) -> Cancel | None:
        """Carry out one command. `done(reply)` is called once, now or later; a reply with `errno` tells of failure. A
        parked command returns a `Cancel`, which answers it with EINTR."""
        call = Call(request, done)
        try:
            parked = self._verb(call, session).function(call)
        except Refusal as refusal:
            call.finish(refusal)
            return None
        if parked is None:
            call.finish()
        return parked

    def _verb(self, call: Call, session: Session) -> _Verb:
        """The checks in front of every command, in the driver's order."""
        _check_version(call)
        command = call.request.get("command")
        if command is None:
            raise Refusal(errno.EINVAL, "the key command is missing")
        verb = self._verbs.get(command) if isinstance(command, str) else None
        if not session.privileged and not (verb and verb.anyone):
            raise Refusal(errno.EPERM, f"command {describe(command)} needs the superuser")
        if verb is None:
            known = ", ".join(BY_VERB if self.mended else self._verbs)
            raise Refusal(errno.EINVAL, f"unknown command {describe(command)}; known: {known}")
        return verb

    # -- devices ----------------------------------------------------------------------------------------

    def _lookup(self, call: Call) -> DmDev:
        """`dm_dev_lookup`: by minor, else by name, else by uuid; ENOENT clears EXISTS. Mended, where minors begin at 0,
        that is a minor too when nothing else tells a device."""
        device = self._find(call.minor, call.name, call.uuid)
        if device is None and self.mended and not (call.name or call.uuid):
            device = self.mapper.devices.get(0) if unsigned(call.request.get("minor"), 32) == 0 else None
        if device is None:
            raise self._missing(call)
        return device

    def _find(self, minor: int, name: str | None, uuid: str | None) -> DmDev | None:
        mapper = self.mapper
        return (
            (mapper.devices.get(minor) if minor > 0 else None)
            or (mapper.by_name(name) if name else None)
            or (mapper.by_uuid(uuid) if uuid else None)
        )

    def _missing(self, call: Call) -> Refusal:
        call.remove_flag(_EXISTS)
        keys = (f"{key} is {describe(call.request[key])}" for key in ("minor", "name", "uuid") if key in call.request)
        return Refusal(errno.ENOENT, f"no such device: {', '.join(keys) or 'none of minor, name, uuid given'}")

    def device_flags(self, device: DmDev) -> int:
        """`dm_dev.flags`. Mended, they follow the device, which others change too."""
        flags = self._device_flags.get(device.minor, 0)
        if not self.mended:
            return flags
        flags &= _READONLY | _ACTIVE_PRESENT
        flags |= _SUSPEND if device.suspended else 0
        flags |= _ACTIVE_PRESENT if device.live is not None else 0
        return flags | (_INACTIVE_PRESENT if device.inactive is not None else 0)

    def _forget(self, device: DmDev) -> None:
        self._device_flags.pop(device.minor, None)

    def restore_flags(self, device: DmDev, flags: int) -> None:
        """Set what `device_flags` told of a device that now comes back."""
        self._device_flags[device.minor] = flags

    def resolve(self, path: str, user: DmDev) -> tuple[Hashable, str, BlockDevice]:
        """The device at `path` for a table of `user` (`model.dm_table.Resolver`)."""
        return self._resolver.resolve(path, user)

    def _change_flags(self, device: DmDev, *, add: int = 0, remove: int = 0) -> None:
        self._device_flags[device.minor] = self.device_flags(device) & ~remove | add

    def _create(self, call: Call) -> None:
        if self._find(0, call.name, call.uuid):
            call.add_flag(_EXISTS)
            raise Refusal(errno.EEXIST, _exists(call.name, call.uuid))
        name, uuid = _cut(call.name, DM_NAME_LEN - 1), _cut(call.uuid, DM_UUID_LEN)
        taken = self._find(0, name, uuid)
        if not (taken and self.mended):
            minor = self.mapper.minors.take()
            call.set(minor=minor)
        if not taken:
            device = self.mapper.create(name, uuid, minor)
            device.has_disk = not self.mended
            if call.flags & _READONLY:
                self._change_flags(device, add=_READONLY)
            self._tell(device)
        call.add_flag(_EXISTS)
        call.remove_flag(_INACTIVE_PRESENT)
        if taken:
            raise Refusal(errno.EEXIST, f"{_exists(name, uuid)} (as cut)")

    def _info(self, call: Call) -> None:
        device = self._lookup(call)
        live, inactive = _targets(device.live), _targets(device.inactive)
        flags = (call.flags | self.device_flags(device) & _SUSPEND) & ~(_ACTIVE_PRESENT | _INACTIVE_PRESENT)
        flags |= (_ACTIVE_PRESENT if live else 0) | (_INACTIVE_PRESENT if inactive else 0)
        call.set(open_count=0, minor=device.minor, target_count=len(live), flags=flags)
        call.request["uuid"] = device.uuid

    def _names(self, call: Call) -> None:
        call.request["cmd_data"] = [
            {"name": device.name, "dev": Unsigned(device.minor)} for device in self.mapper.devices.values()
        ]

    def _targets(self, call: Call) -> None:
        call.request["cmd_data"] = [
            {"name": kind.name, "ver": [Unsigned(number) for number in kind.version]}
            for kind in NETBSD_TARGETS.values()
        ]

    def _remove(self, call: Call) -> None:
        device = self._lookup(call)
        if device.openers:
            raise Refusal(errno.EBUSY, f"device {device.name!r} is open")
        self.mapper.remove(device)
        self._tell(device)

    def _rename(self, call: Call) -> None:
        data = call.request.get("cmd_data")
        new = text(data[0]) if isinstance(data, list) and data else None
        if new is None:
            raise Refusal(errno.EINVAL, "cmd_data: expected an array with the new name, a string")
        if len(to_bytes(new)) >= DM_NAME_LEN:
            raise Refusal(
                errno.EINVAL, f"cmd_data[0]: expected at most {DM_NAME_LEN - 1} bytes, got {len(to_bytes(new))}"
            )
        device = self._find(call.minor, call.name, None) or self._find(0, call.uuid, None)
        if device is None and self.mended:
            device = self._lookup(call)
        if device is None:
            raise self._missing(call)
        holder = self.mapper.by_name(new)
        if holder not in (None, device) and self.mended:
            call.add_flag(_EXISTS)
            raise Refusal(errno.EEXIST, f"a device of name {new!r} exists already")
        call.set(open_count=0, minor=device.minor)
        call.request["uuid"] = device.uuid
        if holder not in (None, device):
            self._lose(device)
            return
        self.mapper.rename(device, new)
        self.mapper.devices[device.minor] = self.mapper.devices.pop(device.minor)
        if self.mended and device.live is not None:
            device.event()
        self._tell(device, _changed)

    def _tell(self, device: DmDev, uevent: Callable[[DmDev], None] | None = None) -> None:
        """Mended: let Linux's clients know, as that kernel would: the global event number, and a uevent."""
        if self.mended:
            self.mapper.events.bump()
            if uevent is not None and device.has_disk:
                uevent(device)

    def _lose(self, device: DmDev) -> None:
        """Out of the list, though nothing of it is given back."""
        device.slots = [None, None]
        self.mapper.remove(device)

    # -- states -----------------------------------------------------------------------------------------

    def _suspend(self, call: Call) -> Cancel | None:
        device = self._lookup(call)

        def suspended() -> None:
            self._change_flags(device, add=_SUSPEND)
            call.set(open_count=0, minor=device.minor, flags=self.device_flags(device))
            call.add_flag(_EXISTS)

        if not self.mended or device.suspended:
            suspended()
            return None
        return self._quiesce(call, device, suspended, noflush=bool(call.flags & _NOFLUSH))

    def _resume(self, call: Call) -> Cancel | None:
        device = self._lookup(call)
        switches = bool(self.device_flags(device) & _INACTIVE_PRESENT)

        def resumed() -> None:
            if switches:
                _destroy(device.swap())
            else:
                _destroy(device.inactive)
                device.inactive = None
            self._change_flags(device, add=_ACTIVE_PRESENT, remove=_SUSPEND | _INACTIVE_PRESENT)
            try:
                if device.suspended:
                    device.resume()
            except TargetError as failure:
                raise Refusal(failure.errno, f"{device.name!r} does not resume: {failure}") from failure
            self._tell(device, _changed)
            call.add_flag(_EXISTS)
            call.set(open_count=0, minor=device.minor)

        if device.suspended or not switches:
            resumed()
            return None
        return self._quiesce(call, device, resumed)

    def _quiesce(self, call: Call, device: DmDev, then: Callable[[], None], *, noflush: bool = True) -> Cancel | None:
        """Hold the device's bios, then go on: at once when none is under way, else parked."""
        quiet = parked = False

        def drained() -> None:
            nonlocal quiet
            quiet = True
            if not parked:
                then()
                return
            try:
                then()
            except Refusal as refusal:
                call.finish(refusal)
            else:
                call.finish()

        give_up = device.suspend(drained, noflush=noflush)
        if quiet:
            return None
        parked = True

        def interrupt() -> None:
            if give_up():
                call.finish(Refusal(errno.EINTR, "interrupted while I/O was under way"))

        return interrupt

    # -- tables -----------------------------------------------------------------------------------------

    def _clear(self, call: Call) -> None:
        device = self._lookup(call)
        _destroy(device.inactive)
        device.inactive = None
        self._change_flags(device, remove=_INACTIVE_PRESENT)

    def _deps(self, call: Call) -> None:
        device = self._lookup(call)
        call.set(minor=device.minor)
        call.request["name"] = device.name
        call.request["uuid"] = device.uuid
        table = device.inactive if call.flags & _QUERY_INACTIVE else device.live
        numbers = [netbsd_encode(pdev.bdev.dev) for pdev in table.pdevs] if table else []
        call.request["cmd_data"] = [Unsigned(number) for number in dict.fromkeys(numbers)]

    def _table(self, call: Call) -> None:
        """status and table are one command: STATUS_TABLE decides what the parameters are."""
        device = self._lookup(call)
        live, inactive = _targets(device.live), _targets(device.inactive)
        flags = call.flags | self.device_flags(device) & _SUSPEND
        if live:
            flags |= _ACTIVE_PRESENT
        else:
            flags = flags & ~(_ACTIVE_PRESENT | _INACTIVE_PRESENT) | (_INACTIVE_PRESENT if inactive else 0)
        call.set(minor=device.minor, flags=flags)
        kind = StatusType.TABLE if flags & _STATUS_TABLE else StatusType.INFO
        call.request["cmd_data"] = [
            {
                "start": Unsigned(target.begin),
                "length": Unsigned(target.len),
                "type": target.name,
                "status": device.cur_active,
                "params": target.status(kind),
            }
            for target in (inactive if flags & _QUERY_INACTIVE else live)
        ]

    def _reload(self, call: Call) -> None:
        entries = call.request.get("cmd_data")
        if not isinstance(entries, list):
            raise Refusal(errno.EINVAL, "cmd_data: expected an array of targets")
        device = self._lookup(call)
        if not self.mended and self.device_flags(device) & _INACTIVE_PRESENT:
            _destroy(device.inactive)
            device.inactive = None
        call.set(minor=device.minor)
        read_only = self.mended and bool(call.flags & _READONLY)
        table = DmTable(device, lambda path: self.resolve(path, device), read_only=read_only)
        try:
            self._fill(table, entries)
        except Refusal as refusal:
            if self.mended:
                table.destroy()
            elif isinstance(refusal, _UnknownTarget):
                self._load(device, table)
            else:
                table.destroy()
                _destroy(device.inactive)
                device.inactive = None
            raise
        self._load(device, table)
        if not device.has_disk:
            device.has_disk = True
            linux_uevent.added(device)
        self._change_flags(device, add=_INACTIVE_PRESENT)
        call.add_flag(_INACTIVE_PRESENT)

    def _load(self, device: DmDev, table: DmTable) -> None:
        """Into the inactive slot: in front of what is in there as shipped, instead of it when mended."""
        old = device.inactive
        if old is not None and self.mended:
            old.destroy()
        elif old is not None:
            table.append(old)
        device.inactive = table

    def _fill(self, table: DmTable, entries: list[object]) -> None:
        kind_name: str | None = None
        for index, entry in enumerate(entries):
            keys = entry if isinstance(entry, dict) else {}
            where = f"cmd_data[{index}]"
            kind_name = text(keys.get("type")) if isinstance(keys.get("type"), str) else kind_name
            if kind_name is None:
                raise Refusal(errno.EINVAL, f"{where}.type: expected a string")
            kind = self._kind(kind_name)
            if kind is None:
                raise _UnknownTarget(errno.ENOENT, f"{where}.type: no target type {kind_name!r}")
            params = text(keys.get("params"))
            if params is None:
                raise Refusal(errno.EINVAL, f"{where}.params: expected a string")
            argv = split_params(params) if kind_name in NETBSD_TARGETS else split_args(params)
            start, length = (unsigned(keys.get(key), 64) or 0 for key in ("start", "length"))
            try:
                table.add_target(kind, start, length, argv)
            except TargetError as failure:
                raise Refusal(failure.errno, f"{where}: {kind_name}: {failure}") from failure

    def _kind(self, name: str) -> type[Target] | None:
        kind = NETBSD_TARGETS.get(name)
        return self._registry.get(name) if kind is None and self.mended else kind


class _UnknownTarget(Refusal):
    """No such target type."""


def _check_version(call: Call) -> None:
    """`dm_check_version`: 4, at most 16, the rest does not matter; the array then tells ours."""
    version = call.request.get("version")
    told = version if isinstance(version, list) else []
    major = unsigned(told[0], 32) if told else None
    minor = unsigned(told[1], 32) if len(told) > 1 else None
    if major != VERSION[0] or (minor or 0) > VERSION[1]:
        ours = ".".join(map(str, VERSION))
        raise Refusal(errno.EIO, f"version: expected an array of numbers, 4.0.0 to {ours}, got {describe(version)}")
    told[:3] = _OURS


def _changed(device: DmDev) -> None:
    linux_uevent.changed(device, cookie=0)


def _cut(value: str | None, limit: int) -> str:
    return to_text(to_bytes(value)[:limit]) if value else ""


def _exists(name: str | None, uuid: str | None) -> str:
    return f"a device of name {name!r}{f' or uuid {uuid!r}' if uuid else ''} exists already"


def _targets(table: DmTable | None) -> list[Target]:
    return table.targets if table else []


def _destroy(table: DmTable | None) -> None:
    if table is not None:
        table.destroy()
