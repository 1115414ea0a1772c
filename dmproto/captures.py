"""Messages out of files as people have them: `read` finds out what a file is and yields one `Capture` a message.

What is understood, told apart by how it begins:

| begins with | is |
|---|---|
| `<` | property lists, one after another: dictionaries, or the draft's |
| `{` with `op`, `request`, `ioctls` ... | a recording in JSON Lines; messages are in hexadecimal or plists |
| `{` else | dictionaries in JSON, one a line or one in all |
| `DMIO` | the socket's frames: ioctl number, size, buffer |
| words and `(` | a log of strace (see `strace`) |
| hexadecimal digits only | a hex dump: plain, of xxd, of hexdump -C or od; `HEX*N:XX` stands for N bytes XX after HEX |
| anything with control characters, as every buffer has | the bytes of one buffer |

Lines and messages are read one at a time; none may be longer than 64 MiB, but for a buffer alone in its file.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, cast

from . import linux, strace
from .commands import BY_NAME, BY_NUMBER, DM_IOCTL, Command
from .errors import BadMessage, MessageTooLarge
from .translate import Form, detect
from .wire import to_bytes, to_text

__all__ = ["MAX_MESSAGE", "Capture", "read", "unhex"]

MAX_MESSAGE = 64 << 20  #: bytes of a line or a message in a file with several
_HEAD = 4096
_END = b"</plist>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Capture:
    """One message as captured.

    `data` are the bytes of the message in its `form`; empty where `note` says why there are none. `command` is None
    where neither the file nor the caller told it. `where` is the place in the file, `result` the errno's name of a
    recorded call ("0" for success, "" if unknown), `label` what the recording says about it.
    """

    data: bytes
    form: Form
    command: Command | None
    reply: bool
    where: str = ""
    result: str = ""
    label: str = ""
    note: str = ""


def read(
    stream: BinaryIO, *, form: Form | None = None, command: Command | None = None, reply: bool = False
) -> Iterator[Capture]:
    """Every message of a file. `form` overrides the detection, `command` and `reply` tell what the file does not.

    Raises BadMessage with the place where a file breaks off or is none of the known kinds.
    """
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(Any, stream), _HEAD)
    head = buffered.peek(_HEAD)[:_HEAD]
    start = head.lstrip()
    if not start:
        raise BadMessage("nothing there, expected a message", offset=0)
    if form is Form.BINARY:
        yield Capture(data=buffered.read(), form=form, command=command, reply=reply)
    elif form in (Form.PLIST, Form.DRAFT) or (form is None and start.startswith(b"<")):
        yield from _plists(buffered, form, command, reply)
    elif form is Form.JSON or start.startswith(b"{"):
        yield from _json(buffered, command, reply)
    elif start.startswith(b"DMIO"):
        yield from _frames(buffered, reply)
    elif _is_text(head) and strace.looks_like(head.decode("latin-1")):
        yield from _strace(buffered)
    elif not _is_text(head):
        yield Capture(data=buffered.read(), form=Form.BINARY, command=command, reply=reply)
    elif _is_hex(head):
        data = unhex(buffered.read().decode("ascii", "replace"))
        yield Capture(data=data, form=detect(data), command=command, reply=reply)
    else:
        known = "property lists, JSON, a log of strace, a hex dump or the bytes of a buffer"
        raise BadMessage(f"expected {known}, found {start[:20]!r}", offset=0)


def _is_text(head: bytes) -> bool:
    return not re.search(rb"[\0-\x08\x0e-\x1f]", head)


_PLAIN = re.compile(r"([0-9a-fA-F\s]*)(?:\*(\d+):([0-9a-fA-F]{2}))?")
_XXD = re.compile(r"([0-9a-fA-F]{6,}): ((?:[0-9a-fA-F]{2}| (?! ))*)(?:  .*)?")
_HEXDUMP = re.compile(r"([0-9a-fA-F]{6,})((?: {1,2}[0-9a-fA-F]{2})*)\s*(?:[|>].*)?")  # hexdump -C, od -A x -t x1z


def _dump_style(line: str) -> re.Pattern[str] | None:
    """What kind of line with an offset this first line is."""
    for style in (_XXD, _HEXDUMP):
        if (match := style.fullmatch(line)) and match[2] and int(match[1], 16) == 0:
            return style
    return None


def _is_hex(head: bytes) -> bool:
    lines = (head.rpartition(b"\n")[0] or head).decode("ascii", "replace").splitlines()
    return _dump_style(lines[0].strip()) is not None or all(_PLAIN.fullmatch(line) for line in lines)


def unhex(text: str) -> bytes:
    """The bytes of a hex dump. Raises BadMessage with the line that is none."""
    lines = text.strip().splitlines()
    style = _dump_style(lines[0].strip()) if lines else None
    read_line = _plain_line if style is None else _dump_line
    data = bytearray()
    for number, line in enumerate(lines, 1):
        if not read_line(data, line.strip(), style or _PLAIN):
            raise BadMessage(f"{line[:40]!r} is no line of a hex dump", path=f"line {number}")
    return bytes(data)


def _plain_line(data: bytearray, line: str, style: re.Pattern[str]) -> bool:
    match = style.fullmatch(line)
    digits = "".join(match[1].split()) if match else ""
    if match is None or len(digits) % 2:
        return False
    data += bytes.fromhex(digits)
    if match[2]:
        _bound(len(data) + int(match[2]), "elided bytes")
        data += bytes.fromhex(match[3]) * int(match[2])
    return True


def _dump_line(data: bytearray, line: str, style: re.Pattern[str]) -> bool:
    """A line with an offset; `*` stands for lines like the last one, up to the following offset."""
    if line == "*":
        return len(data) >= 16
    match = style.fullmatch(line)
    if match is None:
        return False
    offset = int(match[1], 16)
    if offset > len(data):
        _bound(offset, "repeated lines")
        data += (bytes(data[-16:]) * (1 + (offset - len(data)) // 16))[: offset - len(data)]
    data += bytes.fromhex(match[2])
    return True


def _bound(size: int, where: str) -> None:
    if size > MAX_MESSAGE:
        raise MessageTooLarge(f"more than {MAX_MESSAGE} bytes in one message", path=where)


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(MAX_MESSAGE + 1):
        number += 1
        _bound(len(line), f"line {number}")
        yield line


def _plists(stream: BinaryIO, form: Form | None, command: Command | None, reply: bool) -> Iterator[Capture]:
    """Texts up to `</plist>` each; blanks and NULs between them are skipped. O(n)."""
    buffer, base, seen = bytearray(), 0, 0
    while True:
        if (end := buffer.find(_END, seen)) >= 0:
            end += len(_END)
            text = bytes(buffer[:end]).lstrip(b" \t\r\n\0")
            where = f"offset {base + end - len(text)}"
            yield Capture(data=text, form=form or detect(text), command=command, reply=reply, where=where)
            del buffer[:end]
            base, seen = base + end, 0
            continue
        seen = max(0, len(buffer) - len(_END) + 1)
        _bound(len(buffer), f"offset {base}")
        if not (chunk := stream.read(1 << 20)):
            break
        buffer += chunk
    if rest := bytes(buffer).strip(b" \t\r\n\0"):
        yield Capture(data=rest, form=form or detect(rest), command=command, reply=reply, where=f"offset {base}")


def _frames(stream: BinaryIO, reply: bool) -> Iterator[Capture]:
    """`DMIO`, u32 ioctl number, u32 size, buffer: requests only, for replies do not tell their command."""
    offset = 0
    while head := stream.read(12):
        number, size = int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:12], "little")
        _bound(size, f"offset {offset}")
        data = stream.read(size)
        if head[:4] != b"DMIO" or len(head) < 12 or len(data) < size:
            raise BadMessage(
                f"{(head + data)[:12]!r}..., expected DMIO, an ioctl number, a size and its bytes", offset=offset
            )
        command = BY_NUMBER.get(number & 0xFF) if number >> 8 & 0xFF == DM_IOCTL else None
        if command is None:
            raise BadMessage(f"ioctl {number:#x} is none of device-mapper's", offset=offset + 4)
        yield Capture(data=data, form=Form.BINARY, command=command, reply=reply, where=f"offset {offset}")
        offset += 12 + size


def _strace(stream: BinaryIO) -> Iterator[Capture]:
    line = 0
    for line, call in strace.calls(text.decode("latin-1") for text in _lines(stream)):
        where = f"line {line}"
        for message in filter(None, (call.request, call.reply)):
            _bound(message.header.data_size, where)
            try:
                data = linux.build(message)
            except BadMessage as error:
                raise BadMessage(str(error), path=where) from None
            yield Capture(
                data=data,
                form=Form.BINARY,
                command=call.command,
                reply=message.reply,
                where=where,
                result=call.result,
                note=call.note,
            )
        if call.request is call.reply is None:
            yield Capture(
                data=b"",
                form=Form.BINARY,
                command=call.command,
                reply=False,
                where=where,
                result=call.result,
                note=call.note,
            )
    if not line:
        raise BadMessage("a log of strace, but no ioctl of device-mapper in it")


def _json(stream: BinaryIO, command: Command | None, reply: bool) -> Iterator[Capture]:
    lines = _lines(stream)
    first = next(line for line in lines if line.strip())
    try:
        json.loads(to_text(first))
    except (ValueError, RecursionError):  # one document over many lines, or proplib's laxer JSON
        data = first + b"".join(_bounded(lines))
        yield Capture(data=data, form=Form.JSON, command=command, reply=reply)
        return
    for number, line in enumerate(chain([first], lines), 1):
        if line.strip():
            yield from _json_line(line, number, command, reply)


def _bounded(lines: Iterable[bytes]) -> Iterator[bytes]:
    size = 0
    for line in lines:
        size += len(line)
        _bound(size, "line 1")
        yield line


def _json_line(line: bytes, number: int, command: Command | None, reply: bool) -> Iterator[Capture]:
    where = f"line {number}"
    try:
        step = json.loads(to_text(line))
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"no JSON: {error}", path=where) from None
    if not isinstance(step, dict):
        raise BadMessage("a JSON value that is no object", path=where)
    if "command" in step or not {"op", "request", "request_hex", "ioctls", "exchanges", "control"} & step.keys():
        yield Capture(data=line.strip(), form=Form.JSON, command=command, reply=reply, where=where)
        return
    for calls in ([step], step.get("ioctls"), step.get("exchanges")):  # the step itself, and what it led to
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                yield from _recorded(call, where)


def _recorded(step: dict[str, Any], where: str) -> Iterator[Capture]:
    """What a call of a recording passed in and got back."""
    name = step.get("cmd")
    command = BY_NAME.get(name) if isinstance(name, str) else None
    if step.get("op") == "blkioctl" or (command is None and name is not None):
        return  # on a block device, or no command that anyone knows
    result = str(step.get("errno", step.get("cmd_errno") or step.get("ioctl_errno") or ""))
    label = str(step.get("label", ""))
    _bytes(result, f"{where}: errno")
    _bytes(label, f"{where}: label")
    for key, reply in (("request", False), ("written", True), ("reply", True)):
        text = step.get(key, step.get(f"{key}_hex"))
        if not isinstance(text, str) or not text:
            continue
        form: Form
        if key in step and command is None:  # NetBSD's text
            data = _bytes(text, f"{where}: {key}")
            form = detect(data)
            if form is Form.BINARY:
                form = Form.PLIST  # so broken that it does not look like one
        else:
            data = _unhex_field(text, f"{where}: {key}")
            form = Form.PLIST if command is None else Form.BINARY
        yield Capture(data=data, form=form, command=command, reply=reply, where=where, result=result, label=label)


def _unhex_field(text: str, where: str) -> bytes:
    try:
        return unhex(text)
    except BadMessage as error:
        raise BadMessage(error.message, path=where) from None


def _bytes(text: str, where: str) -> bytes:
    try:
        return to_bytes(text)
    except UnicodeEncodeError:
        raise BadMessage("a surrogate that stands for no byte", path=where) from None
