"""The bio: one request for a run of sectors of one block device (Linux `struct bio`).

A bio is submitted to a `BlockDevice` and comes back exactly once, through `endio`, in whatever thread finished
it. Whoever is handed a bio by `submit_bio` owns it until then.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blockdev import BlockDevice

__all__ = ["Bio", "Op"]


class Op(Enum):
    """`REQ_OP_*`."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"
    WRITE_ZEROES = "write-zeroes"

    __hash__ = object.__hash__


class Bio:
    """`sector` and `nr_sectors` in sectors of 512 bytes; `data` is a memoryview of exactly that many bytes.

    READ fills `data`, WRITE takes it; FLUSH, DISCARD and WRITE_ZEROES have none. `fua`: a write is on stable
    storage when it completes. `bdev` is the device it is going to; a target's `map` redirects it by setting
    `bdev` and `sector`. `per_bio` is the target's own instance of its `per_bio_data`; `target_bio_nr` counts the
    copies that a target asked for (`num_flush_bios` ...), from 0. `depth`: how many mapped devices it came through.
    `tags`: for a device that keeps some (`limits.integrity`), those of the bio's blocks, which a READ fills; else None.
    `error` is 0 or an errno.
    """

    __slots__ = (
        "bdev",
        "data",
        "depth",
        "done",
        "error",
        "fua",
        "nr_sectors",
        "op",
        "per_bio",
        "sector",
        "tags",
        "target_bio_nr",
    )

    def __init__(
        self,
        op: Op,
        sector: int,
        nr_sectors: int,
        data: memoryview | None = None,
        done: Callable[[Bio], None] | None = None,
        *,
        fua: bool = False,
        bdev: BlockDevice | None = None,
    ) -> None:
        self.op = op
        self.sector = sector
        self.nr_sectors = nr_sectors
        self.data = data
        self.done = done
        self.fua = fua
        self.bdev = bdev
        self.per_bio: Any = None
        self.tags: memoryview | None = None
        self.target_bio_nr = 0
        self.depth = 0
        self.error = 0

    def endio(self, error: int = 0) -> None:
        """Complete the bio with an errno (0: success); calls `done(bio)` in this thread."""
        self.error = error
        if self.done is not None:
            self.done(self)

    def __repr__(self) -> str:
        return f"<Bio {self.op.value} {self.sector}+{self.nr_sectors}>"
