"""What runs in the background of a raid: reshape, resync, recovery, check, repair (`md_do_sync` of drivers/md/md.c).

It goes window by window, each locked while it lasts, and no faster than `max_recovery_rate`.
"""

from __future__ import annotations

import threading

from .array import Array
from .personality import Layout
from .ranges import Claim
from .reshape import Reshape
from .super import MAX_SECTOR

__all__ = ["Sync"]

#: Sectors of a window.
WINDOW = 2048
#: KiB per second: /proc/sys/dev/raid/speed_limit_max.
FASTEST = 200000

_NAMES = {
    "reshape": "reshape",
    "resync": "resync",
    "recover": "recovery",
    "check": "data-check",
    "repair": "requested-resync",
}


class Sync:
    """The sync thread of an array. `action`: what it does now, "" for nothing; `at`: how far it is in sync space;
    `last`, `interrupted`: what it did before that, and whether to the end; `frozen`: it may not begin anything;
    `mismatches`: sectors that the last check found different; `rate` in KiB per second."""

    def __init__(self, array: Array, rate: int) -> None:
        self.array = array
        self.rate = rate or FASTEST
        self.action = ""
        self.at = 0
        self.mismatches = 0
        self.last = ""
        self.frozen = True
        self.interrupted = False
        self._dirty_only = False
        self._turn = 0
        self._busy = False
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)

    def thaw(self) -> None:
        """Do what there is to be done, from now on."""
        self.frozen = self.array.unreadable = False
        self.wake()

    def wake(self) -> None:
        """Begin what the state of the array asks for, if nothing goes on."""
        with self._lock:
            if self.frozen or self.action or self._busy or self.array.unreadable:
                return
            array = self.array
            if array.reshape:
                if not array.waiting:
                    self._begin("reshape", array.reshape.progress)
            elif array.recovering and array.personality.enough():
                self._begin("recover", min(member.recovered for member in array.recovering))
            elif array.resync_at != MAX_SECTOR:
                self._begin("resync", array.resync_at % max(array.personality.sync_max, 1))
            elif array.unclean:
                self._begin("resync", 0, dirty_only=True)

    def request(self, action: str) -> None:
        """Begin a check or a repair."""
        with self._lock:
            self.mismatches = 0
            self._begin(action, 0)

    def _begin(self, action: str, at: int, *, dirty_only: bool = False) -> None:
        self.action = self.last = action
        self.interrupted = False
        self.at = at
        self._dirty_only = dirty_only
        self._turn += 1
        self.array.target.printk(f"md: {_NAMES[action]} of RAID array mdX")
        self._later()

    def stop(self) -> None:
        """No more windows; one that is under way holds the device until it ends."""
        self.frozen = True
        self.interrupt()

    def drain(self) -> None:
        """Wait for the window that is under way."""
        with self._idle:
            self._idle.wait_for(lambda: not self._busy)

    def interrupt(self) -> None:
        """Give up what is going on."""
        with self._lock:
            self._turn += 1
            if self.action:
                self.interrupted = True
                self._say("interrupted")

    def _say(self, how: str) -> None:
        self.array.target.printk(f"md: mdX: {_NAMES[self.action]} {how}.")
        self.action = ""
        self.array.target.event()

    # -- the windows ------------------------------------------------------------------------------------

    def _later(self) -> None:
        turn = self._turn
        reshape = self.array.reshape
        size = reshape.ahead if reshape else min(WINDOW, self.array.personality.sync_max - self.at)
        self.array.target.call_later(size / 2 / self.rate, lambda: self._window(turn))

    def _window(self, turn: int) -> None:
        array = self.array
        with self._lock:
            if turn != self._turn:
                return
            if self._busy:
                self._later()
                return
            self._busy = True
            start, action, partly = self._next_start(), self.action, self._dirty_only
        array.target.hold()
        if array.reshape:
            self._reshape(array.reshape, turn)
        else:
            self._sync(turn, start, action, partly=partly)

    def _reshape(self, reshape: Reshape, turn: int) -> None:
        reshape.advance(lambda: self._ended(turn, reshape.progress, 0))

    def _sync(self, turn: int, start: int, action: str, *, partly: bool) -> None:
        array, layout = self.array, self.array.personality
        assert isinstance(layout, Layout)
        end = min(start + WINDOW, layout.sync_max)

        def locked(claim: Claim) -> None:
            layout.sync(start, end, action, lambda found: synced(claim, found))

        def synced(claim: Claim, found: int) -> None:
            if action == "recover" and not array.unreadable:
                for member in array.recovering:
                    member.recovered = end
            elif action == "resync" and not partly and not array.unreadable:
                array.resync_at = end
            layout.ranges.unlock(claim)
            self._ended(turn, end, found)

        layout.ranges.lock(start, end, locked, exclusive=True)

    def _next_start(self) -> int:
        """Where the next window begins: with `_dirty_only`, at the next that has a bit in the bitmap."""
        bitmap, at = self.array.bitmap, self.at
        if self._dirty_only and bitmap is not None:
            region = bitmap.dirty.find(1, at // bitmap.region_size)
            at = max(at, region * bitmap.region_size) if region >= 0 else self.array.personality.sync_max
        return at

    def _ended(self, turn: int, end: int, found: int) -> None:
        with self._lock:
            self._busy = False
            self._idle.notify_all()
            self.mismatches += found
            current = turn == self._turn and bool(self.action)
            if current:
                self.at = end
        if not current:
            self.wake()  # nothing, if the next action has begun already
        elif self.array.unreadable:
            self.interrupt()
        elif end < self.array.personality.sync_max and not self._pointless():
            self._later()
        else:
            self._finish()
            return
        self.array.target.release()

    def _pointless(self) -> bool:
        """The members that were to recover failed."""
        return self.action == "recover" and not self.array.recovering

    def _finish(self) -> None:
        array, turn = self.array, self._turn
        for member in array.recovering if self.last == "recover" else ():
            member.in_sync, member.recovered = True, MAX_SECTOR
        if self.last == "reshape":
            array.end_reshape()
        elif self.last == "resync":
            array.resync_at, array.unclean = MAX_SECTOR, False

        def saved() -> None:
            with self._lock:
                if turn == self._turn:  # nobody interrupted it meanwhile
                    self._say("done")
            self.wake()
            array.target.release()

        array.write_superblocks(saved)
