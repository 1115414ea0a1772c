"""Path lookup in the client's view: its root, its directories, links of the kernel's and of ours on the way.

What lies in the system's own directories, with few exceptions, cannot lead into the namespace and is not walked.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import NamedTuple

from .caller import Caller
from .namespace import Namespace
from .nodes import Dir, Link, Node, Private
from .syscalls import AT_FDCWD

__all__ = ["Paths", "Place"]

MAX_LINKS = 40
CWDS = 256  #: processes of which dead ones are forgotten
SYSTEM = (b"/usr/", b"/lib/", b"/lib64/", b"/etc/", b"/bin/", b"/sbin/", b"/proc/self/")
LEADING = (b"/etc/lvm/", b"/proc/self/fd/")
DELETED = b" (deleted)"


class Place(NamedTuple):
    """Where a lookup ended. `path` in the client's view; `node` None for the kernel's own files, which we reach at
    `real`. `ours`: the kernel, asked with the caller's words, would find something else."""

    path: bytes
    node: Node | None
    real: bytes
    ours: bool


class Paths:
    """Lookups in `space`. Directories that clients open live under `shadow`, in the shape of the namespace."""

    def __init__(self, space: Namespace, shadow: bytes) -> None:
        self.space = space
        self.shadow = shadow
        #: Where a process is, if it changed to a directory of ours by its path; None: where the kernel says.
        self._cwds: dict[int, bytes | None] = {}

    def lookup(self, caller: Caller, dirfd: int, path: bytes, *, follow: bool) -> Place | None:
        """Walk `path`; None when it leads nowhere near the namespace. OSError(ENOENT for "", ELOOP, EBADF)."""
        if path.startswith(SYSTEM) and not path.startswith(LEADING):
            return None
        if path.startswith(b"/"):
            base, ours = b"", False
        else:
            base, ours = self.base(caller, dirfd)
        return self._walk(caller, base, path, ours, follow)

    def base(self, caller: Caller, dirfd: int) -> tuple[bytes, bool]:
        """The directory that relative paths start from, and whether it is one of ours."""
        if dirfd == AT_FDCWD:
            if self._cwds and (cwd := self._cwd(caller)) is not None:
                return cwd, True
            where = caller.link("cwd")
        else:
            where = caller.link(f"fd/{dirfd}")
        if (mine := self.unshadow(where)) is not None:
            return mine, True
        if not where.startswith(b"/"):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return self._in_root(caller, where).rstrip(b"/"), False

    def _cwd(self, caller: Caller) -> bytes | None:
        """A process that was not seen before is where its parent was."""
        if caller.tgid not in self._cwds:
            self.moved(caller, self._cwds.get(int(caller.status("PPid"))))
        return self._cwds.get(caller.tgid)

    def moved(self, caller: Caller, path: bytes | None) -> None:
        """A process is in a directory of ours from now on, or (None) where the kernel says."""
        if path is None and not self._cwds:
            return
        if len(self._cwds) >= CWDS:
            self._cwds = {tgid: cwd for tgid, cwd in self._cwds.items() if os.path.exists(f"/proc/{tgid}")}
        self._cwds[caller.tgid] = path

    def unshadow(self, real: bytes) -> bytes | None:
        """The path in the namespace whose shadow `real` is."""
        if real.startswith(self.shadow + b"/"):
            return real[len(self.shadow) :].removesuffix(DELETED)
        return None

    def _in_root(self, caller: Caller, real: bytes) -> bytes:
        root = caller.root
        return real[len(root) :] or b"/" if root and real.startswith(root + b"/") else real

    def _walk(self, caller: Caller, base: bytes, path: bytes, ours: bool, follow: bool) -> Place:
        if not path:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        follow = follow or path.endswith((b"/", b"/."))
        names, at, links = deque(_names(path)), base, 0
        node = self.space.find(at) if at else None
        while names:
            name = names.popleft()
            if name == b"..":
                ours = ours or _is_only_ours(node, caller.root + at)
                at = at.rpartition(b"/")[0]
                node = self.space.find(at) if at else None
                continue
            there = at + b"/" + name
            node = self.space.find(there)
            target: bytes | None = None
            if names or follow:
                if node is None:
                    target = _kernel_link(caller, there)
                elif isinstance(node, Link):
                    target, ours = node.target, True
            if target is None:
                at = there
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if target.startswith(b"/"):
                if (mine := self.unshadow(target)) is not None:
                    target, ours = mine, True
                at = b""
            names.extendleft(reversed(_names(target)))
            node = self.space.find(at) if at else None
        if isinstance(node, Private):
            return Place(at, node, node.path, True)
        return Place(at or b"/", node, caller.root + (at or b"/"), ours)


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _is_only_ours(node: Node | None, real: bytes) -> bool:
    return node is not None and not (isinstance(node, Dir) and node.overlay and os.path.isdir(real))


def _kernel_link(caller: Caller, path: bytes) -> bytes | None:
    """Where the kernel's link at `path` leads; None when there is no link to follow."""
    if path == b"/proc/self":
        return b"%d" % caller.tgid
    if path == b"/proc/thread-self":
        return b"%d/task/%d" % (caller.tgid, caller.tid)
    try:
        target = os.readlink(caller.root + path)
    except OSError:
        return None
    if path.startswith(b"/proc/") and not target.startswith(b"/") and b":" in target:
        return None  # a magic link to what has no path
    return target
