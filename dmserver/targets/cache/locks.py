"""Who is at a block of the origin: many bios, or one that moves it (Linux `drivers/md/dm-bio-prison-v2.c`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...model.dm_target import Bio
from ..actions import Actions

__all__ = ["BlockLocks"]


@dataclass(slots=True)
class _Cell:
    """`then` is called when the last of the `users` leaves a block that is locked; `waiting` came after it was."""

    users: int = 0
    locked: bool = False
    then: Callable[[Actions], None] | None = None
    waiting: list[Bio] = field(default_factory=list)


class BlockLocks:
    """The blocks that somebody is at, by number. To be called under the lock of the cache."""

    def __init__(self) -> None:
        self._cells: dict[int, _Cell] = {}

    def enter(self, block: int, bio: Bio) -> bool:
        """True: until `leave`, nobody locks the block. False: it is locked, and `unlock` will return the bio."""
        cell = self._cells.get(block)
        if cell is None:
            cell = self._cells[block] = _Cell()
        elif cell.locked:
            cell.waiting.append(bio)
            return False
        cell.users += 1
        return True

    def leave(self, block: int, actions: Actions) -> None:
        cell = self._cells[block]
        cell.users -= 1
        if cell.users:
            return
        if not cell.locked:
            del self._cells[block]
        elif cell.then is not None:
            then, cell.then = cell.then, None
            then(actions)

    def lock(self, block: int, then: Callable[[Actions], None], actions: Actions) -> None:
        """Call `then` once the block, which nobody has locked, is free of bios: perhaps now."""
        cell = self._cells.setdefault(block, _Cell())
        assert not cell.locked
        cell.locked = True
        if cell.users:
            cell.then = then
        else:
            then(actions)

    def wait(self, block: int, bio: Bio) -> None:
        """Let a bio wait for a block that is locked."""
        self._cells[block].waiting.append(bio)

    def unlock(self, block: int) -> list[Bio]:
        """Returns the bios that waited."""
        return self._cells.pop(block).waiting
