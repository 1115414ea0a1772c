"""Mapped devices as files: `DIR/mapper/NAME`, and `DIR/dm-N` as a link to it; though not listed, any block device as
`DIR/MAJOR:MINOR`. Extra `fuse` (mfusepy, libfuse).

The files are cached in pages by the kernel, as block devices are, so that mmap works; a file that is opened anew is
read anew, and O_DIRECT goes past the pages. Rules:

1. libfuse's threads call in here, each with one request, which it may hold for as long as a device is suspended. So
   there may be many of them, and none asks the commands' thread for anything.
2. Names and sizes are never cached: the next look sees what the last command did.
3. No close(2) waits for us: a child of this very process closes what it inherited while fork has the interpreter's
   lock.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
from ctypes.util import find_library
from typing import TYPE_CHECKING, Any

from . import node

if TYPE_CHECKING:
    from ..model.mapper import Mapper
    from .blockdev import BlockDevice

if find_library("fuse3"):
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # mfusepy would rather have libfuse 2

try:
    import mfusepy
except (ImportError, OSError) as failure:  # OSError: mfusepy found no libfuse
    raise ImportError(f"FUSE needs mfusepy (pip install 'dmproto[fuse]') and libfuse: {failure}") from failure

__all__ = ["FuseMount"]

_MNT_FORCE, _MNT_DETACH = 1, 2
_CAP_ASYNC_DIO = 1 << 15
_BLOCK = 4096
_THREADS = 1000
_NUMBERED = re.compile(r"/(\d+):(\d+)", re.ASCII)
_log = logging.getLogger(__name__)


class FuseMount:
    """The devices of `mapper` as files below `directory`, which must exist. With `counts`, an open file counts as an
    opener of its device."""

    def __init__(self, mapper: Mapper, directory: str, *, counts: bool = True) -> None:
        self.directory = os.path.abspath(directory)
        self._files = _Files(mapper, counts)
        self._thread = threading.Thread(target=self._run, name="fuse", daemon=True)
        self._failure: Exception | None = None

    def start(self) -> None:
        """Mount; returns once the files are there. OSError when this machine or user cannot mount FUSE."""
        if not os.path.isdir(self.directory):
            number = errno.ENOTDIR if os.path.exists(self.directory) else errno.ENOENT
            raise OSError(number, os.strerror(number), self.directory)
        self._thread.start()
        self._files.ready.wait()
        if self._failure is not None:
            raise OSError(errno.EIO, f"cannot mount FUSE: {self._failure}", self.directory)

    def close(self) -> None:
        """Unmount. Requests still under way fail; files still open are dead."""
        if not self._thread.is_alive():
            return
        if os.geteuid() == 0:
            umount = ctypes.CDLL(None).umount2
            for flag in (_MNT_FORCE, _MNT_DETACH):
                umount(os.fsencode(self.directory), flag)
        else:
            tool = shutil.which("fusermount3") or "fusermount"
            subprocess.run([tool, "-u", "-z", self.directory], check=False, capture_output=True)
        self._thread.join(10)

    def _run(self) -> None:
        options: dict[str, Any] = {"fsname": "dmserver", "default_permissions": True}
        options |= {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}
        if (mfusepy.fuse_version_major, mfusepy.fuse_version_minor) >= (3, 12):
            options["max_threads"] = options["max_idle_threads"] = _THREADS  # else libfuse complains of its own default
        try:
            mfusepy.FUSE(self._files, self.directory, foreground=True, raw_fi=True, **options)
        except Exception as failure:
            self._failure = failure
            _log.error("FUSE on %s: %s", self.directory, failure)
        finally:
            # libfuse puts back SIGPIPE's default action, which kills; Python had it ignored.
            ctypes.CDLL(None).signal(signal.SIGPIPE, ctypes.c_void_p(signal.SIG_IGN))
            self._files.ready.set()


class _Files(mfusepy.Operations):  # type: ignore[misc]  # mfusepy has no types
    """The callbacks."""

    use_ns = True
    flag_nopath = flag_nullpath_ok = True

    def __init__(self, mapper: Mapper, counts: bool) -> None:
        self.mapper = mapper
        self.counts = counts
        self.ready = threading.Event()
        self._directory = os.getcwd()
        self._handles: dict[int, BlockDevice] = {}
        self._lock = threading.Lock()

    def init_with_config(self, conn: Any, config: Any) -> None:
        os.chdir(self._directory)  # libfuse went to /
        conn.want &= ~_CAP_ASYNC_DIO  # else a write that is cut short at the end would be EIO
        conn.max_background = conn.congestion_threshold = _THREADS
        self.ready.set()

    # -- names ------------------------------------------------------------------------------------------

    def _find(self, path: str) -> BlockDevice | str:
        """The device whose file this is, or where the link points."""
        if path.startswith("/mapper/"):
            if dev := self.mapper.by_name(path[len("/mapper/") :]):
                return dev
        elif path.startswith("/dm-") and path[4:].isascii() and path[4:].isdecimal():
            dev = self.mapper.devices.get(int(path[4:]))
            if dev is not None:
                return f"mapper/{dev.name}" if dev.name else dev
        elif (match := _NUMBERED.fullmatch(path)) and (found := self.mapper.by_dev((int(match[1]), int(match[2])))):
            return found
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def getattr(self, path: str | None, fh: Any = None) -> dict[str, Any]:
        attributes: dict[str, Any] = {"st_uid": os.geteuid(), "st_gid": os.getegid(), "st_nlink": 1}
        if fh is None and path in ("/", "/mapper"):
            return attributes | {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        assert path is not None or fh is not None
        found = self._find(path) if path is not None else self._handles[fh.fh]
        if isinstance(found, str):
            return attributes | {"st_mode": stat.S_IFLNK | 0o777, "st_size": len(os.fsencode(found))}
        size = {"st_size": found.bytes, "st_blocks": found.size, "st_blksize": _BLOCK}
        return attributes | size | {"st_mode": stat.S_IFREG | 0o600}

    def readdir(self, path: str | None, fh: int) -> list[str]:
        devices = tuple(self.mapper.devices.values())
        if fh:
            return [".", "..", *(dev.name for dev in devices if dev.name not in ("", ".", ".."))]
        return [".", "..", "mapper", *(f"dm-{dev.minor}" for dev in devices)]

    def opendir(self, path: str) -> int:
        return int(path == "/mapper")  # readdir gets this number, and no path

    def readlink(self, path: str) -> str:
        found = self._find(path)
        if not isinstance(found, str):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return found

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_namemax": 127}

    def access(self, path: str, amode: int) -> int:
        return 0

    # -- files ------------------------------------------------------------------------------------------

    def open(self, path: str, fi: Any) -> int:
        dev = self._find(path)
        assert not isinstance(dev, str)
        if self.counts:
            dev.open()
        with self._lock:
            fi.noflush = 1
            fi.fh = next(number for number in range(1, len(self._handles) + 2) if number not in self._handles)
            self._handles[fi.fh] = dev
        return 0

    def release(self, path: str | None, fi: Any) -> int:
        with self._lock:
            dev = self._handles.pop(fi.fh)
        if self.counts:
            dev.close()
        return 0

    def read(self, path: str | None, size: int, offset: int, fi: Any) -> bytes:
        return bytes(node.read(self._aligned(fi, offset, size), offset, size))

    def write(self, path: str | None, data: bytes, offset: int, fi: Any) -> int:
        return node.write(self._aligned(fi, offset, len(data)), offset, memoryview(data))

    def _aligned(self, fi: Any, offset: int, size: int) -> BlockDevice:
        """The device of an open file; EINVAL when direct I/O is not of whole blocks."""
        dev = self._handles[fi.fh]
        if fi.flags & os.O_DIRECT and (offset | size) % dev.limits.logical_block_size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return dev

    def fsync(self, path: str | None, datasync: int, fi: Any) -> int:
        node.fsync(self._handles[fi.fh])
        return 0

    def fallocate(self, path: str | None, mode: int, offset: int, size: int, fi: Any) -> int:
        node.fallocate(self._handles[fi.fh], mode, offset, size)
        return 0

    def truncate(self, path: str | None, length: int, fh: Any = None) -> int:
        """O_TRUNC means nothing to a block device; any other size is refused."""
        dev = self._find(path) if path is not None else None  # mfusepy does not tell which open file it is
        if isinstance(dev, str) or (length and (dev is None or length != dev.bytes)):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return 0

    def utimens(self, path: str | None, times: Any = None, fh: Any = None) -> int:
        return 0
