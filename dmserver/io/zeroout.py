"""Zeroing a run of sectors of any device (Linux `blkdev_issue_zeroout`, `block/blk-lib.c`)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from dmproto.wire import SECTOR_SIZE

from .bio import Bio, Op
from .blockdev import BlockDevice

__all__ = ["issue_zeroout"]

_ZEROES = memoryview(bytes(1 << 20))


def issue_zeroout(
    bdev: BlockDevice,
    sector: int,
    nr_sectors: int,
    done: Callable[[int], None],
    *,
    fua: bool = False,
    unmap: bool = True,
) -> None:
    """Zero the sectors and call `done(errno)`, now or later, in any thread: by WRITE_ZEROES where the device takes that
    and `unmap` lets it make holes, else by writing zeroes."""

    def write(at: int) -> None:
        left = sector + nr_sectors - at
        data = _ZEROES[: left * SECTOR_SIZE]
        count = len(data) // SECTOR_SIZE
        bdev.submit_bio(Bio(Op.WRITE, at, count, data, lambda bio: written(bio, at + count), fua=fua, bdev=bdev))

    def written(bio: Bio, at: int) -> None:
        if bio.error or at == sector + nr_sectors:
            done(bio.error)
        else:
            write(at)

    def zeroed(bio: Bio) -> None:
        if bio.error == errno.EOPNOTSUPP:
            write(sector)
        else:
            done(bio.error)

    if unmap and bdev.limits.write_zeroes:
        bdev.submit_bio(Bio(Op.WRITE_ZEROES, sector, nr_sectors, None, zeroed, fua=fua, bdev=bdev))
    elif nr_sectors:
        write(sector)
    else:
        done(0)
