"""Framing of the socket, sans-IO: bytes in by `receive_data`, messages out by `next_event`.

Messages follow each other, and the first byte of each tells its form; blanks and NULs before a message are skipped.

| first byte | form   | the message ends                                                             |
|------------|--------|------------------------------------------------------------------------------|
| `<`        | plist  | with the first `</plist>`, wherever it stands: in a comment too              |
| `{`        | JSON   | with the matching `}`; braces in strings do not count                        |
| `D`        | binary | `DMIO`, u32 ioctl number (reply: s32 result), u32 size, size bytes; little-endian |

Rules:

1. Anything else cannot be framed: the last event is a fatal `Malformed` (EINVAL), and what follows is dropped.
2. A message over the limit is skipped up to its end without being kept, and is then a `Malformed` (E2BIG) that is not
   fatal. A plist counts with the newline that proplib writes behind it.
3. The peer's end of stream (`receive_data(b"")`) within a message is a fatal `Malformed`, then `CLOSED`.
4. Events depend on the bytes alone, never on how they were split.

Every byte is searched once: a search goes on where the last one stopped, less the seven bytes that may begin a
`</plist>`, and a bytearray gives up its front without moving the rest. So any stream costs O(n) in any split, and
memory is bounded by the limit and the size of one `receive_data`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeAlias

from .errors import BadBinary, BadMessage, BadPlist, MessageTooLarge

__all__ = [
    "CLOSED",
    "NEED_DATA",
    "BinaryReply",
    "BinaryRequest",
    "Event",
    "JsonMessage",
    "Malformed",
    "PlistMessage",
    "ReplyStream",
    "RequestStream",
    "binary_reply",
    "binary_request",
]

_Form = Literal["plist", "json", "binary"]

LIMIT = 64 << 20  #: bytes of a message
_MAGIC = b"DMIO"
_REQUEST_HEAD = struct.Struct("<4sII")
_REPLY_HEAD = struct.Struct("<4siI")
_HEAD_SIZE = _REQUEST_HEAD.size
_PLIST_END = b"</plist>"
_FORMS: dict[int, _Form] = {ord("<"): "plist", ord("{"): "json", ord("D"): "binary"}
_BLANKS = b" \t\r\n\0"
_gap = re.compile(rb"[ \t\r\n\0]*+")
_brace_or_quote = re.compile(rb'["{}]').search
_string_stop = re.compile(rb'["\\]').search


@dataclass(frozen=True, slots=True)
class PlistMessage:
    """A whole property list in XML, `<` to `</plist>`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class JsonMessage:
    """A whole property list in JSON, brace to brace."""

    data: bytes


@dataclass(frozen=True, slots=True)
class BinaryRequest:
    """An ioctl: its number, and the caller's whole buffer."""

    number: int
    buffer: bytes


@dataclass(frozen=True, slots=True)
class BinaryReply:
    """The answer to one: 0 or a negative errno, and the prefix of the buffer that is written back."""

    result: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message that is not to be had, and in which form to say so. After a fatal one nothing more can be read."""

    error: BadMessage
    form: _Form
    fatal: bool


class _Sentinel(Enum):
    NEED_DATA = "NEED_DATA"
    CLOSED = "CLOSED"


NEED_DATA: Final = _Sentinel.NEED_DATA  #: No whole message is there; receive more.
CLOSED: Final = (
    _Sentinel.CLOSED
)  #: No message will come any more: the peer has sent its last byte, or a fatal event was seen.

Event: TypeAlias = PlistMessage | JsonMessage | BinaryRequest | BinaryReply | Malformed | _Sentinel


def binary_request(number: int, buffer: bytes) -> bytes:
    """An ioctl as it goes to the server. `buffer` is the caller's whole buffer."""
    return _REQUEST_HEAD.pack(_MAGIC, number, len(buffer)) + buffer


def binary_reply(result: int, data: bytes) -> bytes:
    """The answer: `result` is 0 or a negative errno, `data` what the kernel would have written back."""
    return _REPLY_HEAD.pack(_MAGIC, result, len(data)) + data


class _Stream:
    """What both ends have in common.

    `plist_limit` and `binary_limit` are the sizes in bytes at which a message (plist and JSON; binary, without its
    head) is refused.
    """

    _head: struct.Struct
    _binary: type[BinaryRequest] | type[BinaryReply]

    def __init__(self, *, plist_limit: int = LIMIT, binary_limit: int = LIMIT) -> None:
        self._plist_limit = plist_limit
        self._binary_limit = binary_limit
        self._buffer = bytearray()  # the current message, less what was dropped, and what follows it
        self._form: _Form | None = None  # of the current message; None between messages
        self._searched = 0  # how much of the buffer needs no further look
        self._dropped = 0  # bytes of the current message that are gone, since it is too large
        self._remaining = 0  # binary: bytes still to be dropped
        self._depth = 0  # JSON: open braces
        self._in_string = False  # JSON
        self._ended = False  # the peer has sent its last byte
        self._failed = False  # a fatal event was handed out

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take what the socket gave; b"" is the end of the stream."""
        if not data:
            self._ended = True
        elif not self._failed:
            self._buffer += data

    def next_event(self) -> Event:
        """The next message, `Malformed`, `NEED_DATA` or `CLOSED`."""
        buffer = self._buffer
        if not (buffer or self._ended or self._failed):
            return NEED_DATA
        if self._failed:
            return CLOSED
        if self._form is None:
            if buffer and buffer[0] in _BLANKS:
                del buffer[: _gap.match(buffer).end()]  # type: ignore[union-attr]  # the gap may be empty
            if not buffer:
                return CLOSED if self._ended else NEED_DATA
            self._form = _FORMS.get(buffer[0])
            if self._form is None:
                found = f"a message begins with '<', '{{' or 'DMIO', not with {bytes(buffer[:1])!r}"
                return self._failure(BadMessage(found, offset=0), "plist")
        event = self._next_binary() if self._form == "binary" else self._next_text(self._form)
        if event is NEED_DATA and self._ended:
            error = BadBinary if self._form == "binary" else BadPlist
            return self._failure(
                error("the stream ends within a message", offset=self._dropped + len(buffer)), self._form
            )
        return event

    def _next_text(self, form: _Form) -> Event:
        end = self._find_plist_end() if form == "plist" else self._find_json_end()
        limit = self._plist_limit
        if end is None:
            if self._dropped + len(self._buffer) >= limit:
                self._drop(self._searched)
            return NEED_DATA
        size = self._dropped + end
        counted = size + 1 if form == "plist" else size
        if counted >= limit:
            self._finish(end)
            message = f"a property list of {counted} bytes; {limit} bytes and more are refused"
            return Malformed(MessageTooLarge(message), form, fatal=False)
        data = self._take(0, end)
        return PlistMessage(data) if form == "plist" else JsonMessage(data)

    def _find_plist_end(self) -> int | None:
        found = self._buffer.find(_PLIST_END, self._searched)
        if found >= 0:
            return found + len(_PLIST_END)
        self._searched = max(0, len(self._buffer) - len(_PLIST_END) + 1)
        return None

    def _find_json_end(self) -> int | None:
        buffer, pos = self._buffer, self._searched
        while (found := (_string_stop if self._in_string else _brace_or_quote)(buffer, pos)) is not None:
            pos = found.end()
            byte = buffer[pos - 1]
            if byte == ord('"'):
                self._in_string = not self._in_string
            elif byte == ord("\\"):
                if pos == len(buffer):  # what it escapes is still to come
                    self._searched = pos - 1
                    return None
                pos += 1
            else:
                self._depth += 1 if byte == ord("{") else -1
                if not self._depth:
                    return pos
        self._searched = len(buffer)
        return None

    def _next_binary(self) -> Event:
        buffer, head = self._buffer, self._head
        if self._dropped:
            return self._skip_binary()
        if not _MAGIC.startswith(buffer[: len(_MAGIC)]):
            wrong = next(at for at, byte in enumerate(buffer) if byte != _MAGIC[at])
            return self._failure(BadBinary("a binary message begins with 'DMIO'", offset=wrong), "plist")
        if len(buffer) < head.size:
            return NEED_DATA
        _, number, size = head.unpack_from(buffer)
        if size >= self._binary_limit:
            self._remaining, self._dropped = size, head.size
            del buffer[: head.size]
            return self._skip_binary()
        if len(buffer) < head.size + size:
            return NEED_DATA
        return self._binary(number, self._take(head.size, head.size + size))

    def _skip_binary(self) -> Event:
        count = min(len(self._buffer), self._remaining)
        self._remaining -= count
        self._drop(count)
        if self._remaining:
            return NEED_DATA
        message = (
            f"a binary message of {self._dropped - self._head.size} bytes; {self._binary_limit} and more are refused"
        )
        self._finish(0)
        return Malformed(MessageTooLarge(message), "binary", fatal=False)

    def _drop(self, count: int) -> None:
        """Forget the first bytes of a message that is too large."""
        del self._buffer[:count]
        self._dropped += count
        self._searched = 0

    def _take(self, start: int, end: int) -> bytes:
        with memoryview(self._buffer) as view:
            data = bytes(view[start:end])
        self._finish(end)
        return data

    def _finish(self, end: int) -> None:
        """The current message ends here in the buffer."""
        del self._buffer[:end]
        self._form = None
        self._searched = self._dropped = self._depth = 0

    def _failure(self, error: BadMessage, form: _Form) -> Malformed:
        self._failed = True
        self._buffer.clear()
        return Malformed(error, form, fatal=True)


class RequestStream(_Stream):
    """The server's end: yields `PlistMessage`, `JsonMessage` and `BinaryRequest`."""

    _head = _REQUEST_HEAD
    _binary = BinaryRequest

    @property
    def idle(self) -> bool:
        """Nothing unfinished is there: what is received next begins a message."""
        return not self._buffer and self._form is None and not self._failed

    def lone_request(self, data: bytes) -> tuple[int, bytes] | None:
        """Ioctl number and buffer if `data`, just received, is one whole `BinaryRequest` and comes after nothing
        unfinished: most requests do. None if not, and then it is for `receive_data`. The short way for servers."""
        size = len(data) - _HEAD_SIZE
        if size < 0 or not self.idle:
            return None
        magic, number, told = _REQUEST_HEAD.unpack_from(data)
        if told != size or magic != _MAGIC or size >= self._binary_limit:
            return None
        return number, data[_HEAD_SIZE:]


class ReplyStream(_Stream):
    """The client's end: yields `PlistMessage`, `JsonMessage` and `BinaryReply`."""

    _head = _REPLY_HEAD
    _binary = BinaryReply
