"""Binary codec: fused schemas, hand-written struct code, and Construct's own interpreted classes"""

from __future__ import annotations

import struct
from time import process_time
from typing import Any

from compare import Report, interleave
from construct import Array, CString, If, Int32sl, Int32ul, Int64ul, PaddedString, Padding, Struct, this

from dmproto import linux
from dmproto.codegen import fuse
from dmproto.schema import Align, Chain

HEADER = struct.Struct("<6Ii3IQ128s129s7x")
SPEC = struct.Struct("<QQiI16s")
NAME = struct.Struct("<QI")
TAIL = struct.Struct("<II")

# The structs as one writes them with Construct alone: PaddedString and CString for text.
PLAIN_HEADER = Struct(
    "version" / Array(3, Int32ul),
    "data_size" / Int32ul,
    "data_start" / Int32ul,
    "target_count" / Int32ul,
    "open_count" / Int32sl,
    "flags" / Int32ul,
    "event_nr" / Int32ul,
    "padding" / Int32ul,
    "dev" / Int64ul,
    "name" / PaddedString(128, "utf8"),
    "uuid" / PaddedString(129, "utf8"),
    Padding(7),
)
PLAIN_SPEC = Struct(
    "sector_start" / Int64ul,
    "length" / Int64ul,
    "status" / Int32sl,
    "next" / Int32ul,
    "target_type" / PaddedString(16, "utf8"),
    "params" / CString("utf8"),
)
PLAIN_NAME = Struct(
    "dev" / Int64ul,
    "next" / Int32ul,
    "name" / CString("utf8"),
    Align(8),
    "event_nr" / Int32ul,
    "flags" / Int32ul,
    "uuid" / If(this.flags & 1, CString("utf8")),
)

FIELDS = {
    "version": [4, 47, 0],
    "data_size": 16384,
    "data_start": 312,
    "target_count": 1,
    "open_count": 0,
    "flags": 0x20,
    "event_nr": 7,
    "padding": 0,
    "dev": 0xFD00,
    "name": "vg-root",
    "uuid": "LVM-abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
}


def hand_parse_header(data: bytes) -> dict[str, Any]:
    if len(data) < 312:
        raise ValueError("short")
    v0, v1, v2, size, start, count, opens, flags, event, padding, dev, name, uuid = HEADER.unpack_from(data)
    return {
        "version": [v0, v1, v2],
        "data_size": size,
        "data_start": start,
        "target_count": count,
        "open_count": opens,
        "flags": flags,
        "event_nr": event,
        "padding": padding,
        "dev": dev,
        "name": name[: name.index(0)].decode("utf-8", "surrogateescape"),
        "uuid": uuid[: uuid.index(0)].decode("utf-8", "surrogateescape"),
    }


def hand_build_header(h: dict[str, Any]) -> bytes:
    name = h["name"].encode("utf-8", "surrogateescape")
    uuid = h["uuid"].encode("utf-8", "surrogateescape")
    if len(name) > 127 or len(uuid) > 128:
        raise ValueError("long")
    return HEADER.pack(
        *h["version"],
        h["data_size"],
        h["data_start"],
        h["target_count"],
        h["open_count"],
        h["flags"],
        h["event_nr"],
        h["padding"],
        h["dev"],
        name,
        uuid,
    )


def hand_parse_table(data: bytes, count: int) -> list[dict[str, Any]]:
    entries = []
    offset, end = 0, len(data)
    for _ in range(count):
        start, length, status, following, kind = SPEC.unpack_from(data, offset)
        nul = data.index(0, offset + 40, end)
        entries.append(
            {
                "sector_start": start,
                "length": length,
                "status": status,
                "next": following,
                "target_type": kind.partition(b"\0")[0].decode("utf-8", "surrogateescape"),
                "params": data[offset + 40 : nul].decode("utf-8", "surrogateescape"),
            }
        )
        if following < 40:
            raise ValueError("next")
        offset += following
    return entries


def hand_build_table(entries: list[dict[str, Any]]) -> bytes:
    parts = []
    for e in entries:
        kind = e["target_type"].encode("utf-8", "surrogateescape")
        params = e["params"].encode("utf-8", "surrogateescape")
        if len(kind) > 16:
            raise ValueError("long")
        size = (40 + len(params) + 8) & -8
        parts.append(SPEC.pack(e["sector_start"], e["length"], e["status"], size, kind))
        parts.append(params.ljust(size - 40, b"\0"))
    return b"".join(parts)


def hand_parse_list(data: bytes) -> list[dict[str, Any]]:
    entries = []
    offset, end = 0, len(data)
    while True:
        dev, following = NAME.unpack_from(data, offset)
        nul = data.index(0, offset + 12, end)
        event, flags = TAIL.unpack_from(data, tail := (nul + 8) & -8)
        uuid = None
        if flags & 1:
            uuid = data[tail + 8 : data.index(0, tail + 8, end)].decode("utf-8", "surrogateescape")
        entries.append(
            {
                "dev": dev,
                "next": following,
                "name": data[offset + 12 : nul].decode("utf-8", "surrogateescape"),
                "event_nr": event,
                "flags": flags,
                "uuid": uuid,
            }
        )
        if not following:
            return entries
        if following < 12:
            raise ValueError("next")
        offset += following


def hand_build_list(entries: list[dict[str, Any]]) -> bytes:
    parts = []
    last = len(entries) - 1
    for index, e in enumerate(entries):
        name = e["name"].encode("utf-8", "surrogateescape") + b"\0"
        name += bytes((4 - len(name)) % 8)
        tail = e["uuid"].encode("utf-8", "surrogateescape") + b"\0" if e["flags"] & 1 else b""
        tail += bytes(-len(tail) % 8)
        size = 12 + len(name) + 8 + len(tail)
        parts += NAME.pack(e["dev"], 0 if index == last else size), name, TAIL.pack(e["event_nr"], e["flags"]), tail
    return b"".join(parts)


def run(report: Report) -> None:
    header = fuse(linux.dm_ioctl, "dm_ioctl")
    data = header.build(FIELDS)
    _both(report, "header", header, PLAIN_HEADER, hand_parse_header, hand_build_header, data, FIELDS, goal=1.3)

    plain = Chain(PLAIN_SPEC, counted=True)
    table = fuse(Chain(linux.dm_target_spec, counted=True), "table")
    for count in (1, 100, 10_000):
        specs = [
            {"sector_start": 8 * n, "length": 8, "status": 0, "target_type": "linear", "params": f"8:16 {8 * n + 384}"}
            for n in range(count)
        ]
        data = table.build(specs)
        goal = 1.1 if count >= 100 else None
        case, context = f"table of {count}", {"count": count}
        _both(report, case, table, plain, hand_parse_table, hand_build_table, data, specs, goal=goal, **context)

    plain = Chain(PLAIN_NAME)
    names = fuse(Chain(linux.dm_name_list), "names")
    for count in (100, 10_000):
        devices = [
            {"dev": 0xFD00 + n, "name": f"vg-volume{n}", "event_nr": 0, "flags": 1, "uuid": f"LVM-{n:032}"}
            for n in range(count)
        ]
        data = names.build(devices)
        case = f"list of {count}"
        _both(report, case, names, plain, hand_parse_list, hand_build_list, data, devices, goal=1.1)


def _both(
    report: Report,
    case: str,
    fused: Any,
    plain: Any,
    hand_parse: Any,
    hand_build: Any,
    data: bytes,
    obj: Any,
    *,
    goal: float | None,
    **context: int,
) -> None:
    """Rows for parsing and for building of one message. `context` is what the parsers need to know besides."""
    assert fused.parse(data, **context) == hand_parse(data, **context)
    assert fused.build(obj) == plain.build(obj)
    parsing = {
        "fused": lambda: fused.parse(data, **context),
        "hand struct": lambda: hand_parse(data, **context),
        "plain Construct": lambda: plain.parse(data, **context),
    }
    building = {
        "fused": lambda: fused.build(obj),
        "hand struct": lambda: hand_build(obj),
        "plain Construct": lambda: plain.build(obj),
    }
    for verb, contestants in (("parse", parsing), ("build", building)):
        medians = interleave(contestants, seconds=1.0, rounds=15, clock=process_time)
        report.add(f"{case}, {verb}", medians, "fused", ["hand struct"], goal)
        report.add(f"{case}, {verb}", medians, "fused", ["plain Construct"], goal and 1 / 20)
