"""The `dmproto` tool: `convert` messages into another form, `decode` them for people."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, BinaryIO

from . import captures, explain, linux, proplib, translate
from .captures import Capture
from .commands import Command
from .commands import command as find_command
from .errors import BadDictionary, BadMessage
from .records import Message
from .translate import Form

__all__ = ["main"]

_CONVERT_EXAMPLES = """\
examples:
  dmproto convert --to plist --command DM_TABLE_LOAD request.bin
  dmproto convert --to binary create.plist > create.bin
  dmproto convert --to plist recording.jsonl
  strace -e ioctl -v -xx -s 65536 -o log dmsetup ls; dmproto convert --to json log

What a file holds is found out: property lists, JSON, raw bytes, hex dumps, logs of strace, recordings in JSON Lines.
A raw buffer does not tell its command and direction: give --command, and --reply for a reply.
"""

_DECODE_EXAMPLES = """\
examples:
  dmproto decode log                        what strace -e ioctl -v -xx -s 65536 wrote
  dmproto decode --command deps --reply reply.bin
  xxd request.bin | dmproto decode --command TABLE_LOAD
  dmproto decode --json recording.jsonl     one JSON object a line

Keys of crypt and integrity targets, and everything under DM_SECURE_DATA_FLAG, are left out unless --show-secrets.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; the exit status. 1: a message or file was bad, 2: usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dmproto", description="Device-mapper messages, Linux's and NetBSD's: convert and decode them."
    )
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        metavar="SHELL",
        help="print a completion script (bash, zsh, tcsh)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    convert = _command(commands, "convert", _convert, "write messages in another form", _CONVERT_EXAMPLES)
    forms = [form.value for form in Form]
    convert.add_argument("--to", required=True, choices=forms, help="the form to write")
    convert.add_argument("--profile", choices=["libdm"], help="as NetBSD's own libdevmapper does it")
    convert.add_argument("--strict", action="store_true", help="refuse what the other form has no place for")
    decode = _command(commands, "decode", _decode, "print messages for people", _DECODE_EXAMPLES)
    decode.add_argument("--json", action="store_true", help="one JSON object a line")
    decode.add_argument("--show-secrets", action="store_true", help="print keys too")
    for command in (convert, decode):
        command.add_argument("--from", dest="source", choices=forms, help="the form that is read (default: found out)")
        command.add_argument(
            "--command",
            type=_known_command,
            metavar="NAME",
            help="command, in either system's words: DM_TABLE_LOAD, reload",
        )
        command.add_argument("--reply", action="store_true", help="the messages are replies")
        command.add_argument("files", nargs="*", default=["-"], metavar="FILE", help="default and -: standard input")
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, examples: str) -> Any:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _known_command(word: str) -> Command:
    try:
        return find_command(word)
    except KeyError as error:
        raise argparse.ArgumentTypeError(error.args[0]) from None


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: object, shell: Any, option: object = None) -> None:
        try:
            import shtab
        except ImportError:
            parser.exit(1, "dmproto: --print-completion needs shtab: pip install 'dmproto[completion]'\n")
        if shell not in shtab.SUPPORTED_SHELLS:
            parser.error(f"no completion for {shell}, only for {', '.join(shtab.SUPPORTED_SHELLS)}")
        print(shtab.complete(parser, shell))
        parser.exit()


def _convert(options: argparse.Namespace) -> int:
    target, output = Form(options.to), sys.stdout.buffer

    def write(capture: Capture) -> None:
        data = translate.convert(
            capture.data,
            source=capture.form,
            target=target,
            command=capture.command or options.command,
            reply=capture.reply,
            strict=options.strict,
            profile=options.profile,
        )
        output.write(data)
        if target is not Form.BINARY and not data.endswith(b"\n"):
            output.write(b"\n")

    return _each(options, write)


def _decode(options: argparse.Namespace) -> int:
    def write(capture: Capture) -> None:
        try:
            message = _message(capture, options)
        except BadDictionary as error:
            if options.show_secrets:
                raise
            told = re.sub(r'string ".*"', "a string", error.message, flags=re.DOTALL)  # it may be a key
            raise BadDictionary(told, path=error.path) from None
        said = explain.explain(message, show_secrets=options.show_secrets)
        # a recorder's label may quote a whole table, keys included
        names = ("where", "label", "result", "note") if options.show_secrets else ("where", "result", "note")
        about = {name: value for name in names if (value := getattr(capture, name))}
        if options.json:
            print(json.dumps({**about, **said}))
            return
        first, *rest = explain.render(said)
        print(first, *(f"[{explain.shown(value)}]" for value in about.values()))
        for line in rest:
            print(line)

    return _each(options, write, keep_going=True)


def _message(capture: Capture, options: argparse.Namespace) -> Message:
    command = capture.command or options.command
    if capture.form is Form.BINARY:
        if command is None:
            raise ValueError("a binary message does not tell its command: give one with --command")
        return linux.parse(capture.data, command, reply=capture.reply)
    text = translate.convert(capture.data, source=capture.form, target=Form.PLIST, command=command, reply=capture.reply)
    return translate.to_message(proplib.loads(text), reply=capture.reply)


def _each(options: argparse.Namespace, write: Callable[[Capture], None], *, keep_going: bool = False) -> int:
    """Hand every message of every file to `write`. The exit status.

    A bad message is reported, and ends its file unless told to keep going. Where the recorded call failed as well, it
    is as it should be.
    """
    status = 0
    for name in options.files:
        place = "standard input" if name == "-" else name
        try:
            with closing(sys.stdin.buffer if name == "-" else open(name, "rb")) as stream:
                for capture in _with_progress(_captures(stream, options), place):
                    where = f"{place}: {capture.where}" if capture.where else place
                    try:
                        if not capture.data and capture.note:
                            raise BadMessage(capture.note)
                        write(capture)
                    except ValueError as error:  # BadMessage, or a combination that makes no sense
                        refused = capture.result not in ("", "0")
                        _complain(
                            where, f"{error}{f' (the recorded call failed: {capture.result})' if refused else ''}"
                        )
                        status = status if refused else 1
                        if not refused and not keep_going:
                            break
        except BrokenPipeError:
            raise
        except OSError as error:
            _complain(place, error.strerror or str(error))
            status = 1
        except ValueError as error:
            _complain(place, str(error))
            status = 1
    return status


def _captures(stream: BinaryIO, options: argparse.Namespace) -> Iterator[Capture]:
    form = Form(options.source) if options.source else None
    return captures.read(stream, form=form, command=options.command, reply=options.reply)


def _complain(place: str, what: str) -> None:
    print(f"dmproto: {place}: {what}", file=sys.stderr)


def _with_progress(messages: Iterator[Capture], place: str) -> Iterator[Capture]:
    """The messages; on a terminal a line of progress each second."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield from messages
        return
    begun = last = time.monotonic()
    for number, message in enumerate(messages, 1):
        yield message
        if (now := time.monotonic()) - last >= 1:
            last = now
            print(f"\rdmproto: {place}: {number} messages in {now - begun:.0f} s", end="", file=sys.stderr, flush=True)
    if last > begun:
        print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
