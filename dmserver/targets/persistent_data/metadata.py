"""What all metadata have in common: a superblock, and a space map of the blocks that transactions change.

Nothing here does I/O but reading: `prepare_commit` says what is to be written, and then `committed` or `abort` follows;
in between nothing may be changed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from copy import copy
from typing import Generic, Protocol, TypeVar

from .block import Corrupt
from .commit import Commit
from .space_map import MetadataSpaceMap
from .superblock import BadSuperblock
from .transaction import Transaction

__all__ = [
    "METADATA_FAILURES",
    "SUPERBLOCK",
    "Metadata",
    "MetadataError",
    "Superblock",
    "check_data_block_size",
    "errno_of",
    "tell_why_not_opened",
]

#: The block of the superblock.
SUPERBLOCK = 0


class MetadataError(Exception):
    """A refusal: an errno, and for some the lines of the kernel log."""

    def __init__(self, number: int, *messages: str) -> None:
        super().__init__("; ".join(messages) or errno.errorcode[number])
        self.errno = number
        self.messages = messages


#: What changes to metadata and commits may raise when something is wrong with the device, or it is full.
METADATA_FAILURES = (OSError, Corrupt)


def errno_of(failure: Exception) -> int:
    """What the kernel gives for a failure; for a block that is corrupt that is EILSEQ."""
    return getattr(failure, "errno", None) or errno.EILSEQ


class Superblock(Protocol):
    """What is asked of a superblock: a copy of it is another one."""

    metadata_space_map_root: bytes

    def pack(self) -> bytes:
        """The image of it, sealed."""


S = TypeVar("S", bound=Superblock)


class Metadata(Generic[S]):
    """Metadata in blocks of 4096 bytes, of which `read` reads one. `changed`: there is something to commit."""

    _superblock: S
    _committed: S

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.transaction = Transaction(read)
        self.changed = False

    def _bind(self) -> None:
        """Make the trees and maps of `transaction`."""
        self._space_map = MetadataSpaceMap(self.transaction)

    def _begin(self, superblock: S) -> None:
        """The superblock of what is formatted."""
        self._superblock, self._committed = superblock, copy(superblock)
        self.changed = True

    def _load(self, superblock: S) -> None:
        """Go on from what was committed with this superblock. Raises Corrupt or OSError."""
        self._superblock, self._committed = superblock, copy(superblock)
        self._bind()
        if not any(superblock.metadata_space_map_root):
            raise Corrupt("there is no space map: nothing was ever committed")
        self._space_map.open(superblock.metadata_space_map_root)
        self.changed = False

    def prepare_commit(self) -> Commit:
        """What to write so that all changes are kept. OSError(ENOSPC) when the metadata do not fit."""
        self._space_map.commit()
        self._superblock.metadata_space_map_root = self._space_map.root
        return Commit(self._superblock.pack(), self.transaction.images())

    def committed(self) -> None:
        """The `Commit` is on the disk."""
        self.transaction.committed()
        self._committed = copy(self._superblock)
        self.changed = False

    def abort(self) -> None:
        """Go back to what was committed last. Raises Corrupt or OSError."""
        self.transaction.abort()
        self._load(self._committed)

    @property
    def metadata_blocks(self) -> int:
        """Blocks of the metadata device."""
        return len(self.transaction.counts)


def check_data_block_size(found: int, wanted: int) -> None:
    """MetadataError when metadata are of data blocks of another size, in sectors."""
    if found != wanted:
        text = f"changing the data block size (from {found} to {wanted}) is not supported"
        raise MetadataError(errno.EINVAL, text)


def tell_why_not_opened(failure: Exception, prefix: str, lock: str, log: Callable[[str], None]) -> None:
    """The lines of the kernel log: `prefix` is who tells, `lock` the word for what was to be done to the superblock."""
    lines: Iterable[str] = ()
    if isinstance(failure, MetadataError):
        lines = failure.messages
    elif isinstance(failure, Corrupt):
        lines = (str(failure),)
    for line in lines:
        log(f"device-mapper: {prefix}: {line}")
    if isinstance(failure, BadSuperblock):
        log(f"device-mapper: block manager: superblock validator check failed for block {SUPERBLOCK}")
        log(f"device-mapper: {prefix}: couldn't {lock} superblock")
