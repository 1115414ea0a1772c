"""Disks that lose what was not flushed, and power that fails: what a target must survive."""

from __future__ import annotations

import random
from collections.abc import Callable

from support.targets import FaultyDisk

from dmserver.model.dm_target import SECTOR_SIZE, Bio, Op

__all__ = ["Power", "VolatileDisk"]


class Power:
    """Fails before the write or flush of its disks that `fail_at` counts: `failed` is called once, and `after` is what
    the disks hold then, as `chance` has it."""

    def __init__(self, chance: random.Random, failed: Callable[[], None]) -> None:
        self.disks: list[VolatileDisk] = []
        self.after: list[bytes] = []
        self.fail_at = 0
        self.chance = chance
        self._failed = failed

    def tick(self) -> None:
        self.fail_at -= 1
        if not self.fail_at:
            self.after = [disk.survivors(self.chance) for disk in self.disks]
            self._failed()


class VolatileDisk(FaultyDisk):
    """Of what was written since the last flush, any sectors may have reached the disk when the power fails."""

    def __init__(self, number: int, size: str, power: Power) -> None:
        super().__init__(number, size)
        self._power = power
        self._stable = bytearray(self.bytes)
        self._pending: list[tuple[int, bytes]] = []
        power.disks.append(self)

    def finish_any(self) -> bool:
        """Do one of the bios that are held, whichever; False when there are none."""
        if not self.held:
            return False
        bio = self.held.pop(self._power.chance.randrange(len(self.held)))
        done, bio.done = bio.done, None
        self.slow = False
        self.submit_bio(bio)
        self.slow = True
        bio.done = done
        bio.endio(bio.error)
        return True

    def submit_bio(self, bio: Bio) -> None:
        if self.slow:
            self.held.append(bio)
            return
        if bio.op is not Op.READ:
            self._power.tick()
        if bio.op is Op.WRITE:
            data = bytes(bio.data or b"")
            cut = range(0, len(data), SECTOR_SIZE)
            written = [(bio.sector + at // SECTOR_SIZE, data[at : at + SECTOR_SIZE]) for at in cut]
            self._pending += written
            if bio.fua:
                self._settle(self._stable, lambda sector: sector in dict(written))
                self._pending = [(sector, data) for sector, data in self._pending if sector not in dict(written)]
        elif bio.op is Op.FLUSH:
            self._settle(self._stable, lambda sector: True)
            self._pending.clear()
        super().submit_bio(bio)

    def _settle(self, image: bytearray, keeps: Callable[[int], bool]) -> None:
        for sector, data in self._pending:
            if keeps(sector):
                image[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE] = data

    def survivors(self, chance: random.Random) -> bytes:
        """What a failure of the power could leave."""
        image = bytearray(self._stable)
        self._settle(image, lambda sector: chance.random() < 0.5)
        return bytes(image)
