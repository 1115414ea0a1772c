"""Shell completion of the tools, by shtab (extra `completion`)."""

from __future__ import annotations

import argparse
import sys

__all__ = ["add_completion", "print_completion"]

#: What completes an argument, by its metavar: names of shtab's.
_PLACES = {"FILE": "FILE", "PATH": "FILE", "DIR": "DIRECTORY"}


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Give a parser `--print-completion SHELL`, which prints the script for `parser` as it is then, and ends."""
    parser.add_argument(
        "--print-completion", action=_Print, metavar="SHELL", help="print a completion script (bash, zsh, tcsh)"
    )


def print_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    """The exit status: 1 without shtab or when the reader had enough, 2 for a shell that shtab does not know."""
    try:
        import shtab
    except ImportError:
        print(f"{parser.prog}: --print-completion needs shtab: pip install 'dmproto[completion]'", file=sys.stderr)
        return 1
    if shell not in shtab.SUPPORTED_SHELLS:
        parser.print_usage(sys.stderr)
        print(
            f"{parser.prog}: no completion for {shell}, only for {', '.join(shtab.SUPPORTED_SHELLS)}", file=sys.stderr
        )
        return 2
    from .output import print_lines

    _complete_places(parser)
    return 0 if print_lines([shtab.complete(parser, shell)]) else 1


def _complete_places(parser: argparse.ArgumentParser) -> None:
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_places(command)
        elif place := _PLACES.get(str(action.metavar)):
            action.complete = getattr(shtab, place)  # type: ignore[attr-defined]  # where shtab looks for it


class _Print(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, shell: object, option: object = None
    ) -> None:
        parser.exit(print_completion(parser, str(shell)))
