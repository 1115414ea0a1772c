from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.persistent_data.block import BLOCK_SIZE, Corrupt, checksum, seal, unseal


def plain(data: bytes) -> int:
    """CRC-32C bit by bit (Castagnoli's polynomial, reflected)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def test_the_plain_checksum_is_crc32c() -> None:
    assert (plain(b"123456789"), plain(bytes(32))) == (0xE3069283, 0x8A9136AA)


@given(st.binary().map(lambda data: data + data))
def test_the_checksum_is_the_plain_one(data: bytes) -> None:
    """The salt stands in for the inversion at the end, which the kernel leaves out."""
    assert checksum(data, 0xFFFFFFFF) == plain(data)


def test_a_changed_block_is_found() -> None:
    image = seal(bytearray(BLOCK_SIZE), 7, 1)
    assert unseal(image, 7, 1, "node") == image
    with pytest.raises(Corrupt, match="node check failed: blocknr 7: wanted 8"):
        unseal(image, 8, 1, "node")
    with pytest.raises(Corrupt, match="node check failed: csum"):
        unseal(image[:-1] + b"x", 7, 1, "node")
