"""Blocks of metadata (Linux `drivers/md/persistent-data/dm-block-manager.c`).

A block is 4096 bytes; the first four are a checksum of the others, CRC-32C with a salt that tells what kind of block it
is. It also has its own number in it.
"""

from __future__ import annotations

import struct
from functools import cache

from ...model.dm_target import SECTOR_SIZE

__all__ = ["BLOCK_SECTORS", "BLOCK_SIZE", "Corrupt", "checksum", "seal", "unseal"]

BLOCK_SIZE = 4096
BLOCK_SECTORS = BLOCK_SIZE // SECTOR_SIZE

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

#: Where most kinds of block have their number.
_NUMBER = 8


class Corrupt(Exception):
    """A block is not what it should be; the text says where and what was expected."""


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
        table.append(value)
    return table


_CRC = _table()


@cache
def _pairs() -> list[int]:
    """What two bytes do to the checksum."""
    once = [value >> 8 ^ _CRC[value & 0xFF] for value in range(1 << 16)]
    return [value >> 8 ^ _CRC[value & 0xFF] for value in once]


def checksum(data: bytes, salt: int) -> int:
    """`dm_bm_checksum`: CRC-32C of an even number of bytes, not inverted at the end, with a salt."""
    crc, table = 0xFFFFFFFF, _pairs()
    for pair in struct.unpack(f"<{len(data) // 2}H", data):
        crc = crc >> 16 ^ table[(crc ^ pair) & 0xFFFF]
    return crc ^ salt


def seal(image: bytearray, block: int, salt: int, at: int = _NUMBER) -> bytes:
    """Put its number (at byte `at`) and its checksum into a block."""
    _U64.pack_into(image, at, block)
    _U32.pack_into(image, 0, checksum(bytes(image[4:]), salt))
    return bytes(image)


def unseal(image: bytes, block: int, salt: int, what: str, at: int = _NUMBER) -> bytes:
    """Check a block's number and checksum; Corrupt when one is wrong."""
    (found,), (number,) = _U32.unpack_from(image), _U64.unpack_from(image, at)
    if number != block:
        raise Corrupt(f"{what} check failed: blocknr {number}: wanted {block}")
    if found != (expected := checksum(image[4:], salt)):
        raise Corrupt(f"{what} check failed: csum {expected}: wanted {found}")
    return image
