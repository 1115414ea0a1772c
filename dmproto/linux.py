"""Linux's binary form: `struct dm_ioctl` and what follows it (include/uapi/linux/dm-ioctl.h, little-endian LP64).

`parse` and `build` go between a caller's whole buffer (or the prefix of it that the kernel wrote back) and a
`records.Message`; the schemas below are the structs, under their C names.

Rules of this room:

1. What the kernel takes is taken: any `next`, unaligned records, a `target_type` without NUL, buffers of any size.
   What it refuses for its form (an offset outside the buffer, a string without NUL, a record cut off) raises
   `BadBinary` with the offset and the field.
2. Fields mean what the kernel makes of them: text ends at the first NUL, the last byte of `name` and `uuid` is a NUL.
3. The canonical encoding is what libdevmapper sends and what the kernel answers, in a zeroed buffer: `data_start` 312,
   records aligned to 8, `next` leading to the following record, zeros between and behind. A request is 16384 bytes,
   more when its table needs it; a reply ends with its data, at 305 (`offsetof(data)`) without data, or at 12 where
   only the version comes back.
4. Bytes in which a parsed message differs from its canonical encoding are its `residue`: build(parse(x)) == x.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, cast

from construct import (
    Array,
    ConstructError,
    If,
    Int32sl,
    Int32ul,
    Int64ul,
    Padding,
    Rebuild,
    Struct,
    len_,
    this,
)

from .codegen import fuse
from .commands import Command, CommandFlag, Payload
from .errors import BadBinary
from .flags import DmFlag, NameListFlag
from .records import DeviceEntry, Header, Message, Payloads, TargetMessage, TargetSpec, TargetVersion
from .schema import Align, Chain, FixedText, Text
from .wire import (
    DATA_OFFSET,
    DM_NAME_LEN,
    DM_UUID_LEN,
    HEADER_SIZE,
    MAX_DATA_SIZE,
    VERSION_SIZE,
    huge_decode,
    huge_encode,
)

__all__ = [
    "DATA_OFFSET",
    "DM_MAX_TYPE_NAME",
    "HEADER_SIZE",
    "MAX_DATA_SIZE",
    "REQUEST_SIZE",
    "build",
    "differences",
    "dm_ioctl",
    "dm_name_list",
    "dm_name_list_v4_0",
    "dm_target_deps",
    "dm_target_msg",
    "dm_target_spec",
    "dm_target_versions",
    "netbsd_dm_ioctl",
    "parse",
    "parse_header",
]

REQUEST_SIZE = 16384  #: bytes of libdevmapper's buffer
DM_MAX_TYPE_NAME = 16  #: bytes of `target_type`
MIN_TABLE_START = 40  #: populate_table() takes specs from here on, even inside the header
EVENT_NR_SINCE = (4, 38)  #: lists of devices tell event numbers from this version on

_fields = (
    "version" / Array(3, Int32ul),
    "data_size" / Int32ul,
    "data_start" / Int32ul,
    "target_count" / Int32ul,
    "open_count" / Int32sl,
    "flags" / Int32ul,
    "event_nr" / Int32ul,
    "padding" / Int32ul,
    "dev" / Int64ul,
    "name" / FixedText(DM_NAME_LEN),
    "uuid" / FixedText(DM_UUID_LEN),
    Padding(7),
)

# struct dm_ioctl {
#     __u32 version[3];     /* in/out: major, minor, patchlevel */
#     __u32 data_size;      /* total size of the data passed in, this struct included */
#     __u32 data_start;     /* offset of the data from the start of this struct */
#     __u32 target_count;   /* in/out */
#     __s32 open_count;     /* out */
#     __u32 flags;          /* in/out */
#     __u32 event_nr;       /* in/out */
#     __u32 padding;
#     __u64 dev;            /* in/out, huge_encode_dev() */
#     char name[128];
#     char uuid[129];
#     char data[7];         /* padding or data */
# };
dm_ioctl = Struct(*_fields)

# The same in NetBSD's binary protocol of 2008 (protocol.txt): one pointer longer, 320 bytes.
#     void *user_space_addr; /* where the data stand in the caller's memory */
netbsd_dm_ioctl = Struct(*_fields, "user_space_addr" / Int64ul)

# struct dm_target_spec {
#     __u64 sector_start;
#     __u64 length;          /* sectors */
#     __s32 status;          /* out, never used */
#     __u32 next;            /* bytes to the next spec: from this one (load), from the first one (status) */
#     char target_type[16];
#     /* parameter string, NUL-terminated, then padding to 8 */
# };
dm_target_spec = Struct(
    "sector_start" / Int64ul,
    "length" / Int64ul,
    "status" / Int32sl,
    "next" / Int32ul,
    "target_type" / FixedText(DM_MAX_TYPE_NAME, DM_MAX_TYPE_NAME),
    "params" / Text(),
)

# struct dm_target_deps {
#     __u32 count;
#     __u32 padding;
#     __u64 dev[];           /* huge_encode_dev() */
# };
dm_target_deps = Struct("count" / Rebuild(Int32ul, len_(this.dev)), Padding(4), "dev" / Array(this.count, Int64ul))

# struct dm_name_list {
#     __u64 dev;
#     __u32 next;            /* bytes to the next record from this one, 0 in the last */
#     char name[];
#     /* aligned to 8: __u32 event_nr; __u32 flags; char uuid[] if flags has HAS_UUID */
# };
dm_name_list = Struct(
    "dev" / Int64ul,
    "next" / Int32ul,
    "name" / Text(),
    Align(8),
    "event_nr" / Int32ul,
    "flags" / Int32ul,
    "uuid" / If(this.flags & NameListFlag.HAS_UUID.value, Text()),
)

# The record as it was before version 4.38, and as NetBSD's libdevmapper makes it.
dm_name_list_v4_0 = Struct("dev" / Int64ul, "next" / Int32ul, "name" / Text())

# struct dm_target_versions {
#     __u32 next;            /* bytes to the next record from this one, 0 in the last */
#     __u32 version[3];
#     char name[];
# };
dm_target_versions = Struct("next" / Int32ul, "version" / Array(3, Int32ul), "name" / Text())

# struct dm_target_msg {
#     __u64 sector;
#     char message[];
# };
dm_target_msg = Struct("sector" / Int64ul, "message" / Text())

# plain numbers: operators of enum.Flag take longer than parsing a header
_DATA_OUT = DmFlag.DATA_OUT.value
_HAS_UUID, _DOESNT_HAVE_UUID = NameListFlag.HAS_UUID.value, NameListFlag.DOESNT_HAVE_UUID.value

_header_fields = tuple(Header.__dataclass_fields__)
_header_values = attrgetter(*_header_fields)

_header_codec = fuse(dm_ioctl, "dm_ioctl")
_deps = fuse(dm_target_deps, "dm_target_deps")
_msg = fuse(dm_target_msg, "dm_target_msg")
_text = fuse(Struct("text" / Text()), "text")
_table_load = fuse(Chain(dm_target_spec, counted=True), "table_load")
_table_status = fuse(Chain(dm_target_spec, counted=True, from_first=True, partial=True), "table_status")
_names = fuse(Chain(dm_name_list), "name_list")
_names_v4_0 = fuse(Chain(dm_name_list_v4_0), "name_list_v4_0")
_versions = fuse(Chain(dm_target_versions), "target_versions")

_STRUCTS = {
    Payload.NAME_LIST: "dm_name_list",
    Payload.TARGET_SPECS: "dm_target_spec",
    Payload.TARGET_VERSIONS: "dm_target_versions",
}


def parse_header(data: bytes) -> Header:
    """The fixed fields. `data` holds at least 305 bytes; what follows is not looked at.

    Raises BadBinary when it is shorter.
    """
    if len(data) < DATA_OFFSET:
        raise BadBinary(
            f"{len(data)} bytes, expected the {DATA_OFFSET} of struct dm_ioctl", offset=len(data), path="dm_ioctl"
        )
    return _header(data)


def parse(data: bytes, command: Command, *, reply: bool = False) -> Message:
    """One request (the caller's whole buffer) or reply (what came back, or the whole buffer after the call).

    A reply of 12 bytes, and a request of VERSION from 12 bytes on, may lack the fields behind the version; they read
    as zeros. A reply without data has the payload None. Raises BadBinary with offset and field path.
    """
    size = len(data)
    version_only = size == VERSION_SIZE if reply else command.name == "VERSION" and size >= VERSION_SIZE
    header = _header(data) if version_only else parse_header(data)
    payload: Payloads = None
    if not (version_only or (reply and CommandFlag.HEADER_ONLY in command.flags)):
        _check_data_size(header, size, needed=reply or CommandFlag.NO_PARAMS not in command.flags)
        kind = command.gives if reply else command.takes
        try:
            payload = _reply_data(data, header, kind) if reply else _request_data(data, header, kind)
        except ConstructError as error:
            raise _bad_binary(error, kind) from None
    canonical = _encode(header, payload, command, reply, size)
    return Message(
        command=command,
        reply=reply,
        header=header,
        payload=payload,
        size=size,
        residue=() if canonical == data else tuple(differences(canonical, data)),
    )


def build(message: Message) -> bytes:
    """The inverse of `parse`; of a message that was not parsed, the canonical encoding.

    `size` 0 stands for the canonical length, `header.data_size` and `data_start` 0 for what they must be. Raises
    BadBinary with the field path when a value does not fit its field, or a size exceeds 1 GiB.
    """
    kind = message.command.gives if message.reply else message.command.takes
    try:
        buffer = _encode(message.header, message.payload, message.command, message.reply, message.size)
    except ConstructError as error:
        raise _bad_binary(error, kind) from None
    if not message.residue:
        return buffer
    patched = bytearray(buffer)
    for offset, run in message.residue:
        if offset + len(run) > len(patched):
            raise BadBinary(f"residue of {len(run)} bytes ends behind the message's {len(patched)}", offset=offset)
        patched[offset : offset + len(run)] = run
    return bytes(patched)


def _header(data: bytes) -> Header:
    fields = _header_codec.parse(data if len(data) >= HEADER_SIZE else data.ljust(HEADER_SIZE, b"\0"))
    fields["version"] = tuple(fields["version"])
    return Header(**fields)


def _check_data_size(header: Header, size: int, *, needed: bool) -> None:
    """copy_params(): what data_size may be. Only commands with parameters look at the bytes behind the header."""
    if not DATA_OFFSET <= header.data_size <= MAX_DATA_SIZE:
        expected = f"expected {DATA_OFFSET} to {MAX_DATA_SIZE}"
        raise BadBinary(f"{header.data_size} bytes, {expected}", offset=12, path="data_size")
    if needed and header.data_size > size:
        error = BadBinary(f"{header.data_size} bytes, but only {size} are there", offset=12, path="data_size")
        error.errno = errno.EFAULT
        raise error


def _request_data(data: bytes, header: Header, kind: Payload) -> Payloads:
    if kind is Payload.NONE:
        return None
    lowest = MIN_TABLE_START if kind is Payload.TARGET_SPECS else DATA_OFFSET
    if not lowest <= header.data_start <= header.data_size:
        expected = f"expected {lowest} to data_size {header.data_size}"
        raise BadBinary(f"{header.data_start}, {expected}", offset=16, path="data_start")
    return _decode(data, header, kind, reply=False)


def _reply_data(data: bytes, header: Header, kind: Payload) -> Payloads:
    silent = kind is Payload.TEXT and not header.flags & _DATA_OUT
    if kind is Payload.NONE or silent or not HEADER_SIZE <= header.data_start <= header.data_size:
        return None
    return _decode(data, header, kind, reply=True)


def _decode(data: bytes, header: Header, kind: Payload, *, reply: bool) -> Payloads:
    start, end = header.data_start, header.data_size
    match kind:
        case Payload.TARGET_SPECS:
            chain = _table_status if reply else _table_load
            return tuple(
                TargetSpec(
                    start=e["sector_start"],
                    length=e["length"],
                    type=e["target_type"],
                    params=e["params"],
                    status=e["status"],
                )
                for e in chain.parse_at(data, start, end, count=header.target_count)
            )
        case Payload.NAME_LIST:
            return _decode_names(data, header) if start < end else ()
        case Payload.TARGET_VERSIONS:
            entries = _versions.parse_at(data, start, end) if start < end else ()
            return tuple(TargetVersion(name=e["name"], version=tuple(e["version"])) for e in entries)
        case Payload.TARGET_DEPS:
            return tuple(_deps.parse_at(data, start, end)["dev"])
        case Payload.TARGET_MSG:
            e = _msg.parse_at(data, start, end)
            return TargetMessage(sector=e["sector"], message=e["message"])
        case _:
            return cast(str, _text.parse_at(data, start, end)["text"])


def _decode_names(data: bytes, header: Header) -> tuple[DeviceEntry, ...]:
    if header.version[:2] < EVENT_NR_SINCE:
        entries = _names_v4_0.parse_at(data, header.data_start, header.data_size)
        if [(e["dev"], e["name"]) for e in entries] == [(0, "")]:
            return ()  # how kernels of that time, and NetBSD's libdevmapper, say that there is no device
        return tuple(DeviceEntry(name=e["name"], dev=huge_decode(e["dev"])) for e in entries)
    return tuple(
        DeviceEntry(
            name=e["name"],
            dev=huge_decode(e["dev"]),
            event_nr=e["event_nr"],
            uuid=e["uuid"] if e["uuid"] is not None else "" if e["flags"] & _DOESNT_HAVE_UUID else None,
        )
        for e in _names.parse_at(data, header.data_start, header.data_size)
    )


def _encode_payload(payload: Payloads, header: Header, kind: Payload, reply: bool) -> tuple[bytes, int]:
    """The bytes of a payload, and how many the kernel counts for them in data_size."""
    records = cast(Any, payload)
    match kind:
        case Payload.TARGET_SPECS:
            body = (_table_status if reply else _table_load).build(
                [
                    {
                        "sector_start": t.start,
                        "length": t.length,
                        "status": t.status,
                        "target_type": t.type,
                        "params": t.params,
                    }
                    for t in records
                ]
            )
        case Payload.NAME_LIST:
            body = _encode_names(records, header)
            return body, len(body) + -len(body) % 8
        case Payload.TARGET_VERSIONS:
            body = _versions.build([{"name": t.name, "version": t.version} for t in records])
            # list_version_get_needed(): each record and its alignment, whether needed or not
            return body, sum(16 + len(t.name.encode("utf-8", "surrogateescape")) + 1 + 7 for t in records)
        case Payload.TARGET_DEPS:
            body = _deps.build({"dev": records})
        case Payload.TARGET_MSG:
            body = _msg.build({"sector": records.sector, "message": records.message})
        case _:
            body = _text.build({"text": records})
    return body, len(body)


def _encode_names(entries: tuple[DeviceEntry, ...], header: Header) -> bytes:
    if header.version[:2] < EVENT_NR_SINCE:
        return cast(bytes, _names_v4_0.build([{"dev": huge_encode(e.dev), "name": e.name} for e in entries]))
    records = [
        {
            "dev": huge_encode(e.dev),
            "name": e.name,
            "event_nr": e.event_nr,
            "flags": _HAS_UUID if e.uuid else 0 if e.uuid is None else _DOESNT_HAVE_UUID,
            "uuid": e.uuid or None,
        }
        for e in entries
    ]
    return cast(bytes, _names.build(records))


def _encode(header: Header, payload: Payloads, command: Command, reply: bool, size: int) -> bytes:
    """The canonical encoding in `size` bytes, or in as many as it needs when that is 0."""
    place = header.data_start if header.data_start >= DATA_OFFSET else HEADER_SIZE
    kind = command.gives if reply else command.takes
    body, counted = (b"", 0) if payload is None else _encode_payload(payload, header, kind, reply)
    needed = DATA_OFFSET if payload is None else place + counted
    if not size:
        if reply:
            size = VERSION_SIZE if CommandFlag.HEADER_ONLY in command.flags else header.data_size or needed
        else:
            size = header.data_size or max(REQUEST_SIZE, needed)
    if size > MAX_DATA_SIZE + HEADER_SIZE:
        raise BadBinary(f"a message of {size} bytes, expected at most {MAX_DATA_SIZE}", path="size")
    fields = dict(zip(_header_fields, _header_values(header), strict=True))
    fields["data_size"] = header.data_size or size
    fields["data_start"] = header.data_start or HEADER_SIZE
    if isinstance(payload, tuple) and kind is Payload.TARGET_SPECS and not header.target_count:
        fields["target_count"] = len(payload)
    buffer = _header_codec.build(fields)
    if body and place < size:
        buffer = buffer[:place].ljust(place, b"\0") + body[: size - place]
    return cast(bytes, buffer[:size].ljust(size, b"\0"))


def differences(canonical: bytes, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Runs of `data` that differ from `canonical`, both of one length; runs less than 8 bytes apart are one."""
    mask = int.from_bytes(canonical, "little") ^ int.from_bytes(data, "little")
    for run in re.finditer(rb"[^\0]+(?:\0{1,7}[^\0]+)*", mask.to_bytes(len(data), "little")):
        yield run.start(), data[run.start() : run.end()]


def _bad_binary(error: ConstructError, kind: Payload) -> BadBinary:
    """A schema's error as the peer's fault: its path without Construct's "(parsing)", behind the struct's name."""
    steps = re.sub(r"^\(\w+\)(?: -> )?", "", error.path or "").split(" -> ")
    if steps[0].startswith("["):
        steps[0] = _STRUCTS[kind] + steps[0]
    return BadBinary(str(error).split("\n", 1)[-1], offset=getattr(error, "offset", None), path=".".join(steps))
