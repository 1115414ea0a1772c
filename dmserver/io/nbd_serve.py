"""NBD transmission: the requests of one connection, and its replies.

All requests of one receive are answered by one send. Reads and writes that end at a disk are done at once, in the
connection's thread; everything else is a bio (`nbd_pending`). Rules:

1. A route is entered for the requests at hand and left before anything is sent: a client that reads slowly must not
   keep a device from being suspended.
2. Replies go out whole, under the replies' `sending` unless nothing is under way. One that has begun cannot turn into
   an error: if its data fail, the connection ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from dmproto.wire import SECTOR_SIZE

from .bio import Bio, Op
from .disk import Disk
from .extents import Piece, Route, allocation
from .nbd_options import Garbage
from .nbd_pending import Pending, Request
from .nbd_proto import (
    ALLOCATION,
    EXTENT,
    MAX_BLOCK,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
    Allocation,
    Chunk,
    Command,
    CommandFlag,
)
from .nbd_replies import DATA_HEADER, REPLY_BUFFER, Replies
from .zeroout import issue_zeroout

if TYPE_CHECKING:
    from ..model.dm_dev import DmDev

__all__ = ["Transmission"]

#: Reads up to here are copied next to their header, larger ones go from file to socket.
SMALL = 64 << 10
RECEIVE_BUFFER = 256 << 10
SEND_BUFFER = 4 << 20
MAX_EXTENTS = 1024
#: Seconds after which a send to a client that does not read is interrupted, to leave the route.
SEND_TURN = 0.05

_HEADER_SIZE = REQUEST.size
_READ, _WRITE = int(Command.READ), int(Command.WRITE)  # an int compares faster


class Transmission:
    """One connection past its negotiation. `run` serves until the client leaves."""

    def __init__(self, sock: socket.socket, bdev: DmDev, *, structured: bool, allocation: bool) -> None:
        self.sock = sock
        self.bdev = bdev
        self.allocation = allocation
        self._fd = sock.fileno()
        self._replies = Replies(sock, structured=structured, before_sending=self._leave)
        self._route: Route | None = None
        self._pending = Pending(self._replies)

    # -- requests ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve. OSError, EOFError or Garbage when the client goes or breaks the protocol."""
        seconds, fraction = divmod(SEND_TURN, 1)
        turn = struct.pack("ll", int(seconds), int(fraction * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, turn)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._serve()

    def interrupt(self) -> None:
        """Let `run` end soon. From any thread."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._pending.interrupt()

    def close(self, idle: Callable[[], None]) -> None:
        """The client is gone. `idle` is called once no bio of this connection is under way, in any thread."""
        self._leave()
        self._pending.close(idle)

    def _serve(self) -> None:
        buffer = memoryview(mmap.mmap(-1, RECEIVE_BUFFER))
        start = end = 0
        while count := self._receive(buffer, end):
            end += count
            while end - start >= _HEADER_SIZE:
                magic, flags, kind, cookie, offset, length = REQUEST.unpack_from(buffer, start)
                if magic != REQUEST_MAGIC:
                    raise Garbage(f"request magic {magic:#x}: expected {REQUEST_MAGIC:#x}")
                if kind == _READ:
                    start += _HEADER_SIZE
                    if length > SMALL or not self._read_quickly(cookie, offset, length):
                        self._read(cookie, offset, length)
                elif kind == _WRITE:
                    stop = start + _HEADER_SIZE + length
                    if stop <= end:
                        self._write(cookie, offset, buffer[start + _HEADER_SIZE : stop], flags)
                        start = stop
                    elif _HEADER_SIZE + length <= RECEIVE_BUFFER // 2:
                        break
                    else:
                        self._write(cookie, offset, self._rest(buffer[start + _HEADER_SIZE : end], length), flags)
                        start = end = 0
                elif kind == Command.DISC:
                    self._replies.flush()
                    return
                else:
                    start += _HEADER_SIZE
                    self._other(kind, cookie, offset, length, flags)
            self._leave()
            self._pending.collect()
            self._replies.flush()
            if 0 < start < end:
                buffer[: end - start] = bytes(buffer[start:end])
            start, end = 0, end - start
        raise EOFError

    def _receive(self, buffer: memoryview, end: int) -> int:
        """Receive behind the first `end` bytes; how many bytes, none when the client left.

        A client that waits for every answer sends one request at a time. While that is a small read of a plain disk,
        and nothing is under way, it is answered right here.
        """
        receive, unpack, preadv = self.sock.recv_into, REQUEST.unpack_from, os.preadv
        if end:
            return receive(buffer[end:])
        enter, pending, replies = self.bdev.io.enter, self._pending, self._replies
        size = 0
        while (count := receive(buffer)) == _HEADER_SIZE and not pending.waiting:
            magic, _, kind, cookie, offset, length = unpack(buffer)
            if magic != REQUEST_MAGIC or kind != _READ or length > SMALL:
                break
            self._route = route = enter()
            if route is None or (place := route.place(offset, length)) is None:
                break
            start = replies.begin(cookie, offset, length)
            if length != size:
                size = length
                data, reply = (replies.buffer[start : start + size],), replies.buffer[: start + size]
            try:
                if preadv(place[0].fd, data, place[1]) != length:
                    break
            except OSError:
                break
            self._route = None
            route.leave()
            replies.send(reply)
        return count

    def _rest(self, begun: memoryview, length: int) -> memoryview:
        """The whole payload of a large write of which `begun` is here already."""
        if length > MAX_BLOCK:
            raise Garbage(f"a write of {length} bytes: expected at most {MAX_BLOCK}")
        self._leave()
        self._replies.flush()
        data = memoryview(bytearray(length))
        have = len(begun)
        data[:have] = begun
        while have < length:
            count = self.sock.recv_into(data[have:])
            if not count:
                raise EOFError
            have += count
        return data

    def _refusal(self, offset: int, length: int, most: int = 0xFFFFFFFF) -> int:
        """What is wrong with the range of a request."""
        mask = self.bdev.limits.logical_block_size - 1
        if not length or (offset | length) & mask or length > most or offset + length > self.bdev.bytes:
            return errno.EINVAL
        return 0

    def _pieces(self, offset: int, length: int) -> list[Piece] | None:
        """The disks' part of a request, with the route entered; None: a bio has to do it."""
        route = self._route or self._enter()
        if route is None:
            return None
        pieces = route.pieces(offset // SECTOR_SIZE, length // SECTOR_SIZE)
        if pieces is None or any(type(disk) is not Disk for disk, _, _ in pieces):
            self._leave()
            return None
        return pieces

    def _enter(self) -> Route | None:
        self._route = self.bdev.io.enter()
        return self._route

    def _leave(self) -> None:
        if self._route is not None:
            self._route.leave()
            self._route = None

    def _read(self, cookie: int, offset: int, length: int) -> None:
        if error := self._refusal(offset, length, MAX_BLOCK):
            self._answer(Command.READ, cookie, error)
            return
        pieces = self._pieces(offset, length)
        if pieces is not None:
            straight = length // len(pieces) > SMALL
            if (self._read_large if straight else self._read_pieces)(cookie, offset, length, pieces):
                return
            self._leave()
        self._bio(Op.READ, Request(Command.READ, cookie, offset, length, memoryview(bytearray(length))))

    def _read_quickly(self, cookie: int, offset: int, length: int) -> bool:
        """A read of at most `SMALL` bytes that is one piece of a disk and finds room: what nearly all are. False, and
        nothing done, for any other."""
        route = self._route or self._enter()
        place = route.place(offset, length) if route is not None else None
        replies = self._replies
        if place is None or replies.filled + length > REPLY_BUFFER - DATA_HEADER.size:
            return False
        start = replies.begin(cookie, offset, length)
        stop = start + length
        try:
            if os.preadv(place[0].fd, (replies.buffer[start:stop],), place[1]) != length:
                return False
        except OSError:
            return False
        replies.filled = stop
        return True

    def _read_pieces(self, cookie: int, offset: int, length: int, pieces: list[Piece]) -> bool:
        """Gather the pieces. False, and nothing answered, when one fails."""
        data = memoryview(bytearray(length))
        stop = 0
        try:
            for disk, sector, count in pieces:
                start, stop = stop, stop + count * SECTOR_SIZE
                if disk.read_into(data[start:stop], sector * SECTOR_SIZE):
                    return False
        except OSError:
            return False
        self._replies.put(self._replies.data_header(cookie, offset, length), data)
        return True

    def _read_large(self, cookie: int, offset: int, length: int, pieces: list[Piece]) -> bool:
        """Straight from the files to the socket. False, and nothing sent, when a file is too short."""
        try:
            if not all(disk.holds(sector, count) for disk, sector, count in pieces):
                return False
        except OSError:
            return False
        self._leave()
        self._replies.flush()
        with self._replies.sending:
            self._replies.send(self._replies.data_header(cookie, offset, length))
            while length:
                sent = self._send_some(offset, length)
                offset, length = offset + sent, length - sent
        return True

    def _send_some(self, offset: int, length: int) -> int:
        """Send data of a reply that has begun; how many bytes went out, perhaps 0. the replies' `sending` is held."""
        begin = offset - offset % SECTOR_SIZE
        pieces = self._pieces(begin, -(-(offset + length) // SECTOR_SIZE) * SECTOR_SIZE - begin)
        if pieces is None:
            self._replies.send(self._read_now(begin, length + offset - begin)[offset - begin :])
            return length
        disk, sector, count = pieces[0]
        skip = offset - begin
        try:
            sent = os.sendfile(self._fd, disk.fd, sector * SECTOR_SIZE + skip, min(count * SECTOR_SIZE - skip, length))
        except BlockingIOError:
            self._leave()
            self._replies.wait_writable()
            return 0
        finally:
            self._leave()
        if not sent:
            raise Garbage(f"{disk.backing} ended in the middle of a reply")
        return sent

    def _read_now(self, offset: int, length: int) -> memoryview:
        """Read by a bio and wait for it."""
        data = memoryview(bytearray(length))
        errors: list[int] = []

        sector, count = offset // SECTOR_SIZE, length // SECTOR_SIZE
        done = lambda bio: self._pending.wake(lambda: errors.append(bio.error))  # noqa: E731  # short, and said where it is used
        self.bdev.submit_bio(Bio(Op.READ, sector, count, data, done, bdev=self.bdev))
        self._pending.wait_until(lambda: bool(errors))
        if errors[0]:
            raise Garbage(f"the data of a reply that has begun cannot be read: {os.strerror(errors[0])}")
        return data

    def _write(self, cookie: int, offset: int, data: memoryview, flags: int) -> None:
        length = len(data)
        if self.bdev.read_only:
            self._answer(Command.WRITE, cookie, errno.EPERM)
            return
        if not flags and self._write_quickly(cookie, offset, data):
            return
        if error := self._refusal(offset, length, MAX_BLOCK):
            past = offset + length > self.bdev.bytes
            self._answer(Command.WRITE, cookie, errno.ENOSPC if past else error)
            return
        fua = bool(flags & CommandFlag.FUA)
        pieces = self._pieces(offset, length)
        if pieces is not None and self._write_pieces(pieces, data, fua):
            self._answer(Command.WRITE, cookie, 0)
            return
        self._leave()
        copy = memoryview(bytearray(data))
        self._bio(Op.WRITE, Request(Command.WRITE, cookie, offset, length, copy), fua=fua)

    def _write_quickly(self, cookie: int, offset: int, data: memoryview) -> bool:
        """A write that is one piece of a disk. False for any other, and when it fails."""
        route = self._route or self._enter()
        place = route.place(offset, len(data)) if route is not None else None
        if place is None or place[0].read_only:
            return False
        try:
            if os.pwrite(place[0].fd, data, place[1]) != len(data):
                return False
        except OSError:
            return False
        self._replies.put(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie))
        return True

    def _write_pieces(self, pieces: list[Piece], data: memoryview, fua: bool) -> bool:
        start = 0
        try:
            for disk, sector, count in pieces:
                if disk.read_only:
                    return False
                stop = start + count * SECTOR_SIZE
                if disk.write_from(data[start:stop], sector * SECTOR_SIZE):
                    return False
                start = stop
            if fua:
                for disk in {disk for disk, _, _ in pieces}:
                    os.fdatasync(disk.fd)
        except OSError:
            return False
        return True

    def _other(self, kind: int, cookie: int, offset: int, length: int, flags: int) -> None:
        self._leave()
        fua = bool(flags & CommandFlag.FUA)
        if kind == Command.FLUSH:
            self._bio(Op.FLUSH, Request(kind, cookie, 0, 0))
        elif kind == Command.BLOCK_STATUS:
            self._block_status(cookie, offset, length, flags)
        elif kind not in (Command.TRIM, Command.WRITE_ZEROES):
            self._answer(kind, cookie, errno.EINVAL)
        elif self.bdev.read_only:
            self._answer(kind, cookie, errno.EPERM)
        elif error := self._refusal(offset, length):
            self._answer(kind, cookie, error)
        elif kind == Command.TRIM:
            self._bio(Op.DISCARD, Request(kind, cookie, offset, 0), length, fua=fua)
        elif flags & CommandFlag.FAST_ZERO and (flags & CommandFlag.NO_HOLE or not self.bdev.limits.write_zeroes):
            self._answer(kind, cookie, errno.EOPNOTSUPP)
        else:
            request = Request(kind, cookie, offset, 0)
            self._pending.begin(request)
            issue_zeroout(
                self.bdev,
                offset // SECTOR_SIZE,
                length // SECTOR_SIZE,
                lambda error: self._pending.done(request, error),
                fua=fua,
                unmap=not flags & CommandFlag.NO_HOLE,
            )
            self._pending.collect()

    def _block_status(self, cookie: int, offset: int, length: int, flags: int) -> None:
        error = self._refusal(offset, length)
        if error or not self.allocation:
            self._answer(Command.BLOCK_STATUS, cookie, error or errno.EINVAL)
            return
        most = 1 if flags & CommandFlag.REQ_ONE else MAX_EXTENTS
        pieces = self._pieces(offset, length)
        extents = [(length, False)] if pieces is None else allocation(pieces, most)
        self._leave()
        payload = struct.pack(">I", ALLOCATION[1])
        for size, hole in extents:
            payload += EXTENT.pack(size, Allocation.HOLE | Allocation.ZERO if hole else 0)
        header = STRUCTURED_REPLY.pack(STRUCTURED_REPLY_MAGIC, 1, Chunk.BLOCK_STATUS, cookie, len(payload))
        self._replies.put(header, payload)

    # -- bios -------------------------------------------------------------------------------------------

    def _bio(self, op: Op, request: Request, length: int | None = None, *, fua: bool = False) -> None:
        count = (request.size if length is None else length) // SECTOR_SIZE
        self._pending.begin(request)
        done = lambda bio: self._pending.done(request, bio.error)  # noqa: E731  # short, and said where it is used
        bio = Bio(op, request.offset // SECTOR_SIZE, count, request.data, done, fua=fua, bdev=self.bdev)
        self.bdev.submit_bio(bio)
        self._pending.collect()

    def _answer(self, kind: int, cookie: int, error: int) -> None:
        self._replies.put(self._replies.status(kind, cookie, error))
