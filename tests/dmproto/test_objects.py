import pytest

from dmproto.errors import BadDictionary
from dmproto.objects import Array, Dictionary, Key, Number, String, describe, same
from dmproto.proplib import Unsigned

POINT = Dictionary(
    Key("x", Number(32), required=True, flow="in"),
    Key("label", String(4), flow="in"),
    Key("shift", Number(8, signed=True), flow="in"),
    Key("triple", Array(Number(8), 3), flow="in"),
)


def test_dictionary_goes_both_ways():
    obj = {"x": Unsigned(7), "label": "abcd", "shift": -1, "triple": [Unsigned(1), Unsigned(2), Unsigned(3)]}
    values = POINT.load(obj)
    assert values == {"x": 7, "label": "abcd", "shift": -1, "triple": [1, 2, 3]}
    assert same(POINT.dump(values), obj)


def test_what_is_absent_or_unknown_is_left_out():
    assert POINT.load({"x": 1, "other": "y"}) == {"x": 1}


def test_longer_text_is_cut_at_bytes():
    assert POINT.load({"x": 1, "label": "abcde"})["label"] == "abcd"
    assert POINT.load({"x": 1, "label": "abc\u00e9"})["label"] == "abc\udcc3"


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ("x", 'expected a dictionary, got string "x"'),
        ({}, "x: the key is missing, expected an unsigned number"),
        ({"x": "1"}, 'x: expected an unsigned number, got string "1"'),
        ({"x": True}, "x: expected an unsigned number, got bool true"),
        ({"x": -1}, "x: expected an unsigned number of 32 bits, got -1"),
        ({"x": Unsigned(1 << 32)}, "x: expected an unsigned number of 32 bits, got 4294967296"),
        ({"x": 1, "shift": 128}, "shift: expected a signed number of 8 bits, got 128"),
        ({"x": 1, "label": b"abc"}, "label: expected a string, got data of 3 bytes"),
        ({"x": 1, "label": "a\0"}, "label: expected a string without NUL"),
        ({"x": 1, "triple": [1]}, "triple: expected an array of 3, got array of 1"),
        ({"x": 1, "triple": [1, [], 3]}, "triple[1]: expected an unsigned number, got array of 0"),
    ],
)
def test_errors_name_the_place_and_what_was_expected(obj, message):
    with pytest.raises(BadDictionary) as caught:
        POINT.load(obj)
    assert str(caught.value) == message


def test_values_that_do_not_fit_are_not_built():
    with pytest.raises(BadDictionary, match="x: expected an unsigned number of 32 bits, got -5"):
        POINT.dump({"x": -5})


def test_same_minds_signedness_and_type_at_any_depth():
    assert same({"a": [Unsigned(5)]}, {"a": [Unsigned(5)]})
    assert not same({"a": [5]}, {"a": [Unsigned(5)]})
    assert not same(1, True)
    deep, other = [], []
    for _ in range(100_000):
        deep, other = [deep], [other]
    assert same(deep, other)
    assert not same(deep, [other])


def test_describe_shortens_text():
    assert describe("x" * 41) == f'string "{"x" * 40}..."'
