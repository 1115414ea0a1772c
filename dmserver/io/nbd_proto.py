"""The NBD protocol: numbers and structs of newstyle negotiation and transmission (NetworkBlockDevice `doc/proto.md`).

Everything is big-endian.
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from struct import Struct

__all__ = [
    "ALLOCATION",
    "EXTENT",
    "HANDSHAKE",
    "IHAVEOPT",
    "INFO_BLOCK_SIZES",
    "INFO_EXPORT",
    "MAX_BLOCK",
    "MAX_OPTION",
    "NBDMAGIC",
    "OPTION",
    "OPTION_REPLY",
    "OPTION_REPLY_MAGIC",
    "REQUEST",
    "REQUEST_MAGIC",
    "SIMPLE_REPLY",
    "SIMPLE_REPLY_MAGIC",
    "STRUCTURED_REPLY",
    "STRUCTURED_REPLY_MAGIC",
    "Allocation",
    "Chunk",
    "Command",
    "CommandFlag",
    "ExportFlag",
    "HandshakeFlag",
    "Info",
    "Option",
    "Reply",
    "wire_error",
]

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

HANDSHAKE = Struct(">QQH")  #: NBDMAGIC, IHAVEOPT, handshake flags
OPTION = Struct(">QII")  #: IHAVEOPT, option, length of the data that follow
OPTION_REPLY = Struct(">QIII")  #: magic, option, reply type, length
REQUEST = Struct(">IHHQQI")  #: magic, command flags, type, cookie, offset, length (bytes)
SIMPLE_REPLY = Struct(">IIQ")  #: magic, error, cookie
STRUCTURED_REPLY = Struct(">IHHQI")  #: magic, flags, type, cookie, length of the payload
INFO_EXPORT = Struct(">HQH")  #: Info.EXPORT, size in bytes, transmission flags
INFO_BLOCK_SIZES = Struct(">HIII")  #: Info.BLOCK_SIZE, minimum, preferred, maximum
EXTENT = Struct(">II")  #: length in bytes, Allocation

#: The largest payload of a read or write, in bytes; what nearly every client takes for granted.
MAX_BLOCK = 32 << 20
#: The most data of an option that is worth reading.
MAX_OPTION = 16384
#: The metadata context that says what is a hole, and the id it has here.
ALLOCATION = (b"base:allocation", 1)


class HandshakeFlag(IntFlag):
    """`NBD_FLAG_*` and `NBD_FLAG_C_*` of the handshake."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """`NBD_OPT_*`."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(IntEnum):
    """`NBD_REP_*`."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_UNKNOWN = 0x80000006
    ERR_TOO_BIG = 0x80000009


class Info(IntEnum):
    """`NBD_INFO_*`."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class ExportFlag(IntFlag):
    """`NBD_FLAG_*` of an export (transmission flags)."""

    HAS_FLAGS = 1
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    """`NBD_CMD_*`."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """`NBD_CMD_FLAG_*`."""

    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16


class Chunk(IntEnum):
    """`NBD_REPLY_TYPE_*`; the only flag, DONE, is 1."""

    NONE = 0
    OFFSET_DATA = 1
    BLOCK_STATUS = 5
    ERROR = 0x8001


class Allocation(IntFlag):
    """`NBD_STATE_*` of the context base:allocation."""

    HOLE = 1
    ZERO = 2


#: Errors that exist on the wire, under Linux's numbers.
_WIRE_ERRORS = frozenset(
    (errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOVERFLOW, errno.EOPNOTSUPP)
)


def wire_error(error: int) -> int:
    """The NBD error for an errno: itself where the protocol knows it, else EIO."""
    return error if not error or error in _WIRE_ERRORS else errno.EIO
