"""The tables of specs/*.md, made from the code they describe.

In a page a table follows its mark, `<!-- table: NAME -->`. `PYTHONPATH=tests python -m support.spec_tables` writes all
of them anew; test_specs.py holds them against the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from construct import Array, Rebuild, Renamed, SizeofError, Struct
from support.bridge_replay import EXCLUDED, MASKS, SESSIONS

from dmproto import draft2008, libdm, linux, netbsd, translate
from dmproto.commands import COMMANDS, CommandFlag
from dmproto.flags import DmFlag
from dmproto.objects import Dictionary
from dmserver.bridge.blockioctl import IOCTLS
from dmserver.bridge.loopdev import CONTROL_IOCTLS, LOOP_IOCTLS
from dmserver.bridge.namespace import PATHS
from dmserver.bridge.rules import SYSCALL_RULES

SPECS = Path(__file__).parents[2] / "specs"
MARK = re.compile(r"<!-- table: ([\w. ]+) -->\n\n?((?:\|.*\n)*\n?)")


def table(head: str, rows: Iterable[tuple[object, ...]]) -> str:
    """A Markdown table; `head` is its heading, `a | b`."""
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def keys(dictionary: Dictionary) -> str:
    """A row for each key of a dictionary."""
    rows = [
        (f"`{k.name}`", kind(k.subcon), "always" if k.required else "when told", k.flow, k.source or "ours")
        for k in dictionary.keys
    ]
    return table("key | type | there | in/out | source", rows)


def kind(schema: Any) -> str:
    """The type of an object in words."""
    match type(schema).__name__:
        case "Number":
            return f"{'signed' if schema.signed else 'unsigned'}, {schema.bits} bits"
        case "String":
            return "string" if schema.limit is None else f"string, {schema.limit} bytes"
        case "Array":
            count = "" if schema.count is None else f"{schema.count} x "
            return f"array of {count}({kind(schema.subcon)})"
        case _:
            return ", ".join(f"`{k.name}`" for k in schema.keys)


def fields(struct: Struct) -> Iterator[tuple[object, ...]]:
    """Offset, size, name and type of the fields of a C struct; `-` where they vary."""
    offset: int | None = 0
    for sub in struct.subcons:
        try:
            size = sub.sizeof()
        except (SizeofError, KeyError):
            size = None  # the text, or what the text before it decides
        place, length = ("-" if number is None else number for number in (offset, size))
        yield place, length, f"`{sub.name}`" if sub.name else "", c_type(sub)
        offset = None if offset is None or size is None else offset + size


def c_type(schema: Any) -> str:
    """What a schema is, in C's words."""
    while isinstance(schema, Renamed):
        schema = schema.subcon
    match schema:
        case Array():
            return f"{c_type(schema.subcon)}[{schema.count if isinstance(schema.count, int) else ''}]"
        case Rebuild():
            return c_type(schema.subcon)
    name = type(schema).__name__
    if name == "FormatField":
        return f"{'i' if schema.fmtstr[-1].islower() else 'u'}{8 * schema.sizeof()}"
    if name == "FixedText":
        return f"char[{schema.size}]"
    others = {"Text": "string, NUL", "Padded": "padding", "Align": "padding to 8", "IfThenElse": "string, NUL, or none"}
    return others[name]


def commands() -> Iterator[tuple[object, ...]]:
    for c in COMMANDS:
        netbsd_has = "yes" if CommandFlag.NETBSD in c.flags else "no"
        since = ".".join(map(str, c.since))
        yield c.number, f"DM_{c.name}", ", ".join(c.verbs), c.takes.value, c.gives.value, since, netbsd_has


def cmd_data() -> Iterator[tuple[object, ...]]:
    for c in COMMANDS:
        takes, gives = (netbsd.CMD_DATA.get(p) for p in (c.takes, c.gives))
        yield ", ".join(c.verbs), kind(takes) if takes else "empty", kind(gives) if gives else "none"


def bridge_sessions() -> Iterator[tuple[object, ...]]:
    for file, rung in sorted(SESSIONS.items(), key=lambda item: item[1]):
        reasons = [f"{numbers(lines)}: {reason}" for name, lines, reason in EXCLUDED if name == file]
        yield rung, f"`{file}`", "; ".join(reasons) or "all steps equal"


def numbers(lines: tuple[int, ...]) -> str:
    """Line numbers, runs written short."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][-1] + 1:
            runs[-1].append(line)
        else:
            runs.append([line])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


TABLES: dict[str, Callable[[], str]] = {
    "commands": lambda: table("number | Linux | NetBSD | takes | gives | since | in NetBSD's driver", commands()),
    "flags": lambda: table("bit | name", [(f"0x{flag:x}", flag.name) for flag in DmFlag]),
    "netbsd.HEADER": lambda: keys(netbsd.HEADER),
    "netbsd.CMD_DATA": lambda: table("command | in a request | in a reply", cmd_data()),
    "netbsd.WRITTEN": lambda: table(
        "reply to | holds always",
        [(verb, ", ".join(f"`{key}`" for key in sorted(written))) for verb, written in netbsd.WRITTEN.items()],
    ),
    "draft2008.HEADER": lambda: keys(draft2008.HEADER),
    "translate.EXTENSION": lambda: keys(translate.EXTENSION),
    "bridge syscalls": lambda: table(
        "rung | system calls | answer", [(r.rung, " ".join(r.names), r.answer) for r in SYSCALL_RULES]
    ),
    "bridge paths": lambda: table("rung | path | answer", [(r.rung, f"`{r.path}`", r.answer) for r in PATHS]),
    "bridge ioctls": lambda: table(
        "rung | ioctl | number | answer", [(r.rung, r.name, f"{n:#x}", r.answer) for n, r in IOCTLS.items()]
    ),
    "bridge loop": lambda: table(
        "on | ioctl | number",
        [("/dev/loop-control", name, f"{n:#x}") for n, (name, _) in CONTROL_IOCTLS.items()]
        + [("/dev/loopN", name, f"{n:#x}") for n, (name, _) in LOOP_IOCTLS.items()],
    ),
    "bridge sessions": lambda: table("rung | session | not compared, and why", bridge_sessions()),
    "bridge masks": lambda: table("masked | why", [(f"`{p}`".replace("|", "\\|"), why) for p, _, why in MASKS]),
    "libdm.CHAR_MAJORS": lambda: table("block major | char major", libdm.CHAR_MAJORS.items()),
    **{
        f"netbsd {payload.name}": lambda schema=schema: keys(schema.subcon)
        for payload, schema in netbsd.CMD_DATA.items()
        if isinstance(schema.subcon, Dictionary)
    },
    **{
        f"draft2008 {payload.name}": lambda schema=schema: keys(schema)
        for payload, schema in draft2008.CMD_DATA.items()
    },
    **{
        f"linux.{name}": lambda name=name: table("offset | size | field | type", fields(getattr(linux, name)))
        for name in linux.__all__
        if isinstance(getattr(linux, name), Struct)
    },
}


def renew(text: str) -> str:
    """A page with its tables as the code has them. Raises KeyError for a table that nothing makes."""
    return MARK.sub(lambda match: f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]]()}\n", text).rstrip("\n") + "\n"


if __name__ == "__main__":
    for page in SPECS.glob("*.md"):
        page.write_text(renew(page.read_text()))
