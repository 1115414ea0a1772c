"""An origin and its snapshot, for tests of the snapshot targets."""

from __future__ import annotations

from typing import Any

from support.targets import Bench, pattern, write

from dmserver.targets.snapshot.snapshot import Snapshot
from dmserver.targets.snapshot.snapshot_origin import SnapshotOrigin

#: Sectors of both.
SIZE = 256


def scene(bench: Bench, kind: str = "P", chunk: int = 8) -> tuple[Any, Any]:
    """An origin on 1:0, resumed after its snapshot on 1:1."""
    write(bench.disks[0], 0, pattern(1, 0, SIZE))
    snap = bench.load("snap", (Snapshot, SIZE, f"1:0 1:1 {kind} {chunk}"))
    return bench.load("org", (SnapshotOrigin, SIZE, "1:0")), snap
