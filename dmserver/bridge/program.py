"""Starting the program under the filter, passing signals on, and leaving as it left."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from struct import unpack_from

from dmserver.loop import Loop

from .launch import enter, receive_listener
from .rules import filter_program

__all__ = ["Program"]

PR_SET_CHILD_SUBREAPER = 36
SIGNALFD_SIGINFO = 128  # sizeof(struct signalfd_siginfo): ssi_signo, ssi_errno, ssi_code ...
SFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC

#: Passed on, unless the kernel sent them: the terminal's go to the program as well.
FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)


class Program:
    """A child under the filter. `listener` is the supervisor's end of it; `status` a wait status once it ended."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Start `argv`. OSError when it is not found, or when the kernel refuses the filter."""
        path = shutil.which(argv[0]) or argv[0]  # what may not be run, the kernel refuses
        if "/" not in path or not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, "command not found", argv[0])
        filter_program()  # is made by now: a child pays for every page that it touches
        self.status: int | None = None
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
        ours, theirs = socket.socketpair()
        self._before = _children()  # of who became us by exec
        self.pid = os.fork()
        if not self.pid:
            enter(theirs, path, argv, os.environ, lambda: signal.pthread_sigmask(signal.SIG_SETMASK, self._mask))
        theirs.close()
        with ours:
            try:
                self.listener = receive_listener(ours)
            except OSError:
                os.waitpid(self.pid, 0)
                signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
                raise
        self._signalfd = _signalfd(libc, {*FORWARDED, signal.SIGCHLD})

    def watch(self, loop: Loop) -> None:
        """Pass signals on and reap; stops the loop when the program has ended."""

        def signalled(events: int) -> None:
            for number, code in _read_signals(self._signalfd):
                if number == signal.SIGCHLD:
                    self._reap()
                elif code <= 0 and self.status is None:
                    os.kill(self.pid, number)
            if self.status is not None:
                loop.stop()

        loop.add(self._signalfd, select.EPOLLIN, signalled)

    def close(self) -> None:
        """Signals act on this process again."""
        os.close(self._signalfd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def end_others(self) -> None:
        """Kill what the program left behind: without its device-mapper hardly a system call of theirs would work."""
        spared = self._before
        while found := _children() - spared:
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                except OSError:
                    spared.add(pid)

    def leave(self) -> int:
        """The exit status to leave with; a program killed by a signal takes this process with it."""
        assert self.status is not None
        code = os.waitstatus_to_exitcode(self.status)
        if code >= 0:
            return code
        sys.stdout.flush()
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
        return 128 - code

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.pid:
                self.status = status


def _children() -> set[int]:
    """The children of this process; orphans below it become such. None where the kernel does not tell (proc(5))."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return {int(pid) for pid in file.read().split()}
    except FileNotFoundError:
        return set()


def _signalfd(libc: ctypes.CDLL, signals: set[signal.Signals]) -> int:
    mask = bytearray(128)  # sigset_t
    for number in signals:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    fd: int = libc.signalfd(-1, (ctypes.c_char * len(mask)).from_buffer(mask), SFD_FLAGS)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd(2)")
    return fd


def _read_signals(fd: int) -> list[tuple[int, int]]:
    try:
        data = os.read(fd, SIGNALFD_SIGINFO * 16)
    except BlockingIOError:
        return []
    return [
        (number, code)
        for number, _, code in (unpack_from("=IIi", data, at) for at in range(0, len(data), SIGNALFD_SIGINFO))
    ]
