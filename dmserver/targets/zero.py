"""zero: reads zeros, drops writes (Linux `drivers/md/dm-zero.c`). No arguments."""

from __future__ import annotations

from ..model.dm_target import Bio, MapResult, Op, Target

__all__ = ["Zero"]


class Zero(Target):
    name = "zero"
    version = (1, 1, 0)
    num_discard_bios = 1

    def map(self, bio: Bio) -> MapResult:
        if bio.op is Op.READ:
            assert bio.data is not None
            bio.data[:] = bytes(len(bio.data))
        elif bio.op is not Op.WRITE:
            return MapResult.KILL
        bio.endio()
        return MapResult.SUBMITTED
