"""The JSON form: proplib's liberties, what it lacks, and the way there and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmproto.errors import BadPlist, MessageTooLarge, NotSayable
from dmproto.proplib import Unsigned, dumps, dumps_json, loads_json

READ: dict[str, Any] = {
    '{"command": "names", "version": [4, 0, 0]}': {"command": "names", "version": [4, 0, 0]},
    "[1 2,3,]": [1, 2, 3],
    '{"a":1"b":2,}': {"a": 1, "b": 2},
    '{"a" : 1, "a" : true}': {"a": True},
    " [ ] \r\n": [],
    "[[],{},]": [[], {}],
    "[+5, 007, -0]": [5, 7, 0],
    "[9223372036854775807, 9223372036854775808, 18446744073709551615]": [
        (1 << 63) - 1,
        Unsigned(1 << 63),
        Unsigned((1 << 64) - 1),
    ],
    "[-9223372036854775808]": [-(1 << 63)],
    r'["\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00"]': ['"\\/\b\f\n\r\té😀'],
    '["\x01\té"]': ["\x01\té"],
    '"alone"': "alone",
    "[truefalse]": [True, False],
    '[""]\0junk': [""],
}

REFUSED = [
    "", "nonsense", "null", "[null]", "[1.5]", "[1e3]", "[0x10]", "[-]", "[,]", "[1,,2]", "{,}", "[1", '{"a"}',
    '{"a":}', "{1: 2}", "{a: 1}", "['a']", '["a', '["\\x"]', '["\\u0000"]', '["\\u12"]',
    '["\\U0041"]', '["\\ud800"]', '["\\udc00"]',
    '["\\ud800\\u0041"]', "[] []", "[]x", "[}", "{]", "[18446744073709551616]", "[-9223372036854775809]",
    "[" + "9" * 5000 + "]", '{"' + "k" * 129 + '": 1}',
]  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_read(text: str) -> None:
    obj = loads_json(text.encode())
    assert dumps(obj) == dumps(READ[text])


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    with pytest.raises(BadPlist) as caught:
        loads_json(text.encode())
    assert 0 <= (caught.value.offset or 0) <= len(text)


def test_top_and_limits() -> None:
    assert loads_json(b"{}", top="dictionary") == {}
    with pytest.raises(ValueError, match="'string', expected one of"):
        loads_json(b"{}", top="string")
    with pytest.raises(BadPlist):
        loads_json(b"[]", top="dictionary")
    assert loads_json(b"[[[]]]", max_depth=3) == [[[]]]
    with pytest.raises(BadPlist):
        loads_json(b"[[[]]]", max_depth=2)
    with pytest.raises(MessageTooLarge):
        loads_json(b"[]", max_size=1)
    assert loads_json(b"[" * 50_000 + b"]" * 50_000)


def test_write() -> None:
    obj: Any = {"b": [Unsigned(16), -1, True], "a": "\n/\udcff", "é": {}}
    assert dumps_json(obj) == b'{"a":"\\n/\xff","b":[16,-1,true],"\xc3\xa9":{}}\n'


@pytest.mark.parametrize(
    ("obj", "error"),
    [
        ({"blob": b"x"}, NotSayable),
        ({"x": None}, TypeError),
        ({"x": "\0"}, ValueError),
        ({"x": 1 << 63}, ValueError),
        ({"x": Unsigned(-1)}, ValueError),
    ],
)
def test_what_cannot_be_written(obj: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        dumps_json(obj)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
objects = st.recursive(
    texts | st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(1 << 63, (1 << 64) - 1).map(Unsigned) | st.booleans(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('abé/\\"\n', max_size=8), inner),
)


@given(objects)
def test_round_trip_and_standard_json(obj: Any) -> None:
    line = dumps_json(obj)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert dumps(loads_json(line)) == dumps(obj)
    assert json.loads(line) == obj
    assert dumps(loads_json(json.dumps(obj, indent=1).encode())) == dumps(obj)
