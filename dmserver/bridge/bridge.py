"""The bridge put together: which system calls are answered, by whom, and what they share."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from struct import unpack_from

from dmproto.records import huge_decode
from dmserver.host import Host
from dmserver.loop import Loop

from .caller import Caller
from .changes import Changes
from .control import ControlNodes
from .devices import Devices
from .files import Files
from .namespace import Namespace
from .nodes import ABSENT, Dir, File, Node, Special, attributes
from .paths import Paths, Place
from .seccomp import Listener, build_filter
from .supervisor import CONTINUE, Call, Handler, Outcome, Supervisor
from .syscalls import machine

__all__ = ["IOCTL_TYPES", "SYSCALL_RULES", "Bridge", "SyscallRule"]

DEV_RENAME, DEV_SUSPEND = 5, 6
#: libdevmapper's udev flags, the upper half of an event number (libdevmapper.h).
DM_UDEV_DISABLE_LIBRARY_FALLBACK, DM_UDEV_PRIMARY_SOURCE_FLAG = 0x20, 0x40
DM_TYPE = 0xFD


@dataclass(frozen=True, slots=True)
class SyscallRule:
    """One row: which system calls, from which rung on, what is answered, and who answers."""

    rung: int
    calls: str
    answer: str
    handler: Callable[[Bridge, str], Handler]


def _files(bridge: Bridge, name: str) -> Handler:
    return getattr(bridge.files, name)  # type: ignore[no-any-return]


def _changes(bridge: Bridge, name: str) -> Handler:
    return getattr(bridge.changes, name)  # type: ignore[no-any-return]


SYSCALL_RULES: tuple[SyscallRule, ...] = (
    SyscallRule(1, "ioctl", "of the types below: see there", lambda b, n: b.ioctl),
    SyscallRule(1, "open creat openat openat2", "a descriptor of what stands in the namespace", _files),
    SyscallRule(1, "stat lstat fstat newfstatat statx", "the node's type, number, owner", _files),
    SyscallRule(1, "access faccessat faccessat2", "what is there may be used", _files),
    SyscallRule(1, "readlink readlinkat", "the link's target", _files),
    SyscallRule(1, "getdents64", "the kernel's entries with ours among them", _files),
    SyscallRule(1, "chdir fchdir getcwd", "a directory of the namespace can be where a process is", _files),
    SyscallRule(1, "getxattr lgetxattr listxattr llistxattr", "EOPNOTSUPP", lambda b, n: b.files.xattr),
    SyscallRule(1, "mknod mknodat", "device nodes of dm and of disks are kept by the bridge", _changes),
    SyscallRule(1, "mkdir mkdirat rmdir", "directories under /dev are kept by the bridge", _changes),
    SyscallRule(1, "symlink symlinkat", "links under /dev are kept by the bridge", _changes),
    SyscallRule(1, "unlink unlinkat", "nodes are forgotten or hidden", _changes),
    SyscallRule(1, "rename renameat renameat2", "nodes are renamed; EXDEV to and from elsewhere", _changes),
    SyscallRule(1, "chown lchown fchownat", "the node's owner", _changes),
    SyscallRule(1, "chmod fchmodat", "the node's mode", _changes),
    SyscallRule(1, "utimensat", "0", _changes),
    SyscallRule(1, "execve execveat", "carried out; the caller's memory is another one", lambda b, n: b.forget),
    SyscallRule(1, "chroot", "carried out; the caller's root is another one", lambda b, n: b.forget),
    SyscallRule(6, "setpriority", "0, whether it may or not", lambda b, n: _done),
    SyscallRule(6, "mlock", "0: nothing is locked", lambda b, n: _done),
)

#: Types of ioctls that are looked at: device-mapper, block devices, and what is asked of disks in general.
IOCTL_TYPES = {DM_TYPE: 1, 0x12: 2, 0x03: 2, 0x4C: 2, 0x02: 3, 0x53: 3}


def _done(call: Call) -> int:
    return 0


class Bridge:
    """One device-mapper in the view of the programs under one filter."""

    def __init__(self, loop: Loop, host: Host) -> None:
        self.loop = loop
        self.host = host
        self.devices = Devices(host.mapper)
        self.space = Namespace(self.devices, self._private)
        self._root = tempfile.mkdtemp(prefix="dm")
        self.paths = Paths(self.space, os.fsencode(self._root) + b"/shadow")
        self.files: Files = Files(self)
        self.changes: Changes = Changes(self)
        self.control = ControlNodes(loop, host, host.mapper.events, self._observe)
        self.supervisor: Supervisor | None = None
        host.mapper.on_remove.append(lambda device: self._renamed(device.minor, device.name, library=False))

    def close(self) -> None:
        if self.supervisor:
            self.supervisor.close()
        self.control.close()
        shutil.rmtree(self._root, ignore_errors=True)

    @staticmethod
    def filter() -> bytes:
        """The program that selects the system calls of the rules."""
        return build_filter((name for rule in SYSCALL_RULES for name in rule.calls.split()), IOCTL_TYPES, machine())

    def supervise(self, listener: int) -> None:
        """Answer what comes from the filter's listener."""
        cpu = machine()
        handlers = {
            number: (name, rule.handler(self, name))
            for rule in SYSCALL_RULES
            for name in rule.calls.split()
            if (number := cpu.number(name)) is not None
        }
        self.supervisor = Supervisor(self.loop, handlers, Listener(listener))

    # -- handlers that belong to no room ----------------------------------------------------------------

    def ioctl(self, call: Call) -> int | Outcome:
        if call.args[1] >> 8 & 0xFF == DM_TYPE:
            return self.control.ioctl(call)
        return CONTINUE

    def forget(self, call: Call) -> Outcome:
        assert self.supervisor
        self.supervisor.forget(call.caller.tid)
        return CONTINUE

    # -- what the handlers share ------------------------------------------------------------------------

    def open_device(self, call: Call, node: Special, place: Place, flags: int) -> int | Outcome:
        """Open a device node."""
        if node.kind == stat.S_IFCHR:
            return self.control.open(call, cloexec=bool(flags & os.O_CLOEXEC))
        return -errno.ENXIO

    def attributes_of_fd(self, caller: Caller, fd: int) -> dict[str, int] | None:
        """What fstat says of a descriptor that we handed over; None for any other."""
        link = caller.link(f"fd/{fd}")
        if self.control.is_node(link):
            return attributes(b"/dev/mapper/control", self.space.find(b"/dev/mapper/control"))  # type: ignore[arg-type]
        if (path := self.paths.unshadow(link)) is not None:
            node = self.space.find(path)
            if isinstance(node, Dir | File):
                return attributes(path, node)
        return None

    def shadow(self, path: bytes, node: Node) -> bytes:
        """A real directory, or file with the present content, in the place of a node."""
        real = self.paths.shadow + path
        if isinstance(node, File):
            os.makedirs(os.path.dirname(real), exist_ok=True)
            fresh = real + b"~"
            with open(fresh, "wb") as file:
                file.write(node.content())
            os.rename(fresh, real)
        else:
            os.makedirs(real, exist_ok=True)
        return real

    def _private(self, name: bytes) -> bytes:
        real = os.path.join(os.fsencode(self._root), b"private", name)
        os.makedirs(real, exist_ok=True)
        return real

    def _observe(self, command: int, request: bytes, reply: bytes) -> None:
        """Learn from a resume or rename who makes the node."""
        if command not in (DEV_SUSPEND, DEV_RENAME) or len(reply) < 48:
            return
        flags = unpack_from("<I", request, 32)[0] >> 16
        minor = huge_decode(unpack_from("<Q", reply, 40)[0])[1]
        library = bool(flags & DM_UDEV_PRIMARY_SOURCE_FLAG and not flags & DM_UDEV_DISABLE_LIBRARY_FALLBACK)
        device = self.host.mapper.devices.get(minor)
        self._renamed(minor, device.name if device else "", library=library)

    def _renamed(self, minor: int, name: str, *, library: bool) -> None:
        (self.devices.library_made.add if library else self.devices.library_made.discard)(minor)
        path = b"/dev/mapper/" + os.fsencode(name)
        if self.space.made.get(path) is ABSENT:
            del self.space.made[path]
