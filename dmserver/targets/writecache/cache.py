"""Which blocks a writecache has, and what they are for (the lists and trees of Linux `drivers/md/dm-writecache.c`).

A sector may have several blocks in the cache: a write that cannot go to the one there is, because that is being copied
to the origin, or that began at another sector, gets a new one. Nothing here does I/O: `metadata` is changed and marked,
someone else writes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ...model.dm_target import SECTOR_SIZE
from .layout import FREE, Metadata

__all__ = ["Cache", "Entry"]

#: The most blocks that are copied at once (`BIO_MAX_VECS`).
MAX_RUN = 256


@dataclass(slots=True, eq=False)
class Entry:
    """A block in use (`struct wc_entry`). `sector` on the origin; `age`: when it came into use, in seconds; `filled`:
    it has been written once; `writing`: it is being copied to the origin; `older`: the block its sector had before."""

    index: int
    sector: int
    seq_count: int
    age: float
    filled: bool = True
    writing: bool = False
    older: Entry | None = None


class Cache:
    """All blocks. `free` and `writing` count those not in use, and those being copied; `uncommitted` those that came
    into use since the last commit began. `overwrote`: blocks that had been committed were written since."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.block_sectors = metadata.block_size // SECTOR_SIZE
        self._reset()

    def _reset(self) -> None:
        self.seq_count = self.metadata.seq_count
        self._newest: dict[int, Entry] = {}
        #: The blocks that could be copied to the origin by index, the one longest in use first.
        self.lru: OrderedDict[int, Entry] = OrderedDict()
        self._is_free = bytearray(self.metadata.n_blocks)
        self._next_free = -1
        self.free = self.writing = self.uncommitted = 0
        self.overwrote = False

    def load(self, now: float, complain: Callable[[str], None]) -> bool:
        """Take up what `metadata` says, without what was never committed. True when that changed it."""
        self._reset()
        changed = False
        for index, (sector, seq_count) in enumerate(self.metadata.entries()):
            if seq_count >= self.seq_count:
                if seq_count != FREE:
                    changed = True
                    self.metadata.free(index)
                self._add_free(index)
                continue
            old = self._newest.get(sector)
            if old is not None:
                changed = True
                if old.seq_count == seq_count:
                    complain(f"two identical entries, position {index}, sector {sector}, sequence {seq_count}")
                if old.seq_count > seq_count:
                    self.metadata.free(index)
                    self._add_free(index)
                    continue
                self.release(old)
            self._insert(Entry(index, sector, seq_count, now))
        return changed

    # -- looking ----------------------------------------------------------------------------------------

    def find(self, sector: int) -> Entry | None:
        """The newest block of a sector."""
        return self._newest.get(sector)

    def uncached(self, sector: int, end: int) -> int:
        """From a sector that has no block up to the next one before `end` that has."""
        at = sector + self.block_sectors
        while at < end and at not in self._newest:
            at += self.block_sectors
        return min(at, end)

    def is_committed(self, entry: Entry) -> bool:
        return entry.seq_count < self.seq_count

    def cached(self, sector: int, end: int) -> list[Entry]:
        """All blocks of the sectors from `sector` up to `end`."""
        sectors: Sequence[int] = range(sector, end, self.block_sectors)
        if len(self._newest) < len(sectors):
            sectors = [at for at in self._newest if sector <= at < end]
        found = []
        for at in sectors:
            entry = self._newest.get(at)
            while entry is not None:
                found.append(entry)
                entry = entry.older
        return found

    # -- taking into use --------------------------------------------------------------------------------

    def allocate(self, sector: int, now: float, index: int | None = None) -> Entry | None:
        """A block for a sector; with `index` that one, if it is next. None when there is none."""
        found = self._next_free
        if found < 0 or index not in (None, found):
            return None
        self._is_free[found] = 0
        self.free -= 1
        self._next_free = self._is_free.find(1, found + 1)
        if self._next_free < 0:
            self._next_free = self._is_free.find(1)
        entry = Entry(found, sector, self.seq_count, now, filled=False)
        self.metadata.put(found, sector, self.seq_count)
        self.uncommitted += 1
        self._insert(entry)
        return entry

    def _insert(self, entry: Entry) -> None:
        entry.older = self._newest.get(entry.sector)
        self._newest[entry.sector] = entry
        self.lru[entry.index] = entry

    def release(self, entry: Entry) -> None:
        """A block is no longer in use (`writecache_free_entry`)."""
        self.lru.pop(entry.index, None)
        newer = self._newest[entry.sector]
        if newer is not entry:
            while newer.older is not entry:
                assert newer.older is not None
                newer = newer.older
            newer.older = entry.older
        elif entry.older is not None:
            self._newest[entry.sector] = entry.older
        else:
            del self._newest[entry.sector]
        self.metadata.free(entry.index)
        self._add_free(entry.index)

    def _add_free(self, index: int) -> None:
        self._is_free[index] = 1
        if not self.free:
            self._next_free = index
        self.free += 1

    # -- commit and writeback ---------------------------------------------------------------------------

    def prepare_commit(self) -> list[Entry]:
        """Have all blocks written that are not committed, and return them; of several for a sector the newest."""
        uncommitted = list(takewhile(lambda entry: not self.is_committed(entry), reversed(self.lru.values())))
        newest: dict[int, Entry] = {}
        for entry in uncommitted:
            if newest.setdefault(entry.sector, entry) is entry:
                self.metadata.mark(entry.index)
            else:
                self.release(entry)
        return list(newest.values())

    def commit(self) -> None:
        """All entries are written; the super block is to be next."""
        self.seq_count += 1
        self.metadata.seq_count = self.seq_count

    def release_older(self, entries: list[Entry]) -> bool:
        """What was just committed takes the place of older blocks. True when there were any."""
        found = [entry.older for entry in entries if entry.older is not None and not entry.older.writing]
        for older in found:
            self.release(older)
        return bool(found)

    @property
    def oldest(self) -> Entry | None:
        """What is to be copied to the origin next: not before an older block of the same sector."""
        return next((entry for entry in self.lru.values() if entry.older is None), None)

    def take_run(self, entry: Entry) -> list[Entry]:
        """`entry` and what follows it on both devices, all committed, to be copied to the origin."""
        run = [entry]
        while len(run) < MAX_RUN:
            last = run[-1]
            following = self._newest.get(last.sector + self.block_sectors)
            if following is None or following.index != last.index + 1:
                break
            if following.writing or following.older is not None or not self.is_committed(following):
                break
            run.append(following)
        for taken in run:
            taken.writing = True
            del self.lru[taken.index]
        self.writing += len(run)
        return run

    def copied(self, run: list[Entry], *, keep: bool) -> None:
        """A run has been copied; its blocks come free unless `keep`."""
        self.writing -= len(run)
        for entry in run:
            entry.writing = False
            if not keep:
                self.release(entry)
