"""XOR of blocks: as one long number each, since Python has no faster way."""

from __future__ import annotations

__all__ = ["xor"]


def xor(first: bytes | bytearray | memoryview, *others: bytes | bytearray | memoryview) -> bytes:
    """Of blocks of the same length."""
    total = int.from_bytes(first, "little")
    for block in others:
        total ^= int.from_bytes(block, "little")
    return total.to_bytes(len(first), "little")
