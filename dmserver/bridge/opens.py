"""Open block devices of clients: which descriptor they get in the device's place, and when it is closed.

A mapped device gives a file of a FUSE mount; so does a disk that may be written, since the mount's file ends where the
disk does, and its backing file would grow. A disk that is only read gives its backing file. Reading, writing, mmap and
AIO on them are the kernel's work. Rules:

1. What is handed over is a fresh open file description with two marks that nothing else makes: the signal of
   F_SETSIG tells it from an ordinary open of the same file, and an open-file-description lock far behind every end
   tells, once it is gone, that the last descriptor was closed.
2. The device counts an opener from the open until `sweep` finds the lock gone. It sweeps before anybody looks at its
   openers (`catch_up`), in whatever thread.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import sys
import tempfile
import threading
from struct import Struct
from typing import TYPE_CHECKING

from dmserver.io.blockdev import BlockDevice
from dmserver.io.disk import Disk
from dmserver.model.mapper import Mapper

from .caller import Caller
from .supervisor import ANSWERED, Call, Outcome

if TYPE_CHECKING:
    from dmserver.io.fusefs import FuseMount

__all__ = ["Opens"]

F_SETSIG, F_GETSIG = 10, 11
F_OFD_GETLK, F_OFD_SETLK = 36, 37
MARK = 63  #: a signal that is never sent: nobody sets O_ASYNC
FIRST_LOCK = 1 << 62
_FLOCK = Struct("@hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid
_FORGET = os.O_EXCL | os.O_CREAT | os.O_TRUNC | os.O_NOATIME | os.O_NOCTTY | os.O_NOFOLLOW | os.O_DIRECTORY


class _Open:
    __slots__ = ("device", "holder", "lock", "probe")

    def __init__(self, device: BlockDevice, holder: object | None, probe: int, lock: int) -> None:
        self.device = device
        self.holder = holder
        self.probe = probe
        self.lock = lock


class Opens:
    """All open block devices of all clients."""

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper
        self._mount: FuseMount | None = None
        self._opens: list[_Open] = []
        self._sweeping = threading.Lock()
        self._locks = itertools.count(FIRST_LOCK)
        self._by_link: dict[bytes, BlockDevice] = {}

    def close(self) -> None:
        with self._sweeping:
            for opened in tuple(self._opens):
                self._end(opened)
        if self._mount is not None:
            self._mount.close()
            os.rmdir(self._mount.directory)

    def open(self, call: Call, device: BlockDevice, flags: int) -> int | Outcome:
        """Answer an open of a block device. OSError: EBUSY when an exclusive open meets another holder, EACCES."""
        self.sweep()
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if writing and device.read_only and isinstance(device, Disk):
            return -errno.EACCES
        holder = object() if flags & os.O_EXCL else None
        device.open(holder=holder)
        fd = -1
        try:
            fd = self._data(device, flags & ~_FORGET)
            probe = os.open(f"/proc/self/fd/{fd}", os.O_RDWR if writing else os.O_RDONLY)
        except OSError:
            device.close(holder=holder)
            if fd >= 0:
                os.close(fd)
            raise
        opened = _Open(device, holder, probe, next(self._locks))
        device.catch_up = self.sweep
        kind = fcntl.F_WRLCK if writing else fcntl.F_RDLCK
        try:
            with self._sweeping:
                self._opens.append(opened)
                fcntl.fcntl(fd, F_SETSIG, MARK)
                fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, opened.lock, 1, 0))
            self._by_link[os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))] = device
            call.hand_over(fd, cloexec=bool(flags & os.O_CLOEXEC))
        finally:
            os.close(fd)
        return ANSWERED

    def device_of(self, caller: Caller, fd: int, link: bytes) -> BlockDevice | None:
        """The device behind a caller's descriptor, whose /proc link is `link`; None when it is no such thing."""
        device = self._by_link.get(link)
        if device is None:
            return None
        ours = caller.borrow(fd)
        try:
            return device if fcntl.fcntl(ours, F_GETSIG) == MARK else None
        finally:
            os.close(ours)

    def sweep(self) -> None:
        """Notice what was closed."""
        if not self._opens:
            return
        with self._sweeping:
            for opened in tuple(self._opens):
                asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, opened.lock, 1, 0)
                if _FLOCK.unpack(fcntl.fcntl(opened.probe, F_OFD_GETLK, asked))[0] == fcntl.F_UNLCK:
                    self._end(opened)

    def _data(self, device: BlockDevice, flags: int) -> int:
        """A fresh description of what holds the device's data; without O_DIRECT where the file system lacks it."""
        path = self._path(device, writing=flags & os.O_ACCMODE != os.O_RDONLY)
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            return os.open(path, flags & ~os.O_DIRECT | os.O_CLOEXEC)

    def _path(self, device: BlockDevice, *, writing: bool) -> str:
        """Where FUSE is not to be had, a disk is its backing file even to be written; OSError(EIO) for other
        devices, after the reason was told on standard error."""
        backing = ""
        if isinstance(device, Disk) and device.is_whole:
            backing = f"/proc/self/fd/{device.fd}"
            if device.is_device or not writing:
                return backing
        try:
            return "{}/{}:{}".format(self._mounted(), *device.dev)
        except (ImportError, OSError) as error:
            if backing:
                return backing
            print(f"dmserver: {device.path} cannot be read or written: {error}", file=sys.stderr, flush=True)
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error

    def _mounted(self) -> str:
        """The directory of the mount, made when it is first needed. ImportError or OSError where that cannot be."""
        if self._mount is None:
            from dmserver.io.fusefs import FuseMount

            directory = tempfile.mkdtemp(prefix="dm")
            mount = FuseMount(self.mapper, directory, counts=False)
            try:
                mount.start()
            except OSError:
                os.rmdir(directory)
                raise
            self._mount = mount
        return self._mount.directory

    def _end(self, opened: _Open) -> None:
        self._opens.remove(opened)
        os.close(opened.probe)
        opened.device.close(holder=opened.holder)
