"""System calls that change the namespace: what clients make under /dev is kept in `Namespace.made`.

Nothing of it reaches the file system, so an ordinary user may make device nodes, as root may on a real machine.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING

from .namespace import CONTROL_DEV, Namespace
from .nodes import ABSENT, Absent, Dir, Link, Node, Owner, Private, Special, change_owner
from .paths import Place
from .supervisor import CONTINUE, Call, Outcome
from .syscalls import AT_FDCWD

if TYPE_CHECKING:
    from .bridge import Bridge

__all__ = ["Changes"]

AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW = 0x100, 0x200, 0x400
RENAME_NOREPLACE = 1
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_TIMESPEC, _TIMES = Struct("=qq"), Struct("=qqqq")


class Changes:
    """The handlers. A place of the kernel's that was reached through one of ours is changed for the caller."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.paths = bridge.paths

    @property
    def space(self) -> Namespace:
        return self.bridge.space

    # -- making -----------------------------------------------------------------------------------------

    def mknod(self, call: Call) -> int | Outcome:
        return self._mknod(call, AT_FDCWD, call.string(0), call.args[1], call.args[2])

    def mknodat(self, call: Call) -> int | Outcome:
        return self._mknod(call, call.fd(0), call.string(1), call.args[2], call.args[3])

    def _mknod(self, call: Call, dirfd: int, path: bytes, mode: int, dev: int) -> int | Outcome:
        place = self.paths.lookup(call.caller, dirfd, path, follow=False)
        if place is None:
            return CONTINUE
        numbers = (os.major(dev), os.minor(dev))
        kind = stat.S_IFMT(mode)
        ours = (kind == stat.S_IFCHR and numbers == CONTROL_DEV) or (
            kind == stat.S_IFBLK
            and (numbers[0] == self.bridge.devices.major or self.bridge.devices.by_dev(numbers) is not None)
        )
        if ours or (kind in (stat.S_IFBLK, stat.S_IFCHR) and self._keeps(place)):
            return self._make(place, Special(kind, numbers, self._owner(call, mode)), call.caller.root)
        return self._natively(place, lambda: os.mknod(place.real, mode, dev))

    def mkdir(self, call: Call) -> int | Outcome:
        return self._mkdir(call, AT_FDCWD, call.string(0), call.args[1])

    def mkdirat(self, call: Call) -> int | Outcome:
        return self._mkdir(call, call.fd(0), call.string(1), call.args[2])

    def _mkdir(self, call: Call, dirfd: int, path: bytes, mode: int) -> int | Outcome:
        place = self.paths.lookup(call.caller, dirfd, path.rstrip(b"/") or b"/", follow=False)
        if place is None:
            return CONTINUE
        if isinstance(place.node, Private) and os.path.isdir(place.real):
            return -errno.EEXIST
        if self._keeps(place):
            return self._make(place, Dir(dict, owner=self._owner(call, mode)), call.caller.root)
        return self._natively(place, lambda: os.mkdir(place.real, self._owner(call, mode).mode))

    def symlink(self, call: Call) -> int | Outcome:
        return self._symlink(call, call.string(0), AT_FDCWD, call.string(1))

    def symlinkat(self, call: Call) -> int | Outcome:
        return self._symlink(call, call.string(0), call.fd(1), call.string(2))

    def _symlink(self, call: Call, target: bytes, dirfd: int, path: bytes) -> int | Outcome:
        place = self.paths.lookup(call.caller, dirfd, path, follow=False)
        if place is None:
            return CONTINUE
        if self._keeps(place):
            return self._make(place, Link(target), call.caller.root)
        return self._natively(place, lambda: os.symlink(target, place.real))

    def make_file(self, place: Place, root: bytes) -> Place:
        """Where a regular file that is to be made at `place` will be. OSError(ENOENT) when no directory is above it."""
        if place.node is None and os.path.lexists(place.real):
            return place
        node = Private(self.space.private(b"dev") + b"/" + place.path.replace(b"/", b"!"))
        if error := self._make(place, node, root):
            raise OSError(-error, os.strerror(-error))
        return Place(place.path, node, node.path, True)

    def _make(self, place: Place, node: Node, root: bytes) -> int:
        if place.node is not None and not isinstance(place.node, Absent):
            return -errno.EEXIST
        if place.node is None and os.path.lexists(place.real):
            return -errno.EEXIST
        parent = os.path.dirname(place.path)
        above = self.space.find(parent)
        if isinstance(above, Absent) or (above is None and not os.path.isdir(root + parent)):
            return -errno.ENOENT
        self.space.made[place.path] = node
        return 0

    # -- removing and renaming --------------------------------------------------------------------------

    def unlink(self, call: Call) -> int | Outcome:
        return self._unlink(call, AT_FDCWD, call.string(0), directory=False)

    def rmdir(self, call: Call) -> int | Outcome:
        return self._unlink(call, AT_FDCWD, call.string(0), directory=True)

    def unlinkat(self, call: Call) -> int | Outcome:
        return self._unlink(call, call.fd(0), call.string(1), directory=bool(call.args[2] & AT_REMOVEDIR))

    def _unlink(self, call: Call, dirfd: int, path: bytes, *, directory: bool) -> int | Outcome:
        place = self.paths.lookup(call.caller, dirfd, path.rstrip(b"/") or b"/", follow=False)
        if place is None:
            return CONTINUE
        node = place.node
        if node is None and self._keeps(place) and os.path.lexists(place.real):
            return -errno.EPERM  # the host's own nodes outlive every client
        if node is None or isinstance(node, Private):
            done = self._natively(place, lambda: (os.rmdir if directory else os.unlink)(place.real))
            self.space.made.pop(place.path, None)
            return done
        if isinstance(node, Absent):
            return -errno.ENOENT
        if isinstance(node, Dir) is not directory:
            return -errno.ENOTDIR if directory else -errno.EISDIR
        if isinstance(node, Dir) and not self.space.is_empty(place.path):
            return -errno.ENOTEMPTY
        return self._remove(place.path)

    def _remove(self, path: bytes) -> int:
        """What a rule puts there is hidden, what a client made is forgotten."""
        if self.space.made.pop(path, None) is None or not isinstance(self.space.find(path), Absent | None):
            self.space.made[path] = ABSENT
        return 0

    def rename(self, call: Call) -> int | Outcome:
        return self._rename(call, AT_FDCWD, call.string(0), AT_FDCWD, call.string(1), 0)

    def renameat(self, call: Call) -> int | Outcome:
        return self._rename(call, call.fd(0), call.string(1), call.fd(2), call.string(3), 0)

    def renameat2(self, call: Call) -> int | Outcome:
        return self._rename(call, call.fd(0), call.string(1), call.fd(2), call.string(3), call.args[4])

    def _rename(self, call: Call, olddir: int, old: bytes, newdir: int, new: bytes, flags: int) -> int | Outcome:
        source = self.paths.lookup(call.caller, olddir, old, follow=False)
        target = self.paths.lookup(call.caller, newdir, new, follow=False)
        if source is None or target is None:
            return CONTINUE
        done = self._between_files(source, target, lambda old, new: _rename_file(old, new, flags))
        if done is not None:
            return done
        node = source.node
        assert node is not None
        if flags & RENAME_NOREPLACE and not isinstance(target.node, Absent | None):
            return -errno.EEXIST
        for path in self.space.made_below(source.path):
            self.space.made[target.path + path[len(source.path) :]] = self.space.made.pop(path)
        self._remove(source.path)
        self.space.made[target.path] = node
        return 0

    def link(self, call: Call) -> int | Outcome:
        return self._link(call, AT_FDCWD, call.string(0), AT_FDCWD, call.string(1), 0)

    def linkat(self, call: Call) -> int | Outcome:
        return self._link(call, call.fd(0), call.string(1), call.fd(2), call.string(3), call.args[4])

    def _link(self, call: Call, olddir: int, old: bytes, newdir: int, new: bytes, flags: int) -> int | Outcome:
        if not old:  # AT_EMPTY_PATH
            return CONTINUE
        source = self.paths.lookup(call.caller, olddir, old, follow=bool(flags & AT_SYMLINK_FOLLOW))
        target = self.paths.lookup(call.caller, newdir, new, follow=False)
        if source is None or target is None:
            return CONTINUE
        done = self._between_files(source, target, partial(os.link, follow_symlinks=False))
        return -errno.EXDEV if done is None else done

    def _between_files(self, source: Place, target: Place, act: Callable[[bytes, bytes], None]) -> int | Outcome | None:
        """`act` on two paths of real files; None when the first is a node of ours."""
        native = source.node is None and target.node is None
        if native and not (source.ours or target.ours):
            return CONTINUE
        if native or (isinstance(source.node, Private) and isinstance(target.node, Private)):
            act(source.real, target.real)
            return 0
        if source.node is None or isinstance(source.node, Private):
            return -errno.EXDEV
        return -errno.ENOENT if isinstance(source.node, Absent) else None

    # -- owners -----------------------------------------------------------------------------------------

    def chown(self, call: Call) -> int | Outcome:
        return self._chown(call, AT_FDCWD, call.string(0), call.args[1], call.args[2], follow=True)

    def lchown(self, call: Call) -> int | Outcome:
        return self._chown(call, AT_FDCWD, call.string(0), call.args[1], call.args[2], follow=False)

    def fchownat(self, call: Call) -> int | Outcome:
        follow = not call.args[4] & AT_SYMLINK_NOFOLLOW
        return self._chown(call, call.fd(0), call.string(1), call.args[2], call.args[3], follow=follow)

    def _chown(self, call: Call, dirfd: int, path: bytes, uid: int, gid: int, *, follow: bool) -> int | Outcome:
        uid, gid = (_signed(uid), _signed(gid))
        return self._own(
            call,
            dirfd,
            path,
            follow,
            lambda node: change_owner(node, uid=uid, gid=gid),
            lambda real: os.chown(real, uid, gid, follow_symlinks=follow),
        )

    def chmod(self, call: Call) -> int | Outcome:
        return self._chmod(call, AT_FDCWD, call.string(0), call.args[1], follow=True)

    def fchmodat(self, call: Call) -> int | Outcome:
        return self._chmod(call, call.fd(0), call.string(1), call.args[2], follow=True)

    def fchmodat2(self, call: Call) -> int | Outcome:
        follow = not call.args[3] & AT_SYMLINK_NOFOLLOW
        return self._chmod(call, call.fd(0), call.string(1), call.args[2], follow=follow)

    def _chmod(self, call: Call, dirfd: int, path: bytes, mode: int, *, follow: bool) -> int | Outcome:
        return self._own(
            call,
            dirfd,
            path,
            follow,
            lambda node: change_owner(node, mode=mode),
            lambda real: os.chmod(real, mode),
        )

    def _own(
        self,
        call: Call,
        dirfd: int,
        path: bytes,
        follow: bool,
        change: Callable[[Node], Node],
        act: Callable[[bytes], None],
    ) -> int | Outcome:
        """`change` a node of ours, or `act` on a file that stands in a place of ours."""
        place = self.paths.lookup(call.caller, dirfd, path, follow=follow) if path else None
        if place is None or place.node is None:
            return CONTINUE
        if isinstance(place.node, Private):
            act(place.real)
            return 0
        if isinstance(place.node, Absent):
            return -errno.ENOENT
        self.space.made[place.path] = change(place.node)
        return 0

    def utimensat(self, call: Call) -> int | Outcome:
        """Times of our nodes stand still."""
        place = self.paths.lookup(call.caller, call.fd(0), call.string(1), follow=True) if call.args[1] else None
        if place is None or place.node is None:
            return CONTINUE
        if isinstance(place.node, Private):
            times = call.caller.read_exactly(call.args[2], _TIMES.size) if call.args[2] else None
            os.utime(place.real, ns=_nanoseconds(os.stat(place.real), times))
            return 0
        return -errno.ENOENT if isinstance(place.node, Absent) else 0

    # -- helpers ----------------------------------------------------------------------------------------

    def _keeps(self, place: Place) -> bool:
        return self.space.may_make(place.path)

    def _natively(self, place: Place, act: Callable[[], object]) -> int | Outcome:
        if not place.ours:
            return CONTINUE
        act()
        return 0

    def _owner(self, call: Call, mode: int) -> Owner:
        ids = {field: int(call.caller.status(field).split()[1]) for field in ("Uid", "Gid")}
        umask = int(call.caller.status("Umask"), 8)
        return Owner(mode & 0o7777 & ~umask, ids["Uid"], ids["Gid"])


def _rename_file(old: bytes, new: bytes, flags: int) -> None:
    """renameat2(2) of a file that the kernel does not find under its name."""
    if flags & ~RENAME_NOREPLACE:
        raise OSError(errno.EINVAL, "renameat2(2): only RENAME_NOREPLACE is there")
    if flags and os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new)


def _nanoseconds(now: os.stat_result, times: bytes | None) -> tuple[int, int]:
    """Access and modification time as `struct timespec[2]` wants them; without one both are the present."""
    if times is None:
        return (time.time_ns(),) * 2
    wanted = []
    for (seconds, nanoseconds), present in zip(
        _TIMESPEC.iter_unpack(times), (now.st_atime_ns, now.st_mtime_ns), strict=True
    ):
        special = {UTIME_NOW: time.time_ns(), UTIME_OMIT: present}
        wanted.append(special.get(nanoseconds, seconds * 10**9 + nanoseconds))
    return wanted[0], wanted[1]


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return -1 if value == 0xFFFFFFFF else value
