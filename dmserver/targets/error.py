"""error: fails every bio with EIO (Linux `drivers/md/dm-target.c`). Any arguments are taken, and forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from ..model.dm_target import Bio, MapResult, Target, TargetFeature

__all__ = ["Error"]


class Error(Target):
    name = "error"
    version = (1, 5, 0)
    module = "dm-mod"
    features = TargetFeature.WILDCARD
    num_discard_bios = 1

    def ctr(self, argv: Sequence[str]) -> None:
        pass

    def map(self, bio: Bio) -> MapResult:
        return MapResult.KILL
