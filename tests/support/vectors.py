"""The recorded vectors of specs/vectors, as the tests read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dmproto.commands import BY_NAME, Command

SPECS = Path(__file__).parents[2] / "specs"
VECTORS = SPECS / "vectors"


def records(pattern: str) -> Iterator[dict[str, Any]]:
    """The lines of the files that match, e.g. `netbsd/transcripts/*.jsonl`."""
    for path in sorted(VECTORS.glob(pattern)):
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def expand(text: str) -> bytes:
    """Bytes of a recorded hex string with its elisions, `HEX*N:XX`."""
    parts = re.finditer(r"([0-9a-f]+)|\*(\d+):([0-9a-f]{2})", text)
    return b"".join(bytes.fromhex(p[1]) if p[1] else bytes.fromhex(p[3]) * int(p[2]) for p in parts)


@cache
def linux_buffers() -> tuple[tuple[Command, bool, bytes], ...]:
    """Each distinct recorded buffer with its command and whether it is a reply.

    A reply is there twice: what the kernel wrote, and the caller's whole buffer afterwards.
    """
    steps = (step for record in records("linux/*.jsonl") for step in (record, *record.get("ioctls", ())))
    texts = {
        (step["cmd"], step["request"], step.get("written") or ""): None
        for step in steps
        if step.get("cmd") in BY_NAME and isinstance(step.get("request"), str)
    }
    found: dict[tuple[Command, bool, bytes], None] = {}
    for name, *recorded in texts:
        command, (request, written) = BY_NAME[name], map(expand, recorded)
        found[command, False, request] = None
        if written:
            found[command, True, written] = None
            found[command, True, written + request[len(written) :]] = None
    return tuple(found)


@cache
def plists() -> tuple[tuple[bool, bytes], ...]:
    """Each distinct recorded property list of a request or reply, and whether it is a reply."""
    found: dict[tuple[bool, bytes], None] = {}
    for pattern in ("netbsd/transcripts/*.jsonl", "netbsd/libdevmapper_tasks.jsonl", "netbsd/dmctl_sessions.jsonl"):
        for record in records(pattern):
            for step in (record, *record.get("exchanges", ())):
                for key in ("request", "reply"):
                    if isinstance(step.get(key), str) and not step.get("elided"):
                        found[key == "reply", step[key].encode()] = None
    return tuple(found)
