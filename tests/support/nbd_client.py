"""A small NBD client that says exactly what a test wants said."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from dmserver.io.nbd_options import receive
from dmserver.io.nbd_proto import (
    HANDSHAKE,
    IHAVEOPT,
    OPTION,
    OPTION_REPLY,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    Option,
    Reply,
)

__all__ = ["Answer", "NbdClient", "counted", "request"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply: its cookie, the error, and the data, without an offset."""

    cookie: int
    error: int = 0
    data: bytes = b""


class NbdClient:
    """One connection to a Unix socket, handshaken up to the options."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self.hello = HANDSHAKE.unpack(receive(self.sock, HANDSHAKE.size))
        self.sock.sendall(struct.pack(">I", self.hello[2]))
        self.structured = False
        self.size = self.flags = 0
        #: READ requests whose simple reply carries so many bytes.
        self.lengths: dict[int, int] = {}

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    # -- negotiation ------------------------------------------------------------------------------------

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """All replies to an option, up to an ACK or an error."""
        self.sock.sendall(OPTION.pack(IHAVEOPT, option, len(data)) + data)
        replies = []
        while True:
            _, answered, kind, length = OPTION_REPLY.unpack(receive(self.sock, OPTION_REPLY.size))
            assert answered == option
            replies.append((kind, receive(self.sock, length)))
            if kind == Reply.ACK or kind & 1 << 31:
                return replies

    def structure(self) -> None:
        assert self.option(Option.STRUCTURED_REPLY) == [(Reply.ACK, b"")]
        self.structured = True

    def allocation(self, name: str) -> list[tuple[int, bytes]]:
        """Ask for base:allocation."""
        return self.option(Option.SET_META_CONTEXT, counted(name) + struct.pack(">I", 1) + counted("base:allocation"))

    def go(self, name: str, option: Option = Option.GO) -> int:
        """The last reply's type; `size` and `flags` are set."""
        replies = self.option(option, counted(name) + b"\0\0")
        for kind, data in replies:
            if kind == Reply.INFO and data[:2] == b"\0\0":
                _, self.size, self.flags = struct.unpack(">HQH", data)
        return replies[-1][0]

    # -- transmission -----------------------------------------------------------------------------------

    def send(
        self, command: int, cookie: int, offset: int = 0, length: int = 0, data: bytes = b"", *, flags: int = 0
    ) -> None:
        if command == Command.READ:
            self.lengths[cookie] = length
        self.sock.sendall(request(command, cookie, offset, length or len(data), data, flags=flags))

    def receive(self) -> Answer:
        """The next reply."""
        (magic,) = struct.unpack(">I", receive(self.sock, 4))
        if magic == STRUCTURED_REPLY_MAGIC:
            _, flags, kind, cookie, length = STRUCTURED_REPLY.unpack(b"\0\0\0\0" + receive(self.sock, 16))
            assert flags == 1
            self.lengths.pop(cookie, None)
            payload = receive(self.sock, length)
            if kind == Chunk.ERROR:
                return Answer(cookie, struct.unpack_from(">I", payload)[0])
            return Answer(cookie, 0, payload[8:] if kind == Chunk.OFFSET_DATA else payload[4:])
        _, error, cookie = SIMPLE_REPLY.unpack(b"\0\0\0\0" + receive(self.sock, 12))
        length = self.lengths.pop(cookie, 0)
        return Answer(cookie, error, receive(self.sock, length) if not error else b"")

    def ask(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", *, flags: int = 0) -> Answer:
        """One request and its reply."""
        self.send(command, 0x1234, offset, length, data, flags=flags)
        return self.receive()


def counted(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()


def request(command: int, cookie: int, offset: int, length: int, data: bytes = b"", *, flags: int = 0) -> bytes:
    return REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length) + data
