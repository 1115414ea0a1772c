"""The `dmserver` tool: each subcommand is a module with `add_arguments(parser)` and `main(args)`."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from importlib import import_module

from dmproto.completion import add_completion

__all__ = ["main"]

COMMANDS = {
    "serve": ("dmserver.serve", "serve a device-mapper on a socket"),
    "run": ("dmserver.bridge.run", "run an unmodified program on a device-mapper of its own"),
    "record": ("dmserver.bridge.record", "run a program and write down its device-mapper requests"),
    "doctor": ("dmserver.bridge.doctor", "tell what this machine allows, and what follows"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand."""
    gc.disable()  # what comes now, modules above all, stays to the end
    try:
        args = _parse(sys.argv[1:] if argv is None else list(argv))
    finally:
        gc.enable()
    gc.freeze()
    status: int = import_module(COMMANDS[args.command][0]).main(args)
    return status


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Only the module of the subcommand is imported, unless a completion script has to know all of them."""
    parser = argparse.ArgumentParser(prog="dmserver", description="A device-mapper that runs anywhere.")
    add_completion(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=parser.prog)
    chosen = [name for name in COMMANDS if words[:1] == [name]]
    for name in chosen or COMMANDS:
        module, text = COMMANDS[name]
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if chosen or words[:1] == ["--print-completion"]:
            import_module(module).add_arguments(command)
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
