"""NBD negotiation: what a client and the server say to each other until an export is chosen."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from dmproto.wire import to_text

from .blockdev import BlockDevice
from .nbd_proto import (
    ALLOCATION,
    HANDSHAKE,
    IHAVEOPT,
    INFO_BLOCK_SIZES,
    INFO_EXPORT,
    MAX_BLOCK,
    MAX_OPTION,
    NBDMAGIC,
    OPTION,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    ExportFlag,
    HandshakeFlag,
    Info,
    Option,
    Reply,
)

if TYPE_CHECKING:
    from ..model.dm_dev import DmDev

__all__ = ["Exports", "Garbage", "Negotiation", "receive"]


class Garbage(Exception):
    """The client broke the protocol so that nothing it sends from here on can be understood."""


class Exports(Protocol):
    """What there is to choose from, asked in the connection's thread."""

    def names(self) -> list[str]:
        """Names of all exports."""

    def open(self, name: str) -> DmDev:
        """Open an export and count it as open; OSError with a sentence when there is none of that name."""


def receive(sock: socket.socket, length: int) -> bytes:
    """Exactly `length` bytes. EOFError when the client leaves first."""
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def export_flags(bdev: BlockDevice) -> ExportFlag:
    """The transmission flags that describe a device."""
    flags = (
        ExportFlag.HAS_FLAGS
        | ExportFlag.SEND_FLUSH
        | ExportFlag.SEND_FUA
        | ExportFlag.SEND_WRITE_ZEROES
        | ExportFlag.SEND_FAST_ZERO
        | ExportFlag.SEND_DF
        | ExportFlag.CAN_MULTI_CONN
    )
    if bdev.read_only:
        flags |= ExportFlag.READ_ONLY
    if bdev.limits.discard:
        flags |= ExportFlag.SEND_TRIM
    if bdev.limits.rotational:
        flags |= ExportFlag.ROTATIONAL
    return flags


class Negotiation:
    """One handshake. `structured` and `allocation` say what the client asked for: structured replies, and the
    context base:allocation of the export `allocation`."""

    def __init__(self, sock: socket.socket, exports: Exports) -> None:
        self.sock = sock
        self.exports = exports
        self.structured = False
        self.allocation: str | None = None
        self._no_zeroes = False
        self.chosen: DmDev | None = None
        self._option = 0
        self._answers: dict[int, Callable[[bytes], bool]] = {
            Option.EXPORT_NAME: self._export_name,
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.INFO: self._info,
            Option.GO: self._go,
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.LIST_META_CONTEXT: self._list_meta_context,
            Option.SET_META_CONTEXT: self._set_meta_context,
        }

    def run(self) -> DmDev | None:
        """The opened device that the client chose; None when it chose none. EOFError or Garbage when it left or made
        no sense."""
        flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        self.sock.sendall(HANDSHAKE.pack(NBDMAGIC, IHAVEOPT, flags))
        (theirs,) = struct.unpack(">I", receive(self.sock, 4))
        if theirs & ~flags or not theirs & HandshakeFlag.FIXED_NEWSTYLE:
            raise Garbage(f"client flags {theirs:#x}: expected some of {int(flags):#x}, FIXED_NEWSTYLE among them")
        self._no_zeroes = bool(theirs & HandshakeFlag.NO_ZEROES)
        while self._one_option():
            pass
        return self.chosen

    def _one_option(self) -> bool:
        """Whether the haggling goes on."""
        magic, self._option, length = OPTION.unpack(receive(self.sock, OPTION.size))
        if magic != IHAVEOPT:
            raise Garbage(f"option magic {magic:#x}: expected {IHAVEOPT:#x}")
        if length > MAX_OPTION:
            raise Garbage(f"option {self._option} of {length} bytes: expected at most {MAX_OPTION}")
        data = receive(self.sock, length)
        answer = self._answers.get(self._option)
        if answer is None:
            return self._reply(Reply.ERR_UNSUP, f"option {self._option} is not supported")
        try:
            return answer(data)
        except struct.error:
            return self._reply(Reply.ERR_INVALID, f"the data of option {self._option} are malformed")

    def _reply(self, kind: Reply, data: bytes | str = b"") -> bool:
        payload = data.encode() if isinstance(data, str) else data
        self.sock.sendall(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, self._option, kind, len(payload)) + payload)
        return True

    def _abort(self, data: bytes) -> bool:
        self._reply(Reply.ACK)
        return False

    def _list(self, data: bytes) -> bool:
        if data:
            return self._reply(Reply.ERR_INVALID, "LIST takes no data")
        for name in self.exports.names():
            text = name.encode(errors="surrogateescape")
            self._reply(Reply.SERVER, struct.pack(">I", len(text)) + text)
        return self._reply(Reply.ACK)

    def _structured_reply(self, data: bytes) -> bool:
        if data:
            return self._reply(Reply.ERR_INVALID, "STRUCTURED_REPLY takes no data")
        self.structured = True
        return self._reply(Reply.ACK)

    def _export_name(self, data: bytes) -> bool:
        try:
            bdev = self.exports.open(to_text(data))
        except OSError as refusal:
            raise Garbage(str(refusal.strerror)) from refusal
        self.chosen = bdev
        self._allow_allocation(to_text(data))
        zeroes = b"" if self._no_zeroes else bytes(124)
        self.sock.sendall(struct.pack(">QH", bdev.bytes, export_flags(bdev)) + zeroes)
        return False

    def _named(self, data: bytes) -> str:
        """The export that INFO and GO name. The wanted informations that follow are checked, not heeded: all that
        matter are sent."""
        (length,) = struct.unpack_from(">I", data)
        (count,) = struct.unpack_from(">H", data, 4 + length)
        if len(data) != 6 + length + 2 * count:
            raise struct.error
        return to_text(data[4 : 4 + length])

    def _info(self, data: bytes) -> bool:
        name = self._named(data)
        try:
            bdev = self.exports.open(name)
        except OSError as refusal:
            return self._reply(Reply.ERR_UNKNOWN, refusal.strerror or "no such export")
        description = _describe(bdev)
        bdev.close()
        return self._tell(description)

    def _go(self, data: bytes) -> bool:
        name = self._named(data)
        try:
            self.chosen = self.exports.open(name)
        except OSError as refusal:
            return self._reply(Reply.ERR_UNKNOWN, refusal.strerror or "no such export")
        self._allow_allocation(name)
        self._tell(_describe(self.chosen))
        return False

    def _tell(self, description: tuple[bytes, ...]) -> bool:
        for info in description:
            self._reply(Reply.INFO, info)
        return self._reply(Reply.ACK)

    def _allow_allocation(self, name: str) -> None:
        if self.allocation != name:
            self.allocation = None

    def _queries(self, data: bytes) -> tuple[str, list[bytes]]:
        (length,) = struct.unpack_from(">I", data)
        name = to_text(data[4 : 4 + length])
        (count,) = struct.unpack_from(">I", data, 4 + length)
        at = 8 + length
        queries = []
        for _ in range(count):
            (length,) = struct.unpack_from(">I", data, at)
            queries.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        if at != len(data):
            raise struct.error
        return name, queries

    def _list_meta_context(self, data: bytes) -> bool:
        return self._meta_context(data, all_of_them=True)[1]

    def _set_meta_context(self, data: bytes) -> bool:
        chosen, going_on = self._meta_context(data, all_of_them=False)
        self.allocation = chosen
        return going_on

    def _meta_context(self, data: bytes, *, all_of_them: bool) -> tuple[str | None, bool]:
        """The export for which base:allocation was found among the queries."""
        name, queries = self._queries(data)
        if not self.structured:
            return None, self._reply(Reply.ERR_INVALID, "structured replies come first")
        if name not in self.exports.names():
            return None, self._reply(Reply.ERR_UNKNOWN, f"no export {name!r}")
        context, number = ALLOCATION
        found = context in queries or (all_of_them and (not queries or b"base:" in queries))
        if found:
            self._reply(Reply.META_CONTEXT, struct.pack(">I", 0 if all_of_them else number) + context)
        return name if found else None, self._reply(Reply.ACK)


def _describe(bdev: BlockDevice) -> tuple[bytes, ...]:
    least = bdev.limits.logical_block_size
    preferred = max(4096, least, bdev.limits.physical_block_size)
    return (
        INFO_EXPORT.pack(Info.EXPORT, bdev.bytes, export_flags(bdev)),
        INFO_BLOCK_SIZES.pack(Info.BLOCK_SIZE, least, preferred, MAX_BLOCK),
    )
