"""`dmserver record`: run a program on a device-mapper of its own and write down what passed its control nodes.

The file is JSON Lines in the format of specs/vectors: `op`, `cmd`, `errno`, `request` (the caller's buffer as far as
the driver looked at it), `written` (the prefix that was written back); `HEX*N:XX` is HEX and N bytes of value XX.
Keys of crypt and integrity targets, and all data under DM_SECURE_DATA_FLAG, are overwritten with zeros.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from dmproto import linux, parameters
from dmproto.commands import BY_NUMBER, Command
from dmproto.errors import BadMessage
from dmproto.flags import DmFlag
from dmproto.output import reason
from dmproto.records import Message, TargetMessage, TargetSpec
from dmproto.wire import to_bytes
from dmserver.control.session import Cancel, Session

from .control import Door
from .run import add_program_arguments, run_private

__all__ = ["Recorder", "add_arguments", "elide", "main", "redact"]

FLAGS_OFFSET = 28
LEAST_RUN = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write (default: standard error)")
    parser.add_argument("--secrets", action="store_true", help="keep keys as they are")
    add_program_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Run the program and record; returns its exit status."""
    if args.output is None:
        return run_private("record", args, lambda host: Recorder(host, sys.stderr, secrets=args.secrets))
    try:
        output = open(args.output, "w", encoding="utf-8")  # noqa: SIM115  # closed below
    except OSError as error:
        print(f"dmserver record: {reason(error)}", file=sys.stderr)
        return 125
    with output:
        return run_private("record", args, lambda host: Recorder(host, output, secrets=args.secrets))


class Recorder:
    """A door that writes down what passes it."""

    def __init__(self, door: Door, output: TextIO, *, secrets: bool = False) -> None:
        self.door = door
        self.output = output
        self.secrets = secrets

    def open(self, *, privileged: bool = True) -> Session:
        return self.door.open(privileged=privileged)

    def quick(self, session: Session, number: int, buffer: bytes) -> bytes | None:
        """Nothing goes past `ioctl`."""
        return None

    def ioctl(self, session: Session, number: int, buffer: bytes, done: Callable[[int, bytes], None]) -> Cancel | None:
        def answered(result: int, written: bytes) -> None:
            self._write(number, buffer, result, written)
            done(result, written)

        return self.door.ioctl(session, number, buffer, answered)

    def _write(self, number: int, request: bytes, result: int, written: bytes) -> None:
        command = BY_NUMBER.get(number & 0xFF)
        if command and not self.secrets:
            request, written = redact(request, command, reply=False), redact(written, command, reply=True)
        line: dict[str, object] = {"op": "ioctl", "cmd": command.name if command else f"{number & 0xFF:#x}"}
        if command is None or number != command.ioctl:
            line["ioctl"] = number
        line["errno"] = errno.errorcode.get(-result, str(-result)) if result < 0 else "0"
        line["request"], line["written"] = elide(request), elide(written)
        self.output.write(json.dumps(line) + "\n")
        self.output.flush()


def redact(data: bytes, command: Command, *, reply: bool) -> bytes:
    """The buffer with zeros (the digit, in text) in the place of every secret."""
    if len(data) < linux.DATA_OFFSET:
        return data
    if data[FLAGS_OFFSET + 1] << 8 & DmFlag.SECURE_DATA:
        return data[: linux.HEADER_SIZE].ljust(len(data), b"\0")
    try:
        message = linux.parse(data, command, reply=reply)
    except BadMessage:
        return data
    for secret in _secrets(message):
        data = data.replace(secret, b"0" * len(secret))
    return data


def _secrets(message: Message) -> Iterator[bytes]:
    payload = message.payload
    if isinstance(payload, TargetMessage):
        yield from _hidden(payload.message, parameters.redact_message(payload.message))
    elif isinstance(payload, tuple):
        for record in payload:
            if isinstance(record, TargetSpec):
                yield from _hidden(record.params, parameters.redact(record.type, record.params))


def _hidden(text: str, redacted: str) -> Iterator[bytes]:
    """The words of `text` that `redacted` does not show."""
    shown = set(redacted.split())
    for word in text.split():
        if word not in shown:
            yield to_bytes(word)


def elide(data: bytes) -> str:
    """Hexadecimal, a long run of equal bytes at the end written short."""
    if not data:
        return ""
    head = data.rstrip(data[-1:])
    run = len(data) - len(head)
    return f"{head.hex()}*{run}:{data[-1]:02x}" if run >= LEAST_RUN else data.hex()
