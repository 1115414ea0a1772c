"""The `dmproto` tool: `convert` messages into another form, `decode` them for people."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

from . import captures, explain, linux, proplib, translate
from .captures import Capture
from .commands import Command
from .commands import command as find_command
from .completion import add_completion
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
    if sys.stderr is None:  # a stream is None if it was closed when the tool began
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    if sys.stdout is None:
        return _complain("standard output", os.strerror(errno.EBADF))
    try:
        options = _parser().parse_args(arguments)
        status: int = options.run(options)
        sys.stdout.flush()
    except OSError as error:  # of standard output: `_read` tells of files
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere
        if not isinstance(error, BrokenPipeError):  # else the reader had enough
            _complain("standard output", error.strerror or str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dmproto", description="Device-mapper messages, Linux's and NetBSD's: convert and decode them."
    )
    add_completion(parser)
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


def _convert(options: argparse.Namespace) -> int:
    target, output = Form(options.to), sys.stdout.buffer

    def write(capture: Capture) -> None:
        data = translate.convert(
            capture.data,
            source=capture.form,
            target=target,
            command=_told_command(capture, options),
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
    command = _told_command(capture, options)
    if capture.form is Form.BINARY:
        assert command is not None
        return linux.parse(capture.data, command, reply=capture.reply)
    text = translate.convert(capture.data, source=capture.form, target=Form.PLIST, command=command, reply=capture.reply)
    return translate.to_message(proplib.loads(text), reply=capture.reply)


def _told_command(capture: Capture, options: argparse.Namespace) -> Command | None:
    """What the file or the user said; a binary message needs it."""
    command: Command | None = capture.command or options.command
    if command is None and capture.form is Form.BINARY:
        raise ValueError("a binary message does not tell its command: give one with --command")
    return command


def _each(options: argparse.Namespace, write: Callable[[Capture], None], *, keep_going: bool = False) -> int:
    """Hand every message of every file to `write`. The exit status.

    A bad message is reported, and ends its file unless told to keep going. Where the recorded call failed as well, it
    is as it should be.
    """
    status = 0
    for name in options.files:
        place = "standard input" if name == "-" else name
        for capture in _read(name, place, options):
            if isinstance(capture, Exception):
                status = _complain(place, getattr(capture, "strerror", None) or str(capture))
                break
            try:
                if not capture.data and capture.note:
                    raise BadMessage(capture.note)
                write(capture)
            except ValueError as error:  # BadMessage, or a combination that makes no sense
                where = f"{place}: {capture.where}" if capture.where else place
                if capture.result not in ("", "0"):
                    _complain(where, f"{error} (the recorded call failed: {capture.result})")
                    continue
                status = _complain(where, str(error))
                if not keep_going:
                    break
    return status


def _read(name: str, place: str, options: argparse.Namespace) -> Iterator[Capture | OSError | ValueError]:
    """The messages of a file; last the exception, where it cannot be read to its end."""
    form = Form(options.source) if options.source else None
    try:
        with _opened(name) as stream:
            messages = captures.read(stream, form=form, command=options.command, reply=options.reply)
            yield from _with_progress(messages, place)
    except (OSError, ValueError) as error:
        yield error


def _opened(name: str) -> AbstractContextManager[BinaryIO]:
    if name != "-":
        return open(name, "rb")
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return nullcontext(sys.stdin.buffer)


def _complain(place: str, what: str) -> int:
    """Tell of an error. The exit status."""
    print(f"dmproto: {explain.escaped(f'{place}: {what}')}", file=sys.stderr)
    return 1


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
