"""The kernel's FUSE protocol (include/uapi/linux/fuse.h, 7.31): what a file system of plain files needs of it.

A request is a header and what its opcode demands; the reply is a header with an error and, on success, data.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

__all__ = [
    "ATTR",
    "ATTR_OUT",
    "DIRENT",
    "ENTRY_OUT",
    "FALLOCATE_IN",
    "INIT_FLAGS",
    "INIT_IN",
    "INIT_OUT",
    "IN_HEADER",
    "MAX_IO",
    "OPEN_OUT",
    "OUT_HEADER",
    "READ_IN",
    "SILENT",
    "STATFS_OUT",
    "VERSION",
    "WRITE_IN",
    "WRITE_OUT",
    "Opcode",
]

VERSION = (7, 31)
#: Bytes of the largest read or write: 256 pages.
MAX_IO = 1 << 20


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43


#: Opcodes that want no reply.
SILENT = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT}

IN_HEADER = Struct("=IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, padding
OUT_HEADER = Struct("=IiQ")  # len, error, unique
INIT_IN = Struct("=IIII")  # major, minor, max_readahead, flags
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages ...
INIT_OUT = Struct("=IIIIHHIIH34x")
# ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
ATTR = Struct("=6Q3I7I")
ENTRY_OUT = Struct("=QQQQII")  # nodeid, generation, entry_valid, attr_valid, their nanoseconds; then attr
ATTR_OUT = Struct("=QII")  # attr_valid, its nanoseconds, dummy; then attr
OPEN_OUT = Struct("=QII")  # fh, open_flags, padding
READ_IN = Struct("=QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
WRITE_IN = READ_IN
WRITE_OUT = Struct("=II")  # size, padding
FALLOCATE_IN = Struct("=QQQII")  # fh, offset, length, mode, padding
STATFS_OUT = Struct("=5Q4I24x")  # blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding
DIRENT = Struct("=QQII")  # ino, off, namelen, type; then the name, padded to 8

#: ASYNC_READ | BIG_WRITES | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES
INIT_FLAGS = 1 << 0 | 1 << 5 | 1 << 15 | 1 << 18 | 1 << 22
