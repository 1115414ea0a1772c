"""dmproto.schema: one table of exact bytes drives reading and writing; errors know their place."""

from __future__ import annotations

from typing import Any

import pytest
from construct import Bytes, Construct, Int8ul, Int32ul, SizeofError, StreamError, StringError, Struct, ValidationError

from dmproto.schema import Align, Chain, FixedText, Text

ENTRY = Struct("next" / Int32ul, "text" / Text())
CHAIN = Chain(ENTRY)
FROM_FIRST = Chain(ENTRY, from_first=True, counted=True, partial=True)

BYTES: list[tuple[Construct, Any, bytes]] = [
    (FixedText(4), "abc", b"abc\0"),
    (FixedText(4), "", b"\0\0\0\0"),
    (FixedText(4, 4), "abcd", b"abcd"),
    (FixedText(3), "\udcff", b"\xff\0\0"),
    (Text(), "", b"\0"),
    (Text(), "é\udc80", "é".encode() + b"\x80\0"),
    (Text(), "x" * 1000, b"x" * 1000 + b"\0"),
    (CHAIN, ["a"], b"\0\0\0\0a\0"),
    (CHAIN, ["a", "bcdef"], b"\x08\0\0\0a\0\0\0" + b"\0\0\0\0bcdef\0"),
    (FROM_FIRST, ["a", "bcdef", ""], b"\x08\0\0\0a\0\0\0" + b"\x18\0\0\0bcdef\0" + bytes(6) + b"\x20\0\0\0\0"),
]


@pytest.mark.parametrize(("schema", "value", "data"), BYTES)
def test_reading_and_writing(schema: Construct, value: Any, data: bytes) -> None:
    entries = [{"text": text} for text in value] if isinstance(schema, Chain) else value
    assert schema.build(entries) == data
    parsed = schema.parse(data, count=len(value))
    assert [entry.text for entry in parsed] == value if isinstance(schema, Chain) else parsed == value


@pytest.mark.parametrize(("data", "text"), [(b"ab\0d", "ab"), (b"abcd", "abc")])
def test_fixed_text_ends_at_a_nul_or_at_its_limit(data: bytes, text: str) -> None:
    assert FixedText(4).parse(data) == text


@pytest.mark.parametrize(("schema", "text"), [(FixedText(4), "abcd"), (FixedText(4), "a\0"), (Text(), "a\0")])
def test_texts_that_cannot_be_told(schema: Construct, text: str) -> None:
    with pytest.raises(StringError):
        schema.build(text)


def test_alignment_counts_from_the_start_of_the_stream() -> None:
    schema = Struct("a" / Bytes(3), Align(8), "b" / Int8ul)
    assert schema.build({"a": b"abc", "b": 7}) == b"abc\0\0\0\0\0\x07"
    assert schema.parse(b"abcxxxxx\x07").b == 7


@pytest.mark.parametrize(
    ("schema", "data", "kind", "path", "offset"),
    [
        (Text(), b"abc", StreamError, "(parsing)", 0),
        (CHAIN, b"\x03\0\0\0a\0\0\0\0\0\0\0b\0", ValidationError, "(parsing)[0] -> next", 0),
        (CHAIN, b"\x06\0\0\0a\0", ValidationError, "(parsing)[0] -> next", 0),
        (FROM_FIRST, b"\x08\0\0\0a\0\0\0\x08\0\0\0b\0\0\0", ValidationError, "(parsing)[1] -> next", 8),
    ],
)
def test_errors(schema: Construct, data: bytes, kind: type[Exception], path: str, offset: int) -> None:
    with pytest.raises(kind) as caught:
        schema.parse(data, count=9)
    assert (caught.value.path, caught.value.offset) == (path, offset)


def test_a_chain_may_end_early_where_the_data_end() -> None:
    data = b"\x08\0\0\0a\0\0\0\x08\0\0\0b\0"
    assert [entry.text for entry in FROM_FIRST.parse(data, count=9)] == ["a", "b"]
    assert FROM_FIRST.parse(b"", count=9) == []


@pytest.mark.parametrize("schema", [Text(), Align(8), CHAIN])
def test_sizes_vary(schema: Construct) -> None:
    with pytest.raises(SizeofError):
        schema.sizeof()
