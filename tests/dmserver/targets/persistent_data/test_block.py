from __future__ import annotations

import pytest

from dmserver.targets.persistent_data.block import BLOCK_SIZE, Corrupt, checksum, seal, unseal


@pytest.mark.parametrize(("data", "expected"), [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA)])
def test_the_checksum_is_crc32c(data: bytes, expected: int) -> None:
    """The salt stands in for the inversion at the end, which the kernel leaves out."""
    assert checksum(data, 0xFFFFFFFF) == expected


def test_a_changed_block_is_found() -> None:
    image = seal(bytearray(BLOCK_SIZE), 7, 1)
    assert unseal(image, 7, 1, "node") == image
    with pytest.raises(Corrupt, match="node check failed: blocknr 7: wanted 8"):
        unseal(image, 8, 1, "node")
    with pytest.raises(Corrupt, match="node check failed: csum"):
        unseal(image[:-1] + b"x", 7, 1, "node")
