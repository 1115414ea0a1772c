"""What NetBSD's libdevmapper makes of dictionaries (libdm-nbsd-iface.c, libdm_netbsd.c and libdm's libdm_ioctl.c).

That library keeps Linux's `struct dm_ioctl` inside and speaks the dictionary outside. `request` is the dictionary it
sends for a task; `dm_ioctl` is the buffer it makes of a reply, with its unaligned records. Its defects of memory are
not imitated: what it leaves uninitialised is 0, and the buffer grows with its records.
"""

from __future__ import annotations

from typing import Any

from . import linux
from .commands import BY_VERB, CommandFlag
from .errors import NotSayable
from .flags import DmFlag
from .netbsd import DM_MAJOR, verb
from .netbsd import build as dictionary
from .proplib import Unsigned
from .records import Message
from .wire import DM_NAME_LEN, DM_UUID_LEN, huge_decode, netbsd_decode, netbsd_encode, to_bytes, to_text

__all__ = ["CHAR_MAJORS", "DM_BLOCK_MAJOR", "dm_ioctl", "request"]

#: Block major of NetBSD's device-mapper (sys/conf/majors).
DM_BLOCK_MAJOR = 169

#: Block major to char major, of the disk drivers of amd64 (sys/conf/majors, sys/arch/amd64/conf/majors.amd64).
CHAR_MAJORS = {
    0: 3,  # wd
    2: 9,  # fd
    4: 13,  # sd
    6: 15,  # cd
    14: 41,  # vnd
    16: 18,  # ccd
    17: 24,  # md
    18: 62,  # raid
    19: 69,  # ld
    20: 81,  # cgd
    142: 142,  # xbd
    168: 168,  # dk
    169: 169,  # dm
}

#: Flags that dm_task_set_ro() and its like put into a request.
_OPTIONS = DmFlag.READONLY | DmFlag.NOFLUSH | DmFlag.SKIP_LOCKFS | DmFlag.QUERY_INACTIVE


def request(message: Message) -> dict[str, Any]:
    """The dictionary that the library sends for a binary request.

    It says neither event number, counts, message nor geometry. Raises NotSayable for a device of another major, for
    which the library's task fails.
    """
    header = message.header
    word = verb(message.command, header.flags)
    flags = DmFlag.EXISTS | header.flags & _OPTIONS
    if word == "suspend":
        flags |= DmFlag.SUSPEND
    elif word == "table":
        flags |= DmFlag.STATUS_TABLE
    obj: dict[str, Any] = {"command": word, "cmd_data": []}
    if CommandFlag.NETBSD in message.command.flags:
        obj["version"] = [Unsigned(4), Unsigned(0), Unsigned(0)]
    if header.flags & DmFlag.PERSISTENT_DEV or header.dev:
        major, minor = huge_decode(header.dev)
        if major != DM_MAJOR:
            raise NotSayable(f"major {major}, expected device-mapper's {DM_MAJOR}", path="dev")
        obj["minor"] = Unsigned(minor)
        flags |= DmFlag.PERSISTENT_DEV
    if header.name:
        obj["name"] = header.name
    if header.uuid:
        obj["uuid"] = header.uuid
    obj["flags"] = Unsigned(flags)
    if word in ("reload", "rename"):
        obj["cmd_data"] = dictionary(message)["cmd_data"]
    for target in obj["cmd_data"] if word == "reload" else ():
        target["type"] = _cut(target["type"], linux.DM_MAX_TYPE_NAME)
        target.pop("status", None)
    return obj


def dm_ioctl(obj: dict[str, Any]) -> bytes:
    """The buffer that the library makes of a reply: 16384 bytes, or more when the records need it.

    Keys of another type count as absent, absent numbers as 0.
    """
    command = BY_VERB.get(_string(obj, "command"))
    name = command.name if command else ""
    records, count = _records(name, obj.get("cmd_data"))
    minor = _number(obj, "minor", 32)
    version = obj.get("version")
    numbers = version if isinstance(version, list) and len(version) <= 3 else []
    size = max(linux.REQUEST_SIZE, linux.HEADER_SIZE + len(records))
    header: bytes = linux.dm_ioctl.build(
        {
            "version": [*(_unsigned(number, 32) for number in numbers), 0, 0, 0][:3],
            "data_size": size,
            "data_start": linux.HEADER_SIZE,
            "target_count": _number(obj, "target_count", 32) if count is None else count,
            "open_count": _number(obj, "open_count", 31),
            "flags": _number(obj, "flags", 32),
            "event_nr": _number(obj, "event_nr", 32),
            "padding": 0,
            "dev": netbsd_encode((DM_BLOCK_MAJOR, minor)) if minor else 0,
            "name": _cut(_string(obj, "name"), DM_NAME_LEN),
            "uuid": _cut(_string(obj, "uuid"), DM_UUID_LEN),
        }
    )
    return (header + records).ljust(size, b"\0")


def _records(command: str, cmd_data: object) -> tuple[bytes, int | None]:
    """The bytes behind the header, and the target_count that the library counts; None where it does not count."""
    make = {
        "LIST_VERSIONS": _versions,
        "LIST_DEVICES": _names,
        "TABLE_STATUS": _specs,
        "TABLE_DEPS": _deps,
    }.get(command)
    if make is None:
        return b"", None
    if not isinstance(cmd_data, list):
        # dm_table_status() returns ENOENT without its minus sign, which then passes for a count of 2
        return b"", 2 if command == "TABLE_STATUS" else None
    return make(cmd_data)


def _versions(cmd_data: list[Any]) -> tuple[bytes, int]:
    parts = []
    for target in filter(_is_dictionary, cmd_data):
        ver = target.get("ver")
        version = [_unsigned(number, 32) for number in ver] if isinstance(ver, list) else []
        record = {"next": 0, "version": [*version, 0, 0, 0][:3], "name": _string(target, "name")}
        parts.append(linux.dm_target_versions.build(record) + b"\0")
    return _chain(parts, at=0), len(parts)


def _names(cmd_data: list[Any]) -> tuple[bytes, int]:
    parts = []
    for device in filter(_is_dictionary, cmd_data):
        dev = netbsd_encode((DM_BLOCK_MAJOR, _number(device, "dev", 32)))
        # the struct is 16 bytes long with its padding, its name stands at 12: each record ends in five spare bytes
        record = linux.dm_name_list_v4_0.build({"dev": dev, "next": 0, "name": _string(device, "name")})
        parts.append(record + bytes(5))
    return _chain(parts, at=8), len(parts)


def _specs(cmd_data: list[Any]) -> tuple[bytes, int]:
    parts = []
    for target in filter(_is_dictionary, cmd_data):
        record = {
            "sector_start": _number(target, "start", 64),
            "length": _number(target, "length", 64),
            "status": _signed(target.get("status")),
            "next": 0,
            "target_type": _cut(_string(target, "type"), linux.DM_MAX_TYPE_NAME),
            "params": _string(target, "params"),
        }
        parts.append(linux.dm_target_spec.build(record))
    return _chain(parts, at=20, cumulative=True), len(parts)


def _deps(cmd_data: list[Any]) -> tuple[bytes, int]:
    """Block devices as character devices. The first device's major is looked up, and serves for all of them."""
    devs: list[int] = []
    for number in cmd_data:
        dev = _unsigned(number, 64)
        if not dev:
            break
        major, minor = netbsd_decode(dev)
        if not devs:
            char_major = CHAR_MAJORS.get(major, 0)
        devs.append(netbsd_encode((char_major, minor)))
    data: bytes = linux.dm_target_deps.build({"dev": devs})
    return data, len(devs)


def _chain(records: list[bytes], *, at: int, cumulative: bool = False) -> bytes:
    """Records behind each other, with `next` (at offset `at`) from this record or from the first; 0 in the last."""
    parts, end = [], 0
    for index, record in enumerate(records):
        end += len(record)
        following = 0 if index == len(records) - 1 else end if cumulative else len(record)
        parts += [record[:at], following.to_bytes(4, "little"), record[at + 4 :]]
    return b"".join(parts)


def _is_dictionary(obj: object) -> bool:
    return isinstance(obj, dict)


def _unsigned(number: object, bits: int) -> int:
    """prop_dictionary_get_uintN: 0 for what is no number, or does not fit."""
    fits = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << bits
    return int(number) if fits and isinstance(number, int) else 0


def _number(obj: dict[str, Any], key: str, bits: int) -> int:
    return _unsigned(obj.get(key), bits)


def _signed(number: object) -> int:
    fits = isinstance(number, int) and not isinstance(number, bool) and -1 << 31 <= number < 1 << 31
    return int(number) if fits and isinstance(number, int) else 0


def _string(obj: dict[str, Any], key: str) -> str:
    value = obj.get(key)
    return value.partition("\0")[0] if isinstance(value, str) else ""


def _cut(text: str, size: int) -> str:
    """strlcpy() into so many bytes."""
    return to_text(to_bytes(text)[: size - 1])
