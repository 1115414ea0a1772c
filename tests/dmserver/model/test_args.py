from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmproto.wire import to_text
from dmserver.model import args
from dmserver.model.args import Arguments, parse_sector, parse_u32, parse_uint, split_args, wrapped

WORDS = st.text(st.characters(exclude_characters=" \t\n\v\f\r\\", exclude_categories=["Cs"]), min_size=1).filter(
    lambda word: b"\xa0" not in word.encode()
)


@given(st.lists(WORDS))
def test_words_are_split_at_white_space(words: list[str]) -> None:
    assert split_args(" \t".join(words)) == words


@given(st.text(st.sampled_from("a \t\n\v\f\r\x1c\x85\xa0é")))
def test_without_backslashes_the_short_way_says_the_same(params: str) -> None:
    assert args._words(params) == args._split_quoted(params)


@pytest.mark.parametrize(
    ("params", "words"),
    [("", []), (" a  b\n", ["a", "b"]), (r"a\ b c", ["a b", "c"]), (r"a\\b", [r"a\b"]), ("a\\", ["a\\"])],
)
def test_backslashes_quote(params: str, words: list[str]) -> None:
    assert split_args(params) == words


@pytest.mark.parametrize(
    ("params", "words"),
    [(b"a\xa0b", ["a", "b"]), (b"a\\\xa0b", ["a\udca0b"]), ("\u00e4 \u20ac".encode(), ["\u00e4", "\u20ac"])],
)
def test_a_space_of_latin_1_is_white_space(params: bytes, words: list[str]) -> None:
    assert split_args(to_text(params)) == words


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("007", 7), (" 8", 8), (str(1 << 64), 0), (str((1 << 64) + 5), 5)]
)
def test_sectors_wrap(text: str, value: int) -> None:
    assert parse_sector(text) == value


@pytest.mark.parametrize(("text", "value"), [("1", 1), (str(1 << 32), 0), (str((1 << 32) + 5), 5)])
def test_scanned_numbers_wrap(text: str, value: int) -> None:
    assert parse_u32(text) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "+1", "1x", "0x8", "1 "])
def test_what_sscanf_refuses(text: str) -> None:
    for parse in (parse_sector, parse_u32):
        with pytest.raises(ValueError, match="expected a number"):
            parse(text)


def test_kstrtouint_takes_a_plus_and_does_not_wrap() -> None:
    assert parse_uint("+2") == 2
    assert parse_uint("08\n") == 8
    for text in ("-1", " 1", str(1 << 32)):
        with pytest.raises(ValueError, match="expected an unsigned number"):
            parse_uint(text)


def test_arguments_are_consumed_from_the_front() -> None:
    args = Arguments(["a", "2", "b", "c", "d"])
    assert args.shift() == "a"
    assert args.group(0, 2) == 2
    assert args.take(2) == ["b", "c"]
    assert len(args) == 1
    assert args.take(5) == ["d"]
    assert args.shift() == ""


@pytest.mark.parametrize("argv", [[], ["x"], ["3"], ["0"]])
def test_numbers_out_of_bounds(argv: list[str]) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        Arguments(argv).number(1, 2)


def test_a_group_of_which_arguments_are_missing() -> None:
    with pytest.raises(ValueError, match="expected 2 more arguments, not 1"):
        Arguments(["2", "a"]).group(0, 5)


@given(st.text("0123456789", min_size=1, max_size=300), st.integers(1, 64))
def test_long_numbers_wrap_as_short_ones_do(digits: str, bits: int) -> None:
    assert wrapped(digits, bits) == int(digits) % (1 << bits)


def test_numbers_may_be_very_long() -> None:
    assert parse_sector("1" * 1_000_000) == int("1" * 64) % (1 << 64)
