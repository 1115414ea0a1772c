"""What a cache keeps, and what it moves when (`smq` of Linux `drivers/md/dm-cache-policy-smq.c`, and its other names).

An origin block is promoted when it is missed again in a later period than before: with plenty of room that is what the
stochastic multiqueue comes to. A write that needs no copy, because it fills the block or because what was there is
discarded, is promoted at once while cache blocks are free. When none is, and less than a quarter is free or about to
be, the block that was used least recently is demoted, a clean one for choice; a dirty one is written back instead.
While the cache is idle all dirty blocks are written back, the least recently used first; the cleaner does so always.

The kernel's queues have 64 levels, among which they spread blocks evenly by use. Here the order of use is all there is;
its 64 equal parts are the levels that go to the disk as hints.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from ...model.dm_target import parse_uint

__all__ = ["KINDS", "Kind", "Operation", "Policy", "Settings", "Work"]

_LEVELS = 64
_PERIOD = 1
_FREE_PERCENT = 25
_LEAST_HOTSPOTS = 1024

#: What the policy of old could be tuned by.
_MQ_TUNABLES = (
    "random_threshold",
    "sequential_threshold",
    "discard_promote_adjustment",
    "read_promote_adjustment",
    "write_promote_adjustment",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """`struct dm_cache_policy_type`. `name`: what the status and the metadata say; `tunables`: settings that are taken,
    and do nothing; `migrates`: blocks are promoted and demoted, not only written back."""

    name: str
    tunables: tuple[str, ...] = ()
    migrates: bool = True
    version: tuple[int, int, int] = (2, 0, 0)
    hint_size: int = 4

    def config_values(self) -> str:
        """As the status shows them."""
        return " ".join([str(2 * len(self.tunables)), *(f"{tunable} 0" for tunable in self.tunables)])


_SMQ = Kind("smq")

#: By the names that tables may give.
KINDS = {"smq": _SMQ, "default": _SMQ, "mq": Kind("mq", _MQ_TUNABLES), "cleaner": Kind("cleaner", migrates=False)}


@dataclass(slots=True)
class Settings:
    """What tables and messages may set. `migration_threshold`: sectors on the way at most, for writing back."""

    kind: Kind
    migration_threshold: int = 2048

    def set(self, key: str, value: str) -> str:
        """Returns a line for the log, or "". ValueError for what is no setting or no value."""
        number = parse_uint(value, 64)
        if key.lower() == "migration_threshold":
            self.migration_threshold = number
            return ""
        if key.lower() not in self.kind.tunables:
            raise ValueError(f"{key}: expected migration_threshold or one of {self.kind.tunables}")
        return f"tunable '{key}' no longer has any effect, mq policy is now an alias for smq"


class Operation(Enum):
    """`enum policy_operation`."""

    PROMOTE = "promote"
    DEMOTE = "demote"
    WRITEBACK = "writeback"


@dataclass(slots=True, eq=False)
class Work:
    """`struct policy_work`: a block to be moved."""

    operation: Operation
    oblock: int
    cblock: int


@dataclass(slots=True, eq=False)
class _Entry:
    """A block in the cache. `pending`: it is being moved, and in no queue."""

    oblock: int
    cblock: int
    dirty: bool = False
    pending: bool = False


class Policy:
    """Which of the origin's blocks are in which of `blocks` cache blocks, and which to move. `now` is a clock in
    seconds. Nothing here is safe from threads."""

    def __init__(self, kind: Kind, blocks: int, now: Callable[[], float]) -> None:
        self.kind = kind
        self.migrates = kind.migrates
        self.blocks = blocks
        self._now, self._begin = now, now()
        self._entries: dict[int, _Entry] = {}
        self._by_cblock: dict[int, _Entry] = {}
        #: Each in the order of use, least recently used first.
        self._clean: OrderedDict[int, _Entry] = OrderedDict()
        self._dirty: OrderedDict[int, _Entry] = OrderedDict()
        self._free = deque(range(blocks))
        self._promoting: set[int] = set()
        self._demotions = 0
        self._queued: deque[Work] = deque()
        self._missed: OrderedDict[int, int] = OrderedDict()
        self._hotspots = max(blocks // 4, _LEAST_HOTSPOTS)

    # -- what is where ----------------------------------------------------------------------------------

    @property
    def residency(self) -> int:
        """Cache blocks in use, or about to be."""
        return self.blocks - len(self._free)

    @property
    def busy(self) -> bool:
        """There is something to be moved, now or once the cache is idle."""
        return bool(self._queued or self._dirty)

    @property
    def has_queued(self) -> bool:
        """There is something to be moved now."""
        return bool(self._queued)

    def load(self, mappings: Iterable[tuple[int, int, bool, int | None]]) -> None:
        """Take what is cached already: cache block, origin block, whether it is dirty, and its level or None."""
        for cblock, oblock, dirty, _ in sorted(mappings, key=lambda mapping: mapping[3] or 0):
            entry = _Entry(oblock, cblock, dirty)
            self._entries[oblock] = self._by_cblock[cblock] = entry
            self._queue(entry)
        self._free = deque(cblock for cblock in range(self.blocks) if cblock not in self._by_cblock)

    def shrink(self, blocks: int) -> None:
        """There are only so many cache blocks left."""
        for cblock in [cblock for cblock in self._by_cblock if cblock >= blocks]:
            self.invalidate(cblock)
        self.blocks = blocks
        self._free = deque(cblock for cblock in self._free if cblock < blocks)

    def hints(self) -> list[int]:
        """The level of each cache block."""
        hints = [0] * self.blocks
        for queue in (self._clean, self._dirty):
            for rank, entry in enumerate(queue.values()):
                hints[entry.cblock] = rank * _LEVELS // len(queue)
        return hints

    def _queue(self, entry: _Entry) -> None:
        (self._dirty if entry.dirty else self._clean)[entry.oblock] = entry

    def _take_out(self, entry: _Entry) -> None:
        del (self._dirty if entry.dirty else self._clean)[entry.oblock]

    def set_dirty(self, cblock: int, dirty: bool) -> None:
        entry = self._by_cblock[cblock]
        if not entry.pending:
            self._take_out(entry)
        entry.dirty = dirty
        if not entry.pending:
            self._queue(entry)

    def invalidate(self, cblock: int) -> bool:
        """Forget a mapping; False when there is none."""
        entry = self._by_cblock.pop(cblock, None)
        if entry is None:
            return False
        del self._entries[entry.oblock]
        if not entry.pending:
            self._take_out(entry)
        self._free.append(cblock)
        return True

    # -- looking ----------------------------------------------------------------------------------------

    def lookup(self, oblock: int) -> int | None:
        """The cache block of an origin block that is used now, or None."""
        entry = self._entries.get(oblock)
        if entry is None:
            return None
        if not entry.pending:
            (self._dirty if entry.dirty else self._clean).move_to_end(oblock)
        return entry.cblock

    def missed(self, oblock: int, *, fast: bool) -> Work | None:
        """`lookup` found nothing; `fast`: a write needs no copy. Returns a promotion that its bio is to do, while
        others are queued."""
        hot = self._heat(oblock)
        if not self.migrates or oblock in self._promoting:
            return None
        if fast and self._free:
            return self._promotion(oblock)
        if hot and self._free:
            self._queued.append(self._promotion(oblock))
        elif hot:
            self._make_room()
        return None

    def _heat(self, oblock: int) -> bool:
        """Remember a miss; True when there was another in an earlier period."""
        period = int((self._now() - self._begin) / _PERIOD)
        before = self._missed.setdefault(oblock, period)
        self._missed.move_to_end(oblock)
        if len(self._missed) > self._hotspots:
            self._missed.popitem(last=False)
        return before < period

    def _promotion(self, oblock: int) -> Work:
        self._promoting.add(oblock)
        self._missed.pop(oblock, None)
        return Work(Operation.PROMOTE, oblock, self._free.popleft())

    def _make_room(self) -> None:
        if len(self._free) + self._demotions >= self.blocks * _FREE_PERCENT // 100:
            return
        if self._clean:
            self._demotions += 1
            self._queue_work(Operation.DEMOTE, self._clean)
        elif self._dirty:
            self._queue_work(Operation.WRITEBACK, self._dirty)

    def _queue_work(self, operation: Operation, queue: OrderedDict[int, _Entry]) -> None:
        """Move what was used least recently."""
        oblock, entry = queue.popitem(last=False)
        entry.pending = True
        self._queued.append(Work(operation, oblock, entry.cblock))

    # -- moving -----------------------------------------------------------------------------------------

    def next_work(self, *, idle: bool) -> Work | None:
        """Something to move; nobody waits for it."""
        if not self._queued and self._dirty and (idle or self.kind.name == "cleaner"):
            self._queue_work(Operation.WRITEBACK, self._dirty)
        return self._queued.popleft() if self._queued else None

    def complete(self, work: Work, *, success: bool) -> None:
        """Work is done, or could not be."""
        if work.operation is Operation.PROMOTE:
            self._promoting.discard(work.oblock)
            if not success:
                self._free.append(work.cblock)
                return
            entry = self._entries[work.oblock] = self._by_cblock[work.cblock] = _Entry(work.oblock, work.cblock)
            self._queue(entry)
            return
        entry = self._by_cblock[work.cblock]
        entry.pending = False
        self._demotions -= work.operation is Operation.DEMOTE
        if work.operation is Operation.DEMOTE and success:
            del self._entries[entry.oblock], self._by_cblock[entry.cblock]
            self._free.append(entry.cblock)
        else:
            self._queue(entry)
