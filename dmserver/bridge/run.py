"""`dmserver run`: an unmodified program in a device-mapper of its own, or in that of a running server."""

from __future__ import annotations

import argparse
import sys

from dmserver.host import Host
from dmserver.loop import Loop

from .bridge import Bridge
from .program import Program

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pdev",
        action="append",
        default=[],
        metavar="DEVICE=BACKING[,dev=MAJ:MIN][,ro]",
        help="a disk: the path that programs name, and a file or ram:SIZE behind it",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ARG", help="what to run")


def main(args: argparse.Namespace) -> int:
    """Run the program; returns its exit status, 125 to 127 when it could not be started."""
    argv = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not argv:
        print("dmserver run: no program given", file=sys.stderr)
        return 125
    loop = Loop()
    host = Host()
    try:
        for pdev in args.pdev:
            host.add_pdev(pdev)
        program = Program(argv)
    except (OSError, ValueError) as error:
        print(f"dmserver run: {error}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) and error.filename == argv[0] else 125
    bridge = Bridge(loop, host)
    try:
        bridge.supervise(program.listener)
        program.watch(loop)
        loop.run()
    finally:
        bridge.close()
        host.close()
        program.close()
        loop.close()
    return program.leave()
