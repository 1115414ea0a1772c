"""What the programs of thin-provisioning-tools say of the metadata of an era device."""

from __future__ import annotations

import re
from pathlib import Path

from support.thin import thin_tool

__all__ = ["changed_since", "checked", "eras"]


def checked(image: bytes, path: Path) -> str:
    """Metadata in a file, which `era_check` accepts."""
    path.write_bytes(image)
    thin_tool("era_check", str(path))
    return str(path)


def eras(path: str) -> list[int]:
    """The era of each block: what the array says, and what is yet to be digested into it (`era_dump`)."""
    found: dict[int, int] = {}
    dump = thin_tool("era_dump", path)
    array = re.findall(r'<era block="(\d+)" era="(\d+)"/>', dump)
    for era, bits in [*re.findall(r'<writeset era="(\d+)"[^>]*>(.*?)</writeset>', dump, re.DOTALL)]:
        for block in re.findall(r'<bit block="(\d+)" value="true"/>', bits):
            found[int(block)] = max(found.get(int(block), 0), int(era))
    assert [int(block) for block, _ in array] == list(range(len(array)))
    return [found.get(block, int(era)) for block, (_, era) in enumerate(array)]


def changed_since(path: str, era: int) -> set[int]:
    """What was written in `era` or later (`era_invalidate`)."""
    dump = thin_tool("era_invalidate", "--written-since", str(era), path)
    ranges = re.findall(r'<range begin="(\d+)" end ?= ?"(\d+)"', dump)
    blocks = {int(block) for block in re.findall(r'<block block="(\d+)"', dump)}
    return blocks.union(*(range(int(begin), int(end)) for begin, end in ranges))
