"""What stands at a path of the bridge's namespace, and what stat(2) says of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from dmproto.wire import Dev

__all__ = ["ABSENT", "Absent", "Dir", "File", "Link", "Node", "Private", "Special", "attributes", "pack_statx"]

Entries = Mapping[bytes, "Node"]


class Owner(NamedTuple):
    """Who owns a node, and its permission bits."""

    mode: int
    uid: int = 0
    gid: int = 0


class Dir(NamedTuple):
    """A directory. `overlay`: beside `entries` it has what the kernel has there."""

    entries: Callable[[], Entries]
    overlay: bool = False
    owner: Owner = Owner(0o755)


class File(NamedTuple):
    """A file that is read as a whole, made when it is opened."""

    content: Callable[[], bytes]
    owner: Owner = Owner(0o444)


class Link(NamedTuple):
    """A symbolic link."""

    target: bytes
    owner: Owner = Owner(0o777)


class Special(NamedTuple):
    """A device node; `kind` is S_IFBLK or S_IFCHR."""

    kind: int
    dev: Dev
    owner: Owner = Owner(0o600)


class Private(NamedTuple):
    """A directory or file of the client's own: it lives at `path`, another place of the real file system."""

    path: bytes


class Absent:
    """Nothing is here, whatever the kernel has."""


ABSENT = Absent()

Node = Dir | File | Link | Special | Private | Absent

_KINDS = {Dir: stat.S_IFDIR, File: stat.S_IFREG, Link: stat.S_IFLNK}
_KERNEL_PAGE = 4096


def kind_of(node: Node) -> int:
    """The S_IFMT bits of a node."""
    if isinstance(node, Private):
        return stat.S_IFDIR if os.path.isdir(node.path) else stat.S_IFREG
    return node.kind if isinstance(node, Special) else _KINDS.get(type(node), stat.S_IFDIR)


def change_owner(node: Node, *, mode: int | None = None, uid: int = -1, gid: int = -1) -> Node:
    """The node after chmod(2) or chown(2); -1 leaves an id alone."""
    assert not isinstance(node, Private | Absent)
    old = node.owner
    owner = Owner(
        old.mode if mode is None else mode & 0o7777, old.uid if uid == -1 else uid, old.gid if gid == -1 else gid
    )
    return node._replace(owner=owner)


def attributes(path: bytes, node: Dir | File | Link | Special) -> dict[str, int]:
    """The fields of `struct stat` for the node at `path`."""
    size = len(node.target) if isinstance(node, Link) else len(node.content()) if isinstance(node, File) else 0
    owner = node.owner
    fields = {
        "dev": _device_of_dev(),
        "ino": 1 << 32 | crc32(path),
        "nlink": 2 if isinstance(node, Dir) else 1,
        "mode": kind_of(node) | owner.mode,
        "uid": owner.uid,
        "gid": owner.gid,
        "rdev": os.makedev(*node.dev) if isinstance(node, Special) else 0,
        "size": size,
        "blksize": _KERNEL_PAGE,
        "blocks": (size + 511) // 512,
    }
    for which in ("atime", "mtime", "ctime"):
        fields[which], fields[which + "_nsec"] = _STARTED.st_mtime_ns // 10**9, 0
    return fields


def _device_of_dev() -> int:
    return _STARTED.st_dev


_STARTED = os.stat("/dev")

# struct statx (linux/stat.h): stx_mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks,
# attributes_mask, {atime, btime, ctime, mtime}, rdev, dev, mnt_id ...
_STATX = Struct("<IIQIIIH2xQQQQ qI4x qI4x qI4x qI4x IIII 112x")
_STATX_BASIC_STATS = 0x7FF


def pack_statx(fields: Mapping[str, int]) -> bytes:
    """`struct statx` from the fields of `struct stat`."""
    f = fields
    return _STATX.pack(
        _STATX_BASIC_STATS,
        f["blksize"],
        0,
        f["nlink"],
        f["uid"],
        f["gid"],
        f["mode"],
        f["ino"],
        f["size"],
        f["blocks"],
        0,
        f["atime"],
        f["atime_nsec"],
        0,
        0,
        f["ctime"],
        f["ctime_nsec"],
        f["mtime"],
        f["mtime_nsec"],
        os.major(f["rdev"]),
        os.minor(f["rdev"]),
        os.major(f["dev"]),
        os.minor(f["dev"]),
    )
