"""All disks of this machine: those that --pdev declares, and any existing file or block device that a table names.

The number of a disk, if none is given:

| path or backing                    | major : minor                                                    |
|------------------------------------|------------------------------------------------------------------|
| `/dev/ramN`, `/dev/loopN`, `/dev/sdX` | 1:N, 7:N, 8:16 * X, as in Linux, if nobody has that           |
| a block device                     | its own                                                          |
| `ram:SIZE`                         | 1, the lowest that is free                                       |
| a file                             | `file_major`: 7, loop; 14, NetBSD's vnd; the lowest that is free |
"""

from __future__ import annotations

import errno
import os
import re
import stat

from dmproto.wire import Dev

from .blockdev import BlockDevice, BlockDevices
from .disk import Disk

__all__ = ["LOOP_MAJOR", "RAM_MAJOR", "SD_MAJOR", "VND_MAJOR", "Disks"]

RAM_MAJOR, LOOP_MAJOR, SD_MAJOR, VND_MAJOR = 1, 7, 8, 14

#: Names with their number or letter, major, and minors of each.
_USUAL = (
    (r"/dev/ram(0|[1-9][0-9]{0,4})", RAM_MAJOR, 1),
    (r"/dev/loop(0|[1-9][0-9]{0,4})", LOOP_MAJOR, 1),
    (r"/dev/sd([a-p])", SD_MAJOR, 16),
)


class Disks(BlockDevices):
    """Disks by path and by number."""

    def __init__(self, *, file_major: int = LOOP_MAJOR) -> None:
        super().__init__()
        self.file_major = file_major

    def declare(self, text: str) -> Disk:
        """Add `DEVICE=BACKING[,dev=MAJ:MIN][,ro]`. ValueError for a malformed or taken one, OSError for its file."""
        path, equals, rest = text.partition("=")
        backing, *options = rest.split(",")
        if not equals or not path.startswith("/") or not backing:
            raise ValueError(f"pdev {text!r}: expected /DEVICE=BACKING[,dev=MAJ:MIN][,ro]")
        dev: Dev | None = None
        read_only = False
        for option in options:
            if option == "ro":
                read_only = True
            elif option.startswith("dev=") and (match := re.fullmatch("([0-9]{1,4}):([0-9]{1,7})", option[4:])):
                dev = int(match[1]), int(match[2])
            else:
                raise ValueError(f"pdev {text!r}: option {option!r}: expected dev=MAJ:MIN or ro")
        path = _normal(path)
        return self._register(path, backing, dev or self._usual(path), read_only)

    def lookup(self, path: str) -> BlockDevice:
        """The disk at `path`, an absolute path in any spelling; an existing file or block device becomes a disk when
        it is first named. OSError(ENOENT, ENOTBLK, EACCES ...) when there is none."""
        if not path.startswith("/") or "\0" in path:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        found = self.by_path(path) or self.by_path(_normal(path))
        if found is None:
            real = os.path.realpath(path)
            found = self.by_path(real)
        if found is None:
            try:
                found = self._register(real, real, None, False)
            except ValueError as taken:
                raise OSError(errno.EBUSY, str(taken), path) from taken
        return found

    def adopt(self, path: str, dev: Dev) -> None:
        """Make an existing file or block device a disk of this number. ValueError when it is taken, OSError for the
        file."""
        self._register(path, path, dev, False)

    def close(self) -> None:
        """Free all disks."""
        for disk in self:
            if isinstance(disk, Disk):
                disk.free()

    def _register(self, path: str, backing: str, dev: Dev | None, read_only: bool) -> Disk:
        disk = Disk(path, dev or self._number(backing), backing, read_only=read_only)
        self.add(disk)
        return disk

    def _usual(self, path: str) -> Dev | None:
        """The number that Linux gives to a device of this name, if it is free."""
        for pattern, major, width in _USUAL:
            if match := re.fullmatch(pattern, path):
                minor = width * (int(match[1]) if match[1].isdigit() else ord(match[1]) - ord("a"))
                return None if self.by_dev((major, minor)) else (major, minor)
        return None

    def _number(self, backing: str) -> Dev:
        if backing.startswith("ram:"):
            return RAM_MAJOR, self.free_minor(RAM_MAJOR)
        found = os.stat(backing)
        if stat.S_ISBLK(found.st_mode):
            return os.major(found.st_rdev), os.minor(found.st_rdev)
        return self.file_major, self.free_minor(self.file_major)


def _normal(path: str) -> str:
    return os.path.normpath("/" + path.lstrip("/"))
