"""Translator: binary -> property list -> binary, against plain Construct and plistlib

The peer does the same work with the vanilla schemas of `dmproto.linux`, interpreted by Construct, and with the standard
library's plistlib. It checks less: neither canonical bytes nor the strict grammar of proplib.
"""

from __future__ import annotations

import plistlib
from collections.abc import Callable
from time import process_time

from compare import Report, interleave

from dmproto import linux
from dmproto.commands import BY_NAME, Command
from dmproto.records import DeviceEntry, Header, Message, TargetSpec
from dmproto.schema import Chain
from dmproto.translate import Form, convert
from dmproto.wire import huge_decode, huge_encode

GOAL = 1 / 12
SPEC_KEYS = {"sector_start": "start", "length": "length", "target_type": "type", "params": "params"}
NAME_KEYS = {"dev": "dev", "name": "name", "event_nr": "event_nr"}


def ours(data: bytes, command: Command, reply: bool) -> bytes:
    text = convert(data, source=Form.BINARY, target=Form.PLIST, command=command, reply=reply)
    return convert(text, source=Form.PLIST, target=Form.BINARY, reply=reply)


def peer(chain: Chain | None, keys: dict[str, str]) -> Callable[[bytes], bytes]:
    """The round trip of a program that knows the schemas: fields to keys, keys to fields."""
    fields = {key: name for name, key in keys.items()}

    def round_trip(data: bytes) -> bytes:
        header = linux.dm_ioctl.parse(data)
        entries = []
        if chain is not None:
            count = {"count": header.target_count} if chain.counted else {}
            entries = chain.parse(data[linux.HEADER_SIZE : header.data_size], **count)
        obj = {
            "command": "x",
            "version": list(header.version),
            "flags": header.flags,
            "minor": huge_decode(header.dev)[1],
            "name": header.name,
            "uuid": header.uuid,
            "cmd_data": [{key: entry[name] for name, key in keys.items()} for entry in entries],
        }
        read = plistlib.loads(plistlib.dumps(obj))
        body = b""
        if chain is not None:
            absent = {"uuid": None, "flags": 0, "status": 0}
            body = chain.build([{**absent, **{fields[key]: v for key, v in r.items()}} for r in read["cmd_data"]])
        dev = huge_encode((253, read["minor"])) if header.dev else 0
        return (linux.dm_ioctl.build({**header, **read, "dev": dev}) + body).ljust(len(data), b"\0")

    return round_trip


def status() -> bytes:
    header = Header(version=(4, 0, 0), flags=4, name="vg-lv0")
    return linux.build(Message(command=BY_NAME["DEV_STATUS"], header=header))


def table(count: int) -> bytes:
    specs = tuple(TargetSpec(start=n * 128, length=128, type="linear", params=f"7:0 {n * 128}") for n in range(count))
    header = Header(version=(4, 0, 0), flags=0xC, dev=0xFD03)
    return linux.build(Message(command=BY_NAME["TABLE_LOAD"], header=header, payload=specs))


def listing(count: int) -> bytes:
    entries = tuple(DeviceEntry(name=f"vg-lv{n:06}", dev=(253, n), event_nr=n % 3) for n in range(count))
    header = Header(version=(4, 48, 0), flags=4)
    return linux.build(Message(command=BY_NAME["LIST_DEVICES"], reply=True, header=header, payload=entries))


def run(report: Report) -> None:
    specs, names = Chain(linux.dm_target_spec, counted=True), Chain(linux.dm_name_list)
    cases = [
        ("header", status(), "DEV_STATUS", peer(None, {})),
        *((f"table of {n}", table(n), "TABLE_LOAD", peer(specs, SPEC_KEYS)) for n in (1, 100, 10_000)),
        *((f"list of {n}", listing(n), "LIST_DEVICES", peer(names, NAME_KEYS)) for n in (1000, 100_000)),
    ]
    for case, data, name, plain in cases:
        command, reply = BY_NAME[name], name == "LIST_DEVICES"
        plistlib_equals = plain(data) == data
        if not (ours(data, command, reply) == data and plistlib_equals):
            raise AssertionError(f"{case}: the contestants do not agree")
        contestants = {
            "ours": lambda data=data, command=command, reply=reply: ours(data, command, reply),
            "Construct + plistlib": lambda data=data, plain=plain: plain(data),
        }
        rounds = 3 if len(data) > 1_000_000 else 15
        medians = interleave(contestants, rounds=rounds, clock=process_time)
        report.add(case, medians, "ours", ["Construct + plistlib"], GOAL)
