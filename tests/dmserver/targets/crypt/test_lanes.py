"""Whatever is done to words side by side is done to each of them."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.crypt.lanes import Lanes

blocks = st.integers(1, 5).flatmap(lambda size: st.lists(st.binary(min_size=4 * size, max_size=4 * size), min_size=1))


@given(blocks)
def test_unpack_is_the_inverse_of_pack(blocks: list[bytes]) -> None:
    lanes = Lanes(len(blocks))
    assert lanes.unpack(lanes.pack(b"".join(blocks))) == b"".join(blocks)


@given(blocks, st.integers(1, 31))
def test_words_do_not_touch(blocks: list[bytes], bits: int) -> None:
    lanes = Lanes(len(blocks))
    packed = lanes.pack(b"".join(blocks))
    turned = lanes.unpack([lanes.rotate(word + packed[0] & lanes.mask, bits) for word in packed])
    expected = []
    for block in blocks:
        words = struct.unpack(f"<{len(block) // 4}I", block)
        sums = [word + words[0] & 0xFFFFFFFF for word in words]
        expected += [(each << bits | each >> 32 - bits) & 0xFFFFFFFF for each in sums]
    assert turned == struct.pack(f"<{len(expected)}I", *expected)
