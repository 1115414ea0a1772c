"""Property lists: dmproto.proplib against the standard library's plistlib, both ways."""

from __future__ import annotations

import plistlib
from functools import partial
from time import process_time

from compare import Report, interleave

from dmproto.proplib import Object, Unsigned, dumps, loads

GOAL = 1 / 2.5


def run(report: Report) -> None:
    for name, obj in {
        "reply of 1 KB": _reply(5),
        "table of 100 KB": _table(430),
        "device list of 100 KB": _devices(830),
        "device list of 10 MB": _devices(83_000),
        "table of 10 MB": _table(43_000),
        "heterogeneous, 1 MB": _heterogeneous(2_800),
    }.items():
        text = dumps(obj)
        assert loads(text) == obj == plistlib.loads(text)
        rounds = 5 if len(text) > 1_000_000 else 15  # a round calls each at least once
        for case, contestants in {
            f"parse {name}": {"proplib": partial(loads, text), "plistlib": partial(plistlib.loads, text)},
            f"build {name}": {"proplib": partial(dumps, obj), "plistlib": partial(plistlib.dumps, obj)},
        }.items():
            medians = interleave(contestants, rounds=rounds, clock=process_time)
            report.add(case, medians, "proplib", ["plistlib"], GOAL)


def _request(command: str, cmd_data: list[Object]) -> Object:
    version: list[Object] = [Unsigned(4), Unsigned(16), Unsigned(0)]
    return {"command": command, "version": version, "flags": Unsigned(4), "minor": Unsigned(1), "cmd_data": cmd_data}


def _reply(targets: int) -> Object:
    return _request(
        "targets", [{"name": f"target{n}", "ver": [Unsigned(1), Unsigned(0), Unsigned(n)]} for n in range(targets)]
    )


def _table(lines: int) -> Object:
    return _request("reload", [_line(n) for n in range(lines)])


def _line(n: int) -> Object:
    params = f"/dev/mapper/vg-pv{n % 40:02} {n * 8192}"
    return {"start": Unsigned(n * 8192), "length": Unsigned(8192), "status": 0, "type": "linear", "params": params}


def _devices(count: int) -> Object:
    return _request("names", [{"dev": Unsigned(n), "name": f"vg{n % 16}-volume{n:06}"} for n in range(count)])


def _heterogeneous(count: int) -> Object:
    shapes: list[Object] = []
    for n in range(count):
        members: list[tuple[str, Object]] = [
            ("name", f"R&D <{n}>"),
            ("dev", Unsigned(n)),
            (f"key{n % 97}", -n),
            ("deps", [Unsigned(n), Unsigned(n * 256)]),
            ("uuid", f"LVM-{n:032x}"),
            ("nested", {"open": n % 2 == 0, "blob": bytes([n % 256, 1, 2, 3]), "empty": ""}),
            ("text", "snapshot merge of a thin pool " * (n % 5)),
        ]
        shapes.append(dict(members[n % 4 :] + members[: n % 3]))
    return {"shapes": shapes}
