"""What a connection sends: the replies of a batch side by side in one buffer, sent at once.

A reply goes out whole, under `sending` where another thread may have one, too; the buffer belongs to the connection's
own thread.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

from .nbd_proto import (
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    wire_error,
)

__all__ = ["DATA_HEADER", "REPLY_BUFFER", "Replies"]

REPLY_BUFFER = 512 << 10

#: A structured reply's header and the offset of its data.
DATA_HEADER = struct.Struct(">IHHQIQ")
_OFFSET_DATA = int(Chunk.OFFSET_DATA)


class Replies:
    """`buffer` holds `filled` bytes of replies. `before_sending` is called whenever a send of them may have to wait."""

    def __init__(self, sock: socket.socket, *, structured: bool, before_sending: Callable[[], None]) -> None:
        self.buffer = memoryview(mmap.mmap(-1, REPLY_BUFFER))
        self.filled = 0
        self.sending = threading.Lock()
        self.structured = structured
        self._sock = sock
        self._before_sending = before_sending

    def data_header(self, cookie: int, offset: int, length: int) -> bytes:
        """The header of a READ's reply, whose `length` bytes of data follow."""
        if self.structured:
            return DATA_HEADER.pack(STRUCTURED_REPLY_MAGIC, 1, Chunk.OFFSET_DATA, cookie, 8 + length, offset)
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)

    def status(self, kind: int, cookie: int, error: int) -> bytes:
        """A reply without data."""
        error = wire_error(error)
        if error and self.structured and kind in (Command.READ, Command.BLOCK_STATUS):
            text = os.strerror(error).encode()
            payload = struct.pack(">IH", error, len(text)) + text
            return STRUCTURED_REPLY.pack(STRUCTURED_REPLY_MAGIC, 1, Chunk.ERROR, cookie, len(payload)) + payload
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)

    def begin(self, cookie: int, offset: int, length: int) -> int:
        """Write the header of a READ's reply into the buffer, and tell where its data belong; they have to fit. The
        reply counts once `filled` is moved past them."""
        filled = self.filled
        if self.structured:
            DATA_HEADER.pack_into(
                self.buffer, filled, STRUCTURED_REPLY_MAGIC, 1, _OFFSET_DATA, cookie, 8 + length, offset
            )
            return filled + 28
        SIMPLE_REPLY.pack_into(self.buffer, filled, SIMPLE_REPLY_MAGIC, 0, cookie)
        return filled + 16

    def put(self, header: bytes, data: bytes | memoryview = b"") -> None:
        """Add a reply; one that is larger than the buffer goes out at once, after those before it."""
        size = len(header) + len(data)
        if size > REPLY_BUFFER - self.filled:
            self.flush()
        if size > REPLY_BUFFER:
            self._before_sending()
            with self.sending:
                self.send(header)
                self.send(data)
            return
        middle, end = self.filled + len(header), self.filled + size
        self.buffer[self.filled : middle] = header
        self.buffer[middle:end] = data
        self.filled = end

    def flush(self) -> None:
        """Send what is there."""
        if self.filled:
            self._before_sending()
            filled, self.filled = self.filled, 0
            with self.sending:
                self.send(self.buffer[:filled])

    def send(self, data: bytes | memoryview) -> None:
        """All of it, however long the client takes. `sending` is held, or nobody else is there to send."""
        while data:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                self.wait_writable()
                continue
            if sent == len(data):
                return
            data = memoryview(data)[sent:]

    def wait_writable(self) -> None:
        """Return once the client has read something, or is gone."""
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        poll.poll()
