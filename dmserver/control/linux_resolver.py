"""How Linux finds the device that a table names (drivers/md/dm-table.c: dm_get_dev_t(), dm_get_device())."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Hashable

from dmproto.records import Dev, huge_decode

from ..io.blockdev import BlockDevice
from ..model.dm_dev import DmDev
from ..model.mapper import Mapper

__all__ = ["LinuxResolver"]

_MAJOR_MINOR = re.compile(r"[ \t\n\v\f\r]*([0-9]+):[ \t\n\v\f\r]*([0-9]+)\Z")
_HEX = re.compile(r"(?:0[xX])?([0-9a-fA-F]+)\n?\Z")


class LinuxResolver:
    """Devices by `MAJ:MIN`, by path, or by the hexadecimal number of early boot ("100" is 1:0). The key is the device
    number, so that one device has one reference however it is called."""

    def __init__(self, mapper: Mapper, locate: Callable[[str], str] | None = None) -> None:
        self.mapper = mapper
        self.locate = locate

    def __call__(self, name: str) -> tuple[Hashable, str, BlockDevice]:
        """OSError: ENODEV no such path, ENXIO no device of this number, EOVERFLOW a number too large."""
        if self.locate is not None and not _MAJOR_MINOR.match(name):
            bdev = self._find(self.locate(name))
        else:
            bdev = self._find(name)
        return bdev.dev, bdev.path, bdev

    def _find(self, name: str) -> BlockDevice:
        if match := _MAJOR_MINOR.match(name):
            major, minor = (int(number) & 0xFFFFFFFF for number in match.groups())
            if major >= 1 << 12 or minor >= 1 << 20:
                raise OSError(errno.EOVERFLOW, "no such device number", name)
            return self._by_dev((major, minor), name)
        try:
            return self.mapper.lookup_bdev(name)
        except OSError:
            if match := _HEX.match(name):
                return self._by_dev(huge_decode(int(match[1], 16)), name)
            raise OSError(errno.ENODEV, "no such device", name) from None

    def _by_dev(self, dev: Dev, name: str) -> BlockDevice:
        bdev = self.mapper.by_dev(dev)
        if bdev is None or (isinstance(bdev, DmDev) and not bdev.has_disk):
            raise OSError(errno.ENXIO, "no such device", name)
        return bdev
