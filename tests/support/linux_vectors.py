"""Reads specs/vectors/linux: the steps of a recording, the ioctls nested in program runs included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .vectors import expand

__all__ = ["FILES", "VECTORS", "expand", "ioctls"]

VECTORS = Path(__file__).parents[2] / "specs" / "vectors" / "linux"
FILES = sorted(VECTORS.glob("*.jsonl"))


def ioctls(path: Path) -> Iterator[dict[str, Any]]:
    """Every recorded ioctl of a file, `request` and `written` as bytes, `line` added."""
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        step = json.loads(text)
        for ioctl in [step, *step.get("ioctls", ())]:
            if "request" in ioctl and "cmd" in ioctl and "written" in ioctl:
                yield {**ioctl, "line": line, "request": expand(ioctl["request"]), "written": expand(ioctl["written"])}
