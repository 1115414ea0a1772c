from __future__ import annotations

from dmserver.targets.xor import xor


def test_blocks_of_any_kind_and_number() -> None:
    assert xor(b"\x0f", bytearray(b"\xf0"), memoryview(b"\x01")) == b"\xfe"
    assert xor(b"ab") == b"ab"
    assert xor(b"", b"") == b""
    assert xor(b"\0\xff\0", b"\0\xff\1") == b"\0\0\1"
