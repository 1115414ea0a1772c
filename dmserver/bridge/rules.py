"""The table of system calls that the bridge answers; specs/bridge.md shows it.

`room` and `method` name the one who answers: the bridge itself, its `files` or its `changes`; the method that has the
call's own name, or another.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from .seccomp import build_filter
from .syscalls import machine

__all__ = ["DM_TYPE", "IOCTL_TYPES", "LOOP_TYPE", "SYSCALL_RULES", "SyscallRule", "filter_program", "rules_by_number"]

DM_TYPE = 0xFD
LOOP_TYPE = 0x4C

#: Types of ioctls that are looked at, with their rung: device-mapper, block devices, disks, loop, floppy, CD-ROM.
IOCTL_TYPES = {DM_TYPE: 1, 0x12: 2, 0x03: 2, LOOP_TYPE: 2, 0x02: 3, 0x53: 3}


class SyscallRule(NamedTuple):
    """One row: from which rung on, which system calls, what is answered, and who answers."""

    rung: int
    calls: str
    answer: str
    room: str
    method: str | None = None

    @property
    def names(self) -> Iterator[str]:
        yield from self.calls.split()


SYSCALL_RULES: tuple[SyscallRule, ...] = (
    SyscallRule(1, "ioctl", "what the tables below say, by type and number", "bridge"),
    SyscallRule(1, "open creat openat openat2", "a descriptor of what stands in the namespace", "files"),
    SyscallRule(1, "stat lstat fstat newfstatat statx", "the node's type, number, owner", "files"),
    SyscallRule(7, "statfs fstatfs", "the file system that the node seems to be in", "files"),
    SyscallRule(1, "access faccessat faccessat2", "what is there may be used", "files"),
    SyscallRule(1, "readlink readlinkat", "the link's target", "files"),
    SyscallRule(1, "getdents64", "the kernel's entries with ours among them", "files"),
    SyscallRule(1, "chdir fchdir getcwd", "a directory of the namespace can be where a process is", "files"),
    SyscallRule(1, "getxattr lgetxattr listxattr llistxattr", "EOPNOTSUPP: there are none", "files", "xattr"),
    SyscallRule(1, "mknod mknodat", "device nodes of dm and of disks are kept by the bridge", "changes"),
    SyscallRule(1, "mkdir mkdirat rmdir", "directories under /dev are kept by the bridge", "changes"),
    SyscallRule(1, "symlink symlinkat", "links under /dev are kept by the bridge", "changes"),
    SyscallRule(1, "unlink unlinkat", "nodes are forgotten, or hidden where a rule has one", "changes"),
    SyscallRule(1, "rename renameat renameat2", "nodes are renamed; EXDEV to and from elsewhere", "changes"),
    SyscallRule(5, "link linkat", "made within private directories; EXDEV to and from other nodes", "changes"),
    SyscallRule(1, "chown lchown fchownat", "the node's owner", "changes"),
    SyscallRule(1, "chmod fchmodat fchmodat2", "the node's mode", "changes"),
    SyscallRule(1, "utimensat", "0: times of nodes stand still", "changes"),
    SyscallRule(1, "execve execveat chroot", "carried out; what is known of the caller is void", "bridge", "forget"),
    SyscallRule(4, "add_key", "carried out; keys of type logon and user are remembered for crypt tables", "bridge"),
    SyscallRule(4, "keyctl", "carried out; a key that is unlinked, revoked or invalidated is forgotten", "bridge"),
    SyscallRule(6, "setpriority", "0, whether the caller may or not", "bridge", "nothing"),
    SyscallRule(6, "mlock", "0: nothing is locked", "bridge", "nothing"),
)


def rules_by_number() -> dict[int, tuple[str, SyscallRule]]:
    """Each system call's name and row, by its number on this machine."""
    cpu = machine()
    return {
        number: (name, rule)
        for rule in SYSCALL_RULES
        for name in rule.names
        if (number := cpu.number(name)) is not None
    }


@cache
def filter_program() -> bytes:
    """The filter that selects just these system calls, for this machine."""
    return build_filter((name for rule in SYSCALL_RULES for name in rule.names), IOCTL_TYPES, machine())
