"""The process that made a system call: its memory, its descriptors, its view of the file system (proc(5))."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from .syscalls import machine

if TYPE_CHECKING:
    from dmserver.control.session import Session

__all__ = ["Caller", "Fault", "Stale"]

PATH_MAX = 4096


class Fault(OSError):
    """The caller's pointer leads nowhere: EFAULT."""

    def __init__(self, address: int) -> None:
        super().__init__(errno.EFAULT, f"{os.strerror(errno.EFAULT)}: address {address:#x}")


class Stale(Fault):
    """The memory is that of a program which is gone: another has the thread's number now."""


class Caller:
    """One thread of a client, until it executes another program. `sessions` are its open control nodes, by number."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.sessions: dict[int, Session] = {}
        self._mem = os.open(f"/proc/{tid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._tgid = 0
        self._root: bytes | None = None

    def close(self) -> None:
        os.close(self._mem)

    # -- memory -----------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes, as many as can be read. Raises Stale."""
        try:
            data = os.pread(self._mem, size, address)
        except (OSError, OverflowError):
            return b""
        if size and not data:
            raise Stale(address)
        return data

    def read_exactly(self, address: int, size: int) -> bytes:
        """Just so many bytes. Raises Fault."""
        data = self.read(address, size)
        if len(data) < size:
            raise Fault(address)
        return data

    def read_string(self, address: int) -> bytes:
        """A path, without its NUL. Raises Fault, or OSError(ENAMETOOLONG)."""
        data = self.read(address, 256)
        end = data.find(b"\0")
        if end < 0:
            data = self.read(address, PATH_MAX)
            end = data.find(b"\0")
        if end < 0:
            if len(data) < PATH_MAX:
                raise Fault(address)
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return data[:end]

    def write(self, address: int, data: bytes) -> None:
        """Raises Fault when not all of it can be written."""
        if not data:
            return
        try:
            written = os.pwrite(self._mem, data, address)
        except (OSError, OverflowError):
            raise Fault(address) from None
        if written < len(data):
            raise Fault(address) if written else Stale(address)

    # -- descriptors and directories ----------------------------------------------------------------------

    @property
    def tgid(self) -> int:
        """The process that the thread belongs to."""
        if not self._tgid:
            self._tgid = int(self.status("Tgid"))
        return self._tgid

    def status(self, field: str) -> str:
        """A line of /proc/TID/status."""
        with open(f"/proc/{self.tid}/status", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith(field + ":"):
                    return line[len(field) + 1 :].strip()
        raise KeyError(field)

    def has_signal(self) -> bool:
        """A signal waits to be handled by the thread."""
        try:
            pending, shared, blocked = (int(self.status(field), 16) for field in ("SigPnd", "ShdPnd", "SigBlk"))
        except (OSError, KeyError):
            return True
        return bool((pending | shared) & ~blocked)

    @property
    def root(self) -> bytes:
        """The caller's root directory as we see it; empty for our own."""
        if self._root is None:
            self._root = self.link("root").rstrip(b"/")
        return self._root

    def link(self, name: str) -> bytes:
        """Where a link in /proc/TID leads: `cwd`, `root`, `fd/3`. OSError(EBADF) when there is none."""
        try:
            return os.fsencode(os.readlink(f"/proc/{self.tid}/{name}"))
        except FileNotFoundError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def borrow(self, fd: int) -> int:
        """A duplicate, in this process, of the caller's descriptor `fd` (pidfd_getfd(2))."""
        pidfd = os.pidfd_open(self.tgid)
        try:
            ours: int = _libc.syscall(ctypes.c_long(_PIDFD_GETFD), pidfd, fd, 0)
        finally:
            os.close(pidfd)
        if ours < 0:
            failed = ctypes.get_errno()
            raise OSError(failed, os.strerror(failed))
        return ours


_libc = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD = machine().number("pidfd_getfd") or -1
