"""Seccomp user notification in pure Python: the filter, the listener, and what can be answered through it.

Sources: linux/seccomp.h, linux/filter.h, Documentation/userspace-api/seccomp_filter.rst::

    struct seccomp_notif {              struct seccomp_data {
        __u64 id;                           int nr;
        __u32 pid;                          __u32 arch;
        __u32 flags;                        __u64 instruction_pointer;
        struct seccomp_data data;           __u64 args[6];
    };                                  };
    struct seccomp_notif_resp {         struct seccomp_notif_addfd {
        __u64 id;                           __u64 id;
        __s64 val;                          __u32 flags;
        __s32 error;                        __u32 srcfd;
        __u32 flags;                        __u32 newfd;
    };                                      __u32 newfd_flags;
                                        };
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from fcntl import ioctl
from functools import cache
from struct import Struct, pack

from .syscalls import Machine, machine

__all__ = ["Listener", "build_filter", "install_filter", "waits_killable"]

#: id, pid, nr, args
NOTIF = Struct("=QI4xi12x6Q")
RESPONSE = Struct("=QqiI")
ADDFD = Struct("=QIIII")
ID = Struct("=Q")

NOTIF_RECV = 0xC0502100
NOTIF_SEND = 0xC0182101
NOTIF_ID_VALID = 0x40082102
NOTIF_ADDFD = 0x40182103
NOTIF_SET_FLAGS = 0x40082104

FD_SYNC_WAKE_UP = 1

FLAG_CONTINUE = 1
ADDFD_FLAG_SEND = 2

SET_MODE_FILTER = 1
FILTER_FLAG_NEW_LISTENER = 1 << 3
FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
PR_SET_NO_NEW_PRIVS = 38

RET_USER_NOTIF, RET_ALLOW = 0x7FC00000, 0x7FFF0000

# struct seccomp_data, little-endian: the low words of what the filter looks at.
_NR, _ARCH, _ARG1 = 0, 4, 24
_LD, _JEQ, _RET, _RSH, _AND = 0x20, 0x15, 0x06, 0x74, 0x54


def build_filter(names: Iterable[str], ioctl_types: Iterable[int], cpu: Machine) -> bytes:
    """The program, as `struct sock_filter[]`: notify for these system calls, and for ioctls of these types only."""
    numbers = [number for name in names if name != "ioctl" and (number := cpu.number(name)) is not None]
    types = sorted(ioctl_types)
    # The tail: type test of an ioctl (2 + 1 each), ALLOW, NOTIFY. The head: arch, number, one test for each call.
    program: list[tuple[int, int, int, int]] = []
    size = 3 + len(numbers) + 1 + 1 + 3 + len(types) + 2
    allow, notify = size - 2, size - 1

    def jump_if(value: int, there: int, otherwise: int | None = None) -> None:
        at = len(program)
        program.append((_JEQ, there - at - 1, 0 if otherwise is None else otherwise - at - 1, value))

    program.append((_LD, 0, 0, _ARCH))
    jump_if(cpu.audit_arch, 2, allow)
    program.append((_LD, 0, 0, _NR))
    for number in numbers:
        jump_if(number, notify)
    ioctl_number = cpu.number("ioctl")
    assert ioctl_number is not None
    jump_if(ioctl_number, len(program) + 2)
    program.append((_RET, 0, 0, RET_ALLOW))
    program += [(_LD, 0, 0, _ARG1), (_RSH, 0, 0, 8), (_AND, 0, 0, 0xFF)]
    for kind in types:
        jump_if(kind, notify)
    program += [(_RET, 0, 0, RET_ALLOW), (_RET, 0, 0, RET_USER_NOTIF)]
    assert len(program) == size
    return b"".join(pack("=HBBI", *instruction) for instruction in program)


def install_filter(program: bytes) -> int:
    """Put this process and what it will start under the filter; returns the listener. OSError with the reason."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    code = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(pack("@HP", len(program) // 8, ctypes.addressof(code)))
    flags = FILTER_FLAG_NEW_LISTENER | (FILTER_FLAG_WAIT_KILLABLE_RECV if waits_killable() else 0)
    fd, failed = _set_filter(flags, ctypes.byref(fprog))
    if fd >= 0:
        return fd
    reason = {
        errno.EINVAL: "this kernel has no seccomp user notification (Linux 5.9 and later have it)",
        errno.ENOSYS: "this kernel has no seccomp filters",
        errno.EBUSY: "this process is supervised already, by another bridge or a container's supervisor",
    }
    raise OSError(failed, reason.get(failed, f"seccomp(2): {os.strerror(failed)}"))


@cache
def waits_killable() -> bool:
    """Once a call was received, its caller waits for the answer whatever signal comes, unless that kills it: Linux 5.19
    and later, asked without setting a filter. Flags that it knows get it to look for the filter, which is nowhere."""
    _, failed = _set_filter(FILTER_FLAG_NEW_LISTENER | FILTER_FLAG_WAIT_KILLABLE_RECV, None)
    return failed == errno.EFAULT


def _set_filter(flags: int, program: object) -> tuple[int, int]:
    """The listener or -1, and errno."""
    number = ctypes.c_long(machine().number("seccomp") or -1)
    fd: int = ctypes.CDLL(None, use_errno=True).syscall(number, SET_MODE_FILTER, flags, program)
    return fd, ctypes.get_errno()


class Listener:
    """The supervisor's end. What is answered for a call that is gone already, or after `close`, is dropped."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._notif = bytearray(NOTIF.size)
        self._blank = bytes(NOTIF.size)
        self._response = bytearray(RESPONSE.size)
        self._id = bytearray(ID.size)
        try:
            ioctl(fd, NOTIF_SET_FLAGS, FD_SYNC_WAKE_UP)
        except OSError:
            pass  # before Linux 6.6 both sides wake each other the slow way

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def receive(self) -> tuple[int, ...] | None:
        """The next notification: id, pid, nr, six arguments. None when its caller has died."""
        notif = self._notif
        notif[:] = self._blank
        try:
            ioctl(self.fd, NOTIF_RECV, notif, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return NOTIF.unpack(notif)

    def answer(self, call: int, result: int) -> None:
        """The system call returns `result`, or fails with -`result`."""
        if result < 0:
            RESPONSE.pack_into(self._response, 0, call, 0, result, 0)
        else:
            RESPONSE.pack_into(self._response, 0, call, result, 0, 0)
        self._send()

    def let_through(self, call: int) -> None:
        """The kernel carries the system call out."""
        RESPONSE.pack_into(self._response, 0, call, 0, 0, FLAG_CONTINUE)
        self._send()

    def hand_over(self, call: int, fd: int, *, cloexec: bool) -> int | None:
        """The system call returns a new descriptor of the caller, a duplicate of our `fd`; its number. None when the
        caller is gone. OSError(EMFILE)."""
        request = bytearray(ADDFD.pack(call, ADDFD_FLAG_SEND, fd, 0, os.O_CLOEXEC if cloexec else 0))
        try:
            number: int = ioctl(self.fd, NOTIF_ADDFD, request, True)
            return number
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        except ValueError:  # we are closed
            return None

    def is_valid(self, call: int) -> bool:
        """The caller still waits for the answer."""
        ID.pack_into(self._id, 0, call)
        try:
            ioctl(self.fd, NOTIF_ID_VALID, self._id, True)
        except (OSError, ValueError):  # ValueError: we are closed
            return False
        return True

    def _send(self) -> None:
        try:
            ioctl(self.fd, NOTIF_SEND, self._response, True)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        except ValueError:  # we are closed
            pass
