"""System calls that look at the namespace: open, stat, access, readlink, getdents, chdir and their kin."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING

from .nodes import Absent, Dir, File, Link, Node, Private, Special, attributes, kind_of, pack_statx
from .paths import Place
from .supervisor import ANSWERED, CONTINUE, Call, Outcome
from .syscalls import AT_FDCWD, machine

if TYPE_CHECKING:
    from .bridge import Bridge

__all__ = ["Files"]

AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH = 0x100, 0x1000
O_PATH = os.O_PATH
_DIRENT = Struct("<QqHB")  # struct linux_dirent64: d_ino, d_off, d_reclen, d_type
STATFS_SIZE = 120  # struct statfs
_HOW = Struct("<QQQ")  # struct open_how: flags, mode, resolve

_libc = ctypes.CDLL(None, use_errno=True)


class Files:
    """The handlers; each finds the place that is meant, then answers for the node there."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.paths = bridge.paths
        self.pack_stat = machine().pack_stat

    # -- open -------------------------------------------------------------------------------------------

    def open(self, call: Call) -> int | Outcome:
        return self._open(call, AT_FDCWD, call.string(0), call.args[1], call.args[2])

    def creat(self, call: Call) -> int | Outcome:
        return self._open(call, AT_FDCWD, call.string(0), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, call.args[1])

    def openat(self, call: Call) -> int | Outcome:
        return self._open(call, call.fd(0), call.string(1), call.args[2], call.args[3])

    def openat2(self, call: Call) -> int | Outcome:
        flags, mode, _ = _HOW.unpack(call.caller.read_exactly(call.args[2], _HOW.size))
        return self._open(call, call.fd(0), call.string(1), flags, mode)

    def _open(self, call: Call, dirfd: int, path: bytes, flags: int, mode: int) -> int | Outcome:
        flags &= 0xFFFFFFFF
        create = flags & os.O_CREAT
        follow = not (flags & os.O_NOFOLLOW or (create and flags & os.O_EXCL))
        place = self.paths.lookup(call.caller, dirfd, path, follow=follow)
        if place is None:
            return CONTINUE
        if create and isinstance(place.node, Absent | None) and self.bridge.space.may_make(place.path):
            place = self.bridge.changes.make_file(place, call.caller.root)
        node = place.node
        if node is None or isinstance(node, Private):
            return self._open_real(call, place, flags, mode) if place.ours else CONTINUE
        if isinstance(node, Absent):
            return -errno.ENOENT
        if create and flags & os.O_EXCL:
            return -errno.EEXIST
        if isinstance(node, Link) and not flags & O_PATH:
            return -errno.ELOOP
        if flags & os.O_DIRECTORY and not isinstance(node, Dir):
            return -errno.ENOTDIR
        if isinstance(node, Special) and not flags & O_PATH:
            return self.bridge.open_device(call, node, place, flags)
        if flags & os.O_ACCMODE and not flags & O_PATH:
            return -errno.EISDIR if isinstance(node, Dir) else -errno.EACCES
        return self.give(call, os.open(self.bridge.shadow(place.path, node), flags & ~os.O_CREAT & ~O_PATH), flags)

    def _open_real(self, call: Call, place: Place, flags: int, mode: int) -> int | Outcome:
        if flags & O_PATH:  # such a descriptor cannot be handed over; one for reading can do the same
            flags &= ~(O_PATH | os.O_ACCMODE)
        old = os.umask(0)
        try:
            # a FIFO whose other end is not open yet must not hold up everybody
            fd = os.open(place.real, flags | os.O_NONBLOCK, mode & ~int(call.caller.status("Umask"), 8))
            os.set_blocking(fd, not flags & os.O_NONBLOCK)
        finally:
            os.umask(old)
        return self.give(call, fd, flags)

    def give(self, call: Call, fd: int, flags: int) -> Outcome:
        """Answer an open with `fd`, which is closed here."""
        try:
            call.hand_over(fd, cloexec=bool(flags & os.O_CLOEXEC))
        finally:
            os.close(fd)
        return ANSWERED

    # -- stat -------------------------------------------------------------------------------------------

    def stat(self, call: Call) -> int | Outcome:
        return self._stat(call, AT_FDCWD, call.string(0), 0, call.args[1], self.pack_stat)

    def lstat(self, call: Call) -> int | Outcome:
        return self._stat(call, AT_FDCWD, call.string(0), AT_SYMLINK_NOFOLLOW, call.args[1], self.pack_stat)

    def fstat(self, call: Call) -> int | Outcome:
        return self._stat(call, call.fd(0), b"", AT_EMPTY_PATH, call.args[1], self.pack_stat)

    def newfstatat(self, call: Call) -> int | Outcome:
        return self._stat(call, call.fd(0), call.string(1), call.args[3], call.args[2], self.pack_stat)

    def statx(self, call: Call) -> int | Outcome:
        path = call.string(1) if call.args[1] else b""
        return self._stat(call, call.fd(0), path, call.args[2], call.args[4], pack_statx)

    def _stat(
        self, call: Call, dirfd: int, path: bytes, flags: int, address: int, pack: Callable[[dict[str, int]], bytes]
    ) -> int | Outcome:
        if not path and flags & AT_EMPTY_PATH and dirfd != AT_FDCWD:
            found = self.bridge.node_of_fd(call.caller, dirfd)
            fields = attributes(*found) if found else None
        else:
            place = self.paths.lookup(call.caller, dirfd, path or b".", follow=not flags & AT_SYMLINK_NOFOLLOW)
            if place is None:
                return CONTINUE
            fields = self._attributes(place, follow=not flags & AT_SYMLINK_NOFOLLOW)
        if fields is None:
            return CONTINUE
        call.write(address, pack(fields))
        return 0

    def _attributes(self, place: Place, *, follow: bool) -> dict[str, int] | None:
        node = place.node
        if node is None or isinstance(node, Private):
            return real_attributes(os.stat(place.real, follow_symlinks=follow)) if place.ours else None
        return attributes(place.path, _existing(node))

    def statfs(self, call: Call) -> int | Outcome:
        place = self.paths.lookup(call.caller, AT_FDCWD, call.string(0), follow=True)
        if place is None or (place.node is None and not place.ours):
            return CONTINUE
        if place.node is None or isinstance(place.node, Private):
            return self._statfs(call, place.real)
        _existing(place.node)
        return self._statfs(call, call.caller.root + _mount_point(place.path))

    def fstatfs(self, call: Call) -> int | Outcome:
        found = self.bridge.node_of_fd(call.caller, call.fd(0))
        return self._statfs(call, call.caller.root + _mount_point(found[0])) if found else CONTINUE

    def _statfs(self, call: Call, path: bytes) -> int:
        """What the kernel says of the file system at `path`."""
        buffer = ctypes.create_string_buffer(STATFS_SIZE)
        if _libc.statfs(path, buffer):
            return -ctypes.get_errno()
        call.write(call.args[1], buffer.raw)
        return 0

    # -- access, readlink, xattr ------------------------------------------------------------------------

    def access(self, call: Call) -> int | Outcome:
        return self._access(call, AT_FDCWD, call.string(0), call.args[1], 0)

    def faccessat(self, call: Call) -> int | Outcome:
        return self._access(call, call.fd(0), call.string(1), call.args[2], 0)

    def faccessat2(self, call: Call) -> int | Outcome:
        return self._access(call, call.fd(0), call.string(1), call.args[2], call.args[3])

    def _access(self, call: Call, dirfd: int, path: bytes, mode: int, flags: int) -> int | Outcome:
        if not path and flags & AT_EMPTY_PATH:
            return CONTINUE
        place = self.paths.lookup(call.caller, dirfd, path, follow=not flags & AT_SYMLINK_NOFOLLOW)
        if place is None:
            return CONTINUE
        node = place.node
        if node is None or isinstance(node, Private):
            if not place.ours:
                return CONTINUE
            os.stat(place.real)
            return 0 if os.access(place.real, mode) else -errno.EACCES
        node = _existing(node)
        if mode & os.W_OK and isinstance(node, File):
            return -errno.EACCES
        return -errno.EACCES if mode & os.X_OK and not isinstance(node, Dir) else 0

    def readlink(self, call: Call) -> int | Outcome:
        return self._readlink(call, AT_FDCWD, call.string(0), call.args[1], call.args[2])

    def readlinkat(self, call: Call) -> int | Outcome:
        return self._readlink(call, call.fd(0), call.string(1), call.args[2], call.args[3])

    def _readlink(self, call: Call, dirfd: int, path: bytes, address: int, size: int) -> int | Outcome:
        if not path:  # a link that was opened itself
            link = self.paths.unshadow(call.caller.link(f"fd/{dirfd}"))
            place = Place(link, self.bridge.space.find(link), b"", True) if link is not None else None
        else:
            place = self.paths.lookup(call.caller, dirfd, path, follow=False)
        if place is None:
            return CONTINUE
        node = place.node
        if node is None or isinstance(node, Private):
            if not place.ours:
                return CONTINUE
            target = os.readlink(place.real)
        else:
            if not isinstance(_existing(node), Link):
                return -errno.EINVAL
            assert isinstance(node, Link)
            target = node.target
        data = target[: size & 0xFFFFFFFF]
        call.write(address, data)
        return len(data)

    def xattr(self, call: Call) -> int | Outcome:
        """getxattr, listxattr and their l forms: the namespace has none."""
        place = self.paths.lookup(call.caller, AT_FDCWD, call.string(0), follow=not call.name.startswith("l"))
        if place is None or (place.node is None and not place.ours):
            return CONTINUE
        if isinstance(place.node, Absent):
            return -errno.ENOENT
        return -errno.EOPNOTSUPP

    # -- directories ----------------------------------------------------------------------------------------

    def getdents64(self, call: Call) -> int | Outcome:
        path = self.paths.unshadow(call.caller.link(f"fd/{call.fd(0)}"))
        node = self.bridge.space.find(path) if path is not None else None
        if path is None or not isinstance(node, Dir):
            return CONTINUE
        fd = call.caller.borrow(call.fd(0))
        try:
            at = os.lseek(fd, 0, os.SEEK_CUR)
            entries = self._entries(path, node, call.caller.root)
            data = bytearray()
            for position, (name, inode, kind) in enumerate(entries[at:], at + 1):
                size = (_DIRENT.size + len(name) + 1 + 7) & ~7
                if len(data) + size > call.args[2]:
                    if not data:
                        return -errno.EINVAL
                    break
                data += (_DIRENT.pack(inode, position, size, kind >> 12) + name).ljust(size, b"\0")
                at = position
            call.write(call.args[1], bytes(data))
            os.lseek(fd, at, os.SEEK_SET)
        finally:
            os.close(fd)
        return len(data)

    def _entries(self, path: bytes, node: Dir, root: bytes) -> list[tuple[bytes, int, int]]:
        """All names of a directory with inode number and type, in an order that stays."""
        ours = self.bridge.space.entries(path, node)
        found = [(b".", _inode(path, node), stat.S_IFDIR), (b"..", 1, stat.S_IFDIR)]
        if node.overlay:
            try:
                with os.scandir(root + path) as native:
                    others = [entry for entry in native if entry.name not in ours]
                    found += [(e.name, e.inode(), e.stat(follow_symlinks=False).st_mode & 0o170000) for e in others]
            except OSError:
                pass
        found += [
            (name, _inode(path + b"/" + name, entry), kind_of(entry))
            for name, entry in ours.items()
            if not isinstance(entry, Absent)
        ]
        return found

    def chdir(self, call: Call) -> int | Outcome:
        path = call.string(0)
        place = self.paths.lookup(call.caller, AT_FDCWD, path, follow=True)
        node = place.node if place else None
        if place is None or (not place.ours and (node is None or (isinstance(node, Dir) and node.overlay))):
            if os.path.isdir(place.real if place else call.caller.root + path):
                self.paths.moved(call.caller, None)
                return CONTINUE
            if place is None or node is None:
                return CONTINUE  # the kernel tells why not
        if isinstance(place.node, Private | None):
            if not os.path.isdir(place.real):
                os.stat(place.real)
                return -errno.ENOTDIR
        elif not isinstance(_existing(place.node), Dir):
            return -errno.ENOTDIR
        self.paths.moved(call.caller, place.path)
        return 0

    def fchdir(self, call: Call) -> int | Outcome:
        self.paths.moved(call.caller, None)
        return CONTINUE

    def getcwd(self, call: Call) -> int | Outcome:
        path, ours = self.paths.base(call.caller, AT_FDCWD)
        if not ours:
            return CONTINUE
        data = (path or b"/") + b"\0"
        if len(data) > call.args[1]:
            return -errno.ERANGE
        call.write(call.args[0], data)
        return len(data)


def real_attributes(st: os.stat_result) -> dict[str, int]:
    """The fields of `struct stat` as the kernel gave them to us."""
    names = ("dev", "ino", "nlink", "mode", "uid", "gid", "rdev", "size", "blksize", "blocks")
    fields: dict[str, int] = {name: getattr(st, f"st_{name}") for name in names}
    for which in ("atime", "mtime", "ctime"):
        fields[which], fields[which + "_nsec"] = divmod(getattr(st, f"st_{which}_ns"), 10**9)
    return fields


def _existing(node: Node) -> Dir | File | Link | Special:
    """The node, unless nothing is there: OSError(ENOENT)."""
    if isinstance(node, Absent | Private):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return node


def _mount_point(path: bytes) -> bytes:
    """/dev, /sys or /proc: each is a file system of its own."""
    return b"/".join(path.split(b"/")[:2])


def _inode(path: bytes, node: Node) -> int:
    return 1 if isinstance(node, Private | Absent) else attributes(path, node)["ino"]
