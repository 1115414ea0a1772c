"""Reads specs/vectors/linux: the steps of a recording, the ioctls nested in program runs included."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[2] / "specs" / "vectors" / "linux"
FILES = sorted(VECTORS.glob("*.jsonl"))


def expand(text: str) -> bytes:
    """`HEX*N:XX` is HEX and N bytes of value XX."""
    match = re.fullmatch(r"([0-9a-f]*)(?:\*(\d+):([0-9a-f]{2}))?", text)
    assert match, text
    return bytes.fromhex(match[1]) + bytes.fromhex(match[3] or "") * int(match[2] or 0)


def ioctls(path: Path) -> Iterator[dict[str, Any]]:
    """Every recorded ioctl of a file, `request` and `written` as bytes, `line` added."""
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        step = json.loads(text)
        for ioctl in [step, *step.get("ioctls", ())]:
            if "request" in ioctl and "cmd" in ioctl and "written" in ioctl:
                yield {**ioctl, "line": line, "request": expand(ioctl["request"]), "written": expand(ioctl["written"])}
