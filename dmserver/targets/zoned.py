"""zoned: a regular device out of disks with zones that must be written in order (Linux `drivers/md/dm-zoned-target.c`).

Arguments: [REGULAR] ZONED... No disk here has zones, so every table is refused, as on a machine without such disks.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..model.dm_target import Target, TargetFeature

__all__ = ["Zoned"]


class Zoned(Target):
    name = "zoned"
    version = (2, 0, 0)
    features = TargetFeature.SINGLETON

    def ctr(self, argv: Sequence[str]) -> None:
        if not argv:
            raise self.refuse("Invalid argument count")
        for index, path in enumerate(argv):
            self.get_device(path, "Get target device failed")
            if len(argv) == 1:
                raise self.refuse("Invalid regular device")
            if index:
                raise self.refuse("First device must be a regular device")
            if self.begin:
                raise self.refuse("Partial mapping is not supported")
