"""How NetBSD's driver finds the device that a table names (sys/dev/dm/dm_pdev.c, sys/miscfs/specfs).

The list of physical devices goes by the path string, of which it keeps 31 bytes: a longer one is never found again. A
block device can be open once, so another spelling of the path of one that is in use is EBUSY. Opening a device-mapper
device always works, even one that is not there. `mended`: devices are found as Linux finds them, by number too.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Hashable, Iterator

from dmproto.wire import to_bytes, to_text

from ..io.bio import Bio
from ..io.blockdev import BlockDevice
from ..model.args import wrapped
from ..model.dm_dev import DmDev
from ..model.dm_pdev import DmPdev
from ..model.mapper import Mapper
from .linux_resolver import LinuxResolver

__all__ = ["MAX_DEV_NAME", "NetbsdResolver"]

#: `MAX_DEV_NAME` of sys/dev/dm/dm.h, its NUL included.
MAX_DEV_NAME = 32

_NODE = re.compile(r"/dev/mapper/dm([0-9]{1,6})\Z")


class _AbsentDevice(BlockDevice):
    """A device-mapper minor that nobody created."""

    @property
    def size(self) -> int:
        return 0

    def submit_bio(self, bio: Bio) -> None:
        bio.endio(errno.ENXIO)


class NetbsdResolver:
    """Finds devices for the tables of one mapper."""

    def __init__(self, mapper: Mapper, *, mended: bool) -> None:
        self._mapper = mapper
        self._mended = mended
        self._linux = LinuxResolver(mapper)
        self._serial = itertools.count()

    def resolve(self, path: str, user: DmDev) -> tuple[Hashable, str, BlockDevice]:
        """Key for the list of physical devices, the name it keeps, and the device. OSError when it cannot be opened."""
        if self._mended:
            found = self._linux(path)
            if found[2] is user:
                raise OSError(errno.EINVAL, "a device cannot stand on itself", path)
            return found
        kept = to_text(to_bytes(path)[: MAX_DEV_NAME - 1])
        for pdev in self._namesakes(path):
            return pdev.key, path, pdev.bdev
        bdev = self._open(path)
        if bdev.claims or (bdev.openers and not isinstance(bdev, DmDev)):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        return path if kept == path else (kept, next(self._serial)), kept, bdev

    def _namesakes(self, path: str) -> Iterator[DmPdev]:
        """Those on the list under this very name: its own, or a longer one that was cut to it."""
        pdevs = self._mapper.pdevs
        if found := pdevs.find(path):
            yield found
        elif len(to_bytes(path)) == MAX_DEV_NAME - 1:
            yield from (pdev for pdev in pdevs if pdev.path == path)

    def _open(self, path: str) -> BlockDevice:
        match = _NODE.match(os.path.normpath(path))
        try:
            return self._mapper.lookup_bdev(path)
        except OSError:
            if match is None:
                raise
        minor = wrapped(match[1], 32)
        return self._mapper.devices.get(minor) or _AbsentDevice(path, (self._mapper.major, minor))
