"""Linux system call numbers and the layouts that depend on the machine, for x86-64 and aarch64.

Sources: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h, and each machine's
`struct stat`. aarch64 has only the `*at` forms; what it lacks is None.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from struct import Struct
from typing import NamedTuple

__all__ = ["AT_FDCWD", "MACHINES", "SYSCALLS", "Machine", "machine"]

AT_FDCWD = -100

#: name: (x86-64, aarch64)
SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    "access": (21, None),
    "add_key": (248, 217),
    "chdir": (80, 49),
    "chmod": (90, None),
    "chown": (92, None),
    "chroot": (161, 51),
    "creat": (85, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fchdir": (81, 50),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchownat": (260, 54),
    "fstat": (5, 80),
    "fstatfs": (138, 44),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "getxattr": (191, 8),
    "ioctl": (16, 29),
    "keyctl": (250, 219),
    "lchown": (94, None),
    "lgetxattr": (192, 9),
    "link": (86, None),
    "linkat": (265, 37),
    "listxattr": (194, 11),
    "llistxattr": (195, 12),
    "lstat": (6, None),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "mlock": (149, 228),
    "newfstatat": (262, 79),
    "open": (2, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "pidfd_getfd": (438, 438),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "rmdir": (84, None),
    "seccomp": (317, 277),
    "setpriority": (141, 140),
    "stat": (4, None),
    "statfs": (137, 43),
    "statx": (332, 291),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "utimensat": (280, 88),
}


class Machine(NamedTuple):
    """One machine. `stat` packs `struct stat`; `stat_order` names its fields in order."""

    name: str
    column: int
    audit_arch: int
    stat: Struct
    stat_order: tuple[str, ...]

    def number(self, name: str) -> int | None:
        """The number of a system call, None where this machine lacks it."""
        return SYSCALLS[name][self.column]

    def pack_stat(self, fields: Mapping[str, int]) -> bytes:
        """`struct stat` as this machine's kernel writes it, from the fields' values."""
        return self.stat.pack(*map(fields.__getitem__, self.stat_order))


_TIMES = ("atime", "atime_nsec", "mtime", "mtime_nsec", "ctime", "ctime_nsec")

MACHINES = {
    "x86_64": Machine(
        "x86_64",
        0,
        0xC000003E,  # AUDIT_ARCH_X86_64
        Struct("<QQQIII4xQqqqqqqqqq24x"),
        ("dev", "ino", "nlink", "mode", "uid", "gid", "rdev", "size", "blksize", "blocks", *_TIMES),
    ),
    "aarch64": Machine(
        "aarch64",
        1,
        0xC00000B7,  # AUDIT_ARCH_AARCH64
        Struct("<QQIIIIQ8xqi4xqqqqqqq8x"),
        ("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks", *_TIMES),
    ),
}


@cache
def machine() -> Machine:
    """This machine. OSError when the bridge does not know it."""
    name = os.uname().machine
    if name not in MACHINES:
        raise OSError(f"machine {name}: the bridge knows {', '.join(MACHINES)}")
    return MACHINES[name]
