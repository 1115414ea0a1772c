"""dmctl(8): NetBSD's tool, its commands and its output (sbin/dmctl/dmctl.c), and the rest of the protocol.

Standard output and exit status are those of the original. It takes the command first, then the device's name; what it
has no command for is in `_EXTRA`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TextIO

from dmproto import proplib
from dmproto.completion import print_completion
from dmproto.flags import DmFlag
from dmproto.output import print_lines, reason
from dmproto.proplib import Unsigned
from dmproto.wire import netbsd_decode

from .client import SOCKET_DEFAULT, VERSION, Client, CommandError

__all__ = ["COMMANDS", "main", "run"]

Send = Callable[..., dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Command:
    """One row. `function` is the original's, for its error messages; `verb` the protocol's word where it differs.
    `keys(arguments, stdin)` makes the request's keys, `show(reply, arguments)` the lines of output."""

    name: str
    arguments: str
    help: str
    function: str = ""
    _: KW_ONLY
    verb: str = ""
    keys: Callable[[Sequence[str], TextIO], dict[str, Any]] = lambda arguments, stdin: _name(arguments)
    show: Callable[[dict[str, Any], Sequence[str]], Iterable[str]] = lambda reply, arguments: ()

    @property
    def complaint(self) -> str:
        """What stands in front of the errno's text; the original is not consistent."""
        special = {
            "dmctl_get_device_info": "dmctl_get_device_info: libdm_task_run failed",
            "dmctl_table_reload": "libdm_task_run: from dmctl_table_reload failed.",
            "dmctl_table_status": "libdm_task_run",
        }
        return special.get(self.function, f"{self.function or self.name}: libdm_task_run failed.")


def _name(arguments: Sequence[str]) -> dict[str, Any]:
    return {"name": arguments[0]} if arguments else {}


def _flagged(flag: DmFlag) -> Callable[[Sequence[str], TextIO], dict[str, Any]]:
    return lambda arguments, stdin: {**_name(arguments), "flags": Unsigned(flag)}


def _new_name(arguments: Sequence[str], stdin: TextIO) -> dict[str, Any]:
    return {**_name(arguments), "cmd_data": [arguments[1]]}


def _table_lines(arguments: Sequence[str], stdin: TextIO) -> dict[str, Any]:
    lines = enumerate(stdin, 1)
    return {**_name(arguments), "cmd_data": [_entry(number, line) for number, line in lines if line.strip()]}


def _entry(number: int, line: str) -> dict[str, Any]:
    words = line.rstrip("\n").split(maxsplit=3)
    if len(words) < 3 or not (words[0].isdecimal() and words[1].isdecimal()):
        raise ValueError(f"line {number}: expected START LENGTH TARGET PARAMETERS, got {line.rstrip()!r}")
    start, length = (Unsigned(int(word)) for word in words[:2])
    return {"start": start, "length": length, "type": words[2], "params": words[3] if len(words) > 3 else ""}


def _show_version(reply: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    yield "Kernel protocol version {:d}:{:d}:{:d}".format(*reply["version"])


def _show_targets(reply: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    for entry in reply.get("cmd_data", ()):
        yield f"Target name: {entry['name']}"
        yield "Target version {:d}.{:d}.{:d}\n".format(*entry["ver"])


def _show_names(reply: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    for entry in reply.get("cmd_data", ()):
        yield f"Device name: {entry['name']}, device minor: {entry['dev']:d} "


def _show_info(reply: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    yield "Printing Device info for:"
    yield f"Device name: \t\t{reply.get('name', '(null)')}"
    yield f"Device uuid: \t\t{reply.get('uuid', '(null)')}"
    yield f"Device minor: \t\t{reply.get('minor', 0):d}"
    yield f"Device target number: \t{reply.get('target_count', 0):d}"
    yield f"Device flags: \t\t{reply.get('flags', 0):d}"


def _show_deps(reply: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    """Number 0 ends the list: libdm cannot tell it from the end."""
    yield f"Device {arguments[0]} dependencies "
    for number in reply.get("cmd_data", ()):
        if not number:
            return
        yield "major: {} minor: {}".format(*netbsd_decode(number))


def _show_table(reply: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    yield f"Getting device table for device {arguments[0]}"
    for entry in reply.get("cmd_data", ()):
        yield f"{entry['start']:10d} {entry['length']:10d} {entry['type']}"


def _show_status(reply: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    for entry in reply.get("cmd_data", ()):
        yield f"{entry['start']:d} {entry['length']:d} {entry['type']} {entry.get('params', '')}".rstrip()


def _show_event(reply: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    yield f"Device event number: \t{reply.get('event_nr', 0):d}"


def _show_text(reply: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    return (entry for entry in reply.get("cmd_data", ()) if isinstance(entry, str))


def _show_pdevs(reply: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    for entry in reply.get("cmd_data", ()):
        yield f"{entry['dev']:>8} {entry['ref_cnt']:6d} {entry['size']:12d} {entry['path']}"


def _number(word: str, what: str) -> Unsigned:
    if not (word.isascii() and word.isdecimal()):
        raise ValueError(f"{what}: expected a number, got {word!r}")
    return Unsigned(int(word))


def _event_nr(arguments: Sequence[str], stdin: TextIO) -> dict[str, Any]:
    return {**_name(arguments), "event_nr": _number(arguments[1], "EVENT")} if arguments[1:] else _name(arguments)


def _message(arguments: Sequence[str], stdin: TextIO) -> dict[str, Any]:
    name, sector, *words = arguments
    return {"name": name, "cmd_data": [{"sector": _number(sector, "SECTOR"), "message": " ".join(words)}]}


def _geometry(arguments: Sequence[str], stdin: TextIO) -> dict[str, Any]:
    return {**_name(arguments), "cmd_data": [" ".join(arguments[1:])]}


_TABLE = _flagged(DmFlag.STATUS_TABLE)

_ORIGINAL = (
    _Command("version", "", "print the versions of protocol and driver", "dmctl_get_version", show=_show_version),
    _Command("targets", "", "list the target types", "dmctl_get_targets", show=_show_targets),
    _Command("create", "NAME", "create a device", "dmctl_create_dev"),
    _Command("ls", "", "list the devices", "dmctl_list_devices", verb="names", show=_show_names),
    _Command("info", "NAME", "print what there is to know of a device", "dmctl_get_device_info", show=_show_info),
    _Command("rename", "NAME NEWNAME", "give a device another name", "dmctl_dev_rename", keys=_new_name),
    _Command("remove", "NAME", "remove a device", "dmctl_dev_remove"),
    _Command("resume", "NAME", "let I/O run; a table that waits becomes the live one", "dmctl_dev_resume"),
    _Command("suspend", "NAME", "hold I/O", "dmctl_dev_suspend", keys=_flagged(DmFlag.SUSPEND)),
    _Command("deps", "NAME", "print the devices underneath", "dmctl_dev_deps", show=_show_deps),
    _Command(
        "reload",
        "NAME",
        "load a table, lines of START LENGTH TARGET PARAMETERS on standard input",
        "dmctl_table_reload",
        keys=_table_lines,
    ),
    _Command("status", "NAME", "the same as table", "dmctl_table_status", verb="table", keys=_TABLE, show=_show_table),
    _Command(
        "table",
        "NAME",
        "print the live table but for its parameters, which --json shows",
        "dmctl_table_status",
        keys=_TABLE,
        show=_show_table,
    ),
)

_EXTRA = (
    _Command("targetstatus", "NAME", "print what the live targets say", verb="status", show=_show_status),
    _Command("clear", "NAME", "drop the table that waits"),
    _Command("remove_all", "", "remove all devices that are not open"),
    _Command("mknodes", "NAME", "the same as info", show=_show_info),
    _Command("waitevent", "NAME [EVENT]", "wait until the event number is not EVENT", keys=_event_nr, show=_show_event),
    _Command(
        "message", "NAME SECTOR WORD...", "send a message to the target at SECTOR", keys=_message, show=_show_text
    ),
    _Command("setgeometry", "NAME CYLINDERS HEADS SECTORS START", "set the geometry", keys=_geometry),
    _Command("target-version", "TARGET", "print the version of a target type", show=_show_targets),
    _Command("pdevs", "", "list the physical devices: number, references, sectors, path", show=_show_pdevs),
    _Command("log", "", "print the kernel's log", show=_show_text),
)

COMMANDS: dict[str, _Command] = {command.name: command for command in (*_ORIGINAL, *_EXTRA)}


def run(command: _Command, arguments: Sequence[str], send: Send, *, stdin: TextIO, json: bool = False) -> int:
    """Carry out one command through `send(verb, **keys)`; returns the exit status. ValueError for a bad argument."""
    if command.name == "version" and not json:
        print("Library protocol version {}:{}:{}".format(*VERSION))
    try:
        reply = send(command.verb or command.name, **command.keys(arguments, stdin))
    except CommandError as failure:
        if json:
            print(_json(failure.reply))
        words = os.strerror(failure.errno or 0)
        told = "" if failure.strerror == words else f" ({failure.strerror})"
        print(f"dmctl: {command.complaint}: {words}{told}", file=sys.stderr)
        return 1
    return 0 if print_lines([_json(reply)] if json else command.show(reply, arguments)) else 1


def _json(reply: dict[str, Any]) -> str:
    return proplib.dumps_json(reply).decode("utf-8", "surrogateescape").rstrip()


def _fits(usage: str, count: int) -> bool:
    """Whether so many arguments are right for a usage like `NAME [EVENT]` or `NAME SECTOR WORD...`."""
    words = usage.split()
    needed = sum(not word.startswith("[") for word in words)
    return needed <= count and (count <= len(words) or usage.endswith("..."))


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {f'{row.name} {row.arguments}':<50} {row.help}" for row in COMMANDS.values())
    parser = argparse.ArgumentParser(
        prog="dmctl",
        description="Talk to a device-mapper server.",
        epilog=f"commands:\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--socket", metavar="PATH", help=f"the server's socket (default: {SOCKET_DEFAULT})")
    parser.add_argument("--json", action="store_true", help="print the reply as JSON on one line")
    parser.add_argument("--print-completion", metavar="SHELL", help="print a completion script (bash, zsh, tcsh)")
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="what to do")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="mostly the name of a device")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The `dmctl` program; returns the exit status."""
    parser = _parser()
    options = parser.parse_intermixed_args(argv)
    if options.print_completion is not None:
        for action in parser._actions:
            if action.dest == "command":
                action.choices = list(COMMANDS)
        return print_completion(parser, options.print_completion)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 1
    command = COMMANDS.get(options.command)
    if command is None:
        print(f"dmctl: unknown command: {options.command} (dmctl --help lists them)", file=sys.stderr)
        return 1
    if not _fits(command.arguments, len(options.arguments)):  # too many are "insufficient" to the original, too
        print(f"Insufficient number of arguments for command: {command.name} specified", file=sys.stderr)
        parser.print_usage(sys.stderr)
        print(f"  {command.name} {command.arguments}", file=sys.stderr)
        return 1
    try:
        client = Client(options.socket)
    except OSError as failure:
        print(f"dmctl: no server at {failure.filename}: {failure.strerror}", file=sys.stderr)
        return 1
    except LookupError as failure:
        print(f"dmctl: {failure}", file=sys.stderr)
        return 1
    try:
        with client:
            return run(command, options.arguments, client.command, stdin=sys.stdin, json=options.json)
    except (OSError, LookupError, ValueError) as failure:
        print(f"dmctl: {reason(failure)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
