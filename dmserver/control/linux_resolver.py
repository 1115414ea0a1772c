"""How Linux finds the device that a table names (drivers/md/dm-table.c: dm_get_dev_t(), dm_get_device())."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Hashable

from dmproto.wire import Dev, huge_decode

from ..io.blockdev import BlockDevice
from ..model.args import wrapped
from ..model.mapper import Mapper

__all__ = ["LinuxResolver"]

_MAJOR_MINOR = re.compile(r"([0-9]+):([0-9]+)\Z")
_WITH_OFFSET = re.compile(r"([0-9]+):([0-9]+):[0-9]+:?\Z")  # devt_from_devnum() reads an offset and forgets it
_HEX = re.compile(r"(?:0[xX])?([0-9a-fA-F]+)\Z")


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
            if dev := _number(match):
                return self._by_dev(dev, name)
            raise OSError(errno.EOVERFLOW, "no such device number", name)
        try:
            bdev = self.mapper.lookup_bdev(name)
        except OSError:
            if dev := _early_number(name):
                return self._by_dev(dev, name)
        else:
            if bdev.has_disk:
                return bdev
        raise OSError(errno.ENODEV, "no such device", name)

    def _by_dev(self, dev: Dev, name: str) -> BlockDevice:
        bdev = self.mapper.by_dev(dev)
        if bdev is None or not bdev.has_disk:
            raise OSError(errno.ENXIO, "no such device", name)
        return bdev


def _number(match: re.Match[str]) -> Dev | None:
    """Major and minor as sscanf() reads them, wrapping; None when they do not fit a dev_t."""
    major, minor = (wrapped(number, 32) for number in match.groups())
    return (major, minor) if major < 1 << 12 and minor < 1 << 20 else None


def _early_number(name: str) -> Dev | None:
    """devt_from_devnum() of early boot: MAJ:MIN:OFFSET, or a hexadecimal number that is not 0."""
    if match := _WITH_OFFSET.match(name):
        return _number(match)
    match = _HEX.match(name)
    number = int(match[1], 16) & 0xFFFFFFFF if match else 0
    return huge_decode(number) if number else None
