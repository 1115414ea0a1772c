from __future__ import annotations

import errno

import pytest

from dmserver.targets.cache.superblock import Stats, Superblock
from dmserver.targets.persistent_data.superblock import BadSuperblock


def test_superblocks_pack() -> None:
    superblock = Superblock(
        3,
        bytes(range(16)),
        2,
        b"smq",
        4,
        b"m" * 128,
        5,
        6,
        7,
        128,
        9,
        128,
        8,
        11,
        0,
        0,
        0,
        Stats(1, 2, 3, 4),
        (2, 0, 1),
        12,
    )
    assert Superblock.unpack(superblock.pack()) == superblock


@pytest.mark.parametrize("version", [0, 3])
def test_versions_of_other_times(version: int) -> None:
    with pytest.raises(BadSuperblock) as refusal:
        Superblock.unpack(Superblock(version=version).pack())
    assert refusal.value.errno == errno.EINVAL
    text = f"Cache metadata version {version} found, but only versions between 1 and 2 supported."
    assert str(refusal.value) == text


def test_no_superblock_at_all() -> None:
    with pytest.raises(BadSuperblock, match="magic 0: wanted 1623043"):
        Superblock.unpack(bytes(4096))
