from __future__ import annotations

import errno
import struct

import pytest

from dmserver.targets.persistent_data.block import BLOCK_SIZE, seal
from dmserver.targets.persistent_data.superblock import BadSuperblock, check_superblock

MAGIC, SALT = 12345, 678


def superblock(block: int = 0) -> bytes:
    image = bytearray(BLOCK_SIZE)
    struct.pack_into("<Q", image, 32, MAGIC)
    return seal(image, block, SALT)


def test_one_that_is_right() -> None:
    check_superblock(superblock(7), 7, MAGIC, SALT)


@pytest.mark.parametrize(
    ("image", "number", "text"),
    [
        (superblock(7), errno.ENOTBLK, "sb_check failed: blocknr 7: wanted 0"),
        (bytes(BLOCK_SIZE), errno.EILSEQ, "sb_check failed: magic 0: wanted 12345"),
        (superblock()[:-1] + b"x", errno.EILSEQ, "sb_check failed: csum "),
    ],
)
def test_what_is_wrong_first_is_told(image: bytes, number: int, text: str) -> None:
    with pytest.raises(BadSuperblock, match=text) as refusal:
        check_superblock(image, 0, MAGIC, SALT)
    assert refusal.value.errno == number
