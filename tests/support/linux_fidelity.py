"""specs/fidelity.md: how the recordings in specs/vectors/linux compare with what we answer. `python -m
support.linux_fidelity` writes it; a test holds it to the replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from support.linux_masks import KINDS, MASK_SEPARATOR, MASKS
from support.linux_replay import FILES, Result, replay

from dmproto.commands import BY_NAME, COMMANDS

__all__ = ["FIDELITY", "render"]

FIDELITY = Path(__file__).parents[2] / "specs" / "fidelity.md"

_INTRODUCTION = """\
# Fidelity to Linux

Every step of the recordings in `specs/vectors/linux` is replayed on a fresh device-mapper and compared: the result,
every byte that is written back and how many there are, the data read, the kernel's log lines and uevents. This page
is made by `make fidelity` from that replay (`tests/support/linux_replay.py`), and a test holds it to it.

A step with a masked field counts as identical when all else is.
"""

_HIDDEN = "the disk is there already: a load before is not in the recording"

_REASONS = {
    _HIDDEN: "files of constructor checks hold only part of the steps that were recorded",
    "removes a device whose creation is not in the recording": "likewise",
    **{mask.field: mask.reason for mask in MASKS},
}


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _counts(results: Iterable[Result]) -> tuple[int, int, str]:
    """Recorded, identical, and which fields were masked how often."""
    found = list(results)
    identical = sum(not result.difference for result in found)
    masked = Counter(field for result in found for field in _fields(result))
    return len(found), identical, ", ".join(f"{field} ({count})" for field, count in sorted(masked.items()))


def _fields(result: Result) -> list[str]:
    return result.masked.split(MASK_SEPARATOR) if result.masked else []


def _section(
    title: str, first: str, rows: Iterable[tuple[str, Callable[[Result], bool]]], results: list[Result]
) -> str:
    lines = [(name, *_counts(result for result in results if belongs(result))) for name, belongs in rows]
    head = (first, "recorded", "identical", "masked fields")
    return f"## {title}\n\n" + _table(head, [line for line in lines if line[1]])


def render() -> str:
    """The whole page."""
    results = [result for file in FILES for result in replay(file)]
    operations = sorted({result.what for result in results} - set(BY_NAME))
    masked = Counter(field for result in results for field in _fields(result))
    parts = [
        _INTRODUCTION,
        _section("Commands", "command", [(c.name, lambda r, name=c.name: r.what == name) for c in COMMANDS], results),
        _section(
            "Target types", "type, loads and status", [(k, lambda r, k=k: k in r.types) for k in sorted(KINDS)], results
        ),
        _section("Other steps", "step", [(op, lambda r, op=op: r.what == op) for op in operations], results),
        _section("Files", "file", [(file, lambda r, file=file: r.file == file) for file in FILES], results),
        "## Masked\n\n" + _table(("field", "steps", "why"), [(f, n, _REASONS[f]) for f, n in sorted(masked.items())]),
        f"## In all\n\n{_total(results)}\n",
    ]
    return "\n".join(parts)


def _total(results: list[Result]) -> str:
    recorded, identical, _ = _counts(results)
    return f"{recorded} steps recorded, {identical} identical."


if __name__ == "__main__":
    FIDELITY.write_text(render())
