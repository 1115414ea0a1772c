"""`dmserver run`: an unmodified program in a device-mapper of its own, or in that of a running server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

from dmproto.output import reason
from dmserver.host import Host
from dmserver.loop import Loop

from .bridge import Bridge
from .control import Door
from .program import Program

__all__ = ["add_arguments", "main", "run_private"]

NOT_STARTED, NOT_FOUND = 125, 127


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", metavar="PATH", help="join the device-mapper of the server at PATH")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="when the program has ended, keep its device-mapper and serve it at a socket",
    )
    add_program_arguments(parser)


def add_program_arguments(parser: argparse.ArgumentParser) -> None:
    """Disks and the program."""
    parser.add_argument(
        "--pdev",
        action="append",
        default=[],
        metavar="DEVICE=BACKING[,dev=MAJ:MIN][,ro]",
        help="a disk: the path that programs name, and a file or ram:SIZE behind it",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ARG", help="what to run")


def main(args: argparse.Namespace) -> int:
    """Run the program; returns its exit status, 125 or 127 when it could not be started."""
    if args.socket is None:
        return run_private("run", args, lambda host: host, keep=args.keep)
    if args.pdev or args.keep:
        print("dmserver run: --pdev and --keep are the server's own business; not with --socket", file=sys.stderr)
        return NOT_STARTED
    from .join import join, knock

    try:
        argv = _argv(args)
        with knock(args.socket) as door:
            program = Program(argv)
            join(door, program.listener)
    except (OSError, ValueError) as error:
        return _refused("run", error)
    loop = Loop()
    program.watch(loop)
    loop.run()
    program.close()
    loop.close()
    return program.leave()


def run_private(tool: str, args: argparse.Namespace, door: Callable[[Host], Door], *, keep: bool = False) -> int:
    """Run the program on a fresh host; its control nodes lead to `door(host)`."""
    host = Host()
    try:
        _add_pdevs(host, args.pdev)
        program = Program(_argv(args))
    except (OSError, ValueError) as error:
        host.close()
        return _refused(tool, error)
    loop = Loop()
    bridge = Bridge(loop, host, door(host))
    try:
        bridge.supervise(program.listener)
        program.watch(loop)
        loop.run()
        program.close()
        if keep:
            from .keep import serve

            serve(loop, host)
        program.end_others()
    finally:
        bridge.close()
        host.close()
        loop.close()
    return program.leave()


def _add_pdevs(host: Host, pdevs: Iterable[str]) -> None:
    for pdev in pdevs:
        try:
            host.add_pdev(pdev)
        except OSError as error:  # not the program's: it need not be what is missing
            raise ValueError(f"--pdev {pdev}: {error.strerror}") from None


def _argv(args: argparse.Namespace) -> list[str]:
    argv: list[str] = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not argv:
        raise ValueError("no program given")
    return argv


def _refused(tool: str, error: Exception) -> int:
    print(f"dmserver {tool}: {reason(error)}", file=sys.stderr)
    return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_STARTED
