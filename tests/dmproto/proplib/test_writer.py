"""The bytes proplib writes, for every recorded value, and what it cannot hold."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from dmproto.errors import MessageTooLarge
from dmproto.proplib import MAX_TABS, Unsigned, dumps, loads

VECTORS = Path(__file__).parents[3] / "specs" / "vectors" / "netbsd" / "proplib_encode.jsonl"
RECORDS = [json.loads(line) for line in VECTORS.read_text().splitlines()]
MAKE: dict[str, Any] = {
    "dict": lambda members: {key: made(value) for key, value in members},
    "array": lambda items: [made(item) for item in items],
    "signed": int,
    "unsigned": Unsigned,
    "string": str,
    "bool": bool,
    "data": base64.b64decode,
}


def made(value: dict[str, Any]) -> Any:
    return MAKE[value["type"]](value["value"])


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["label"][:40])
def test_recorded(record: dict[str, Any]) -> None:
    assert dumps(made(record["value"])) == record["xml"].encode()


def test_keys_are_in_the_order_of_their_bytes() -> None:
    keys = ["", "a", "A", "aa", "é", "\udc80", "\udcff", "雪", "😀"]
    written: Any = loads(dumps(dict.fromkeys(keys, True)))
    assert list(written) == sorted(keys, key=lambda key: key.encode("utf-8", "surrogateescape"))
    assert list(written) != sorted(keys)


@pytest.mark.parametrize(
    ("obj", "error", "says"),
    [
        ({"start": 1.5}, TypeError, "<key>start</key>: a property list holds no float"),
        ([None], TypeError, "an item: a property list holds no NoneType"),
        ({1: "x"}, TypeError, "expected str"),
        ({"n": Unsigned(-1)}, ValueError, "<key>n</key>: Unsigned"),
        ({"n": Unsigned(1 << 64)}, ValueError, "no unsigned number of 64 bits"),
        ({"n": 1 << 63}, ValueError, "no signed number of 64 bits"),
        ({"n": -(1 << 63) - 1}, ValueError, "no signed number of 64 bits"),
        ({"é" * 65: 1}, ValueError, "128 bytes"),
        ({"n": "a\0b"}, ValueError, "NUL"),
        ({"a\0b": "n"}, ValueError, "NUL"),
        ({"n": "\ud800"}, ValueError, "surrogates"),
    ],
)
def test_refused(obj: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        dumps(obj)


def nested(levels: int) -> Any:
    obj: list[Any] = []
    for _ in range(levels - 1):
        obj = [obj]
    return obj


def test_depth() -> None:
    levels = 2000
    assert dumps(nested(levels)).count(b"\t") == (levels - 1) ** 2
    with pytest.raises(MessageTooLarge, match=str(MAX_TABS)):
        dumps(nested(40_000))


def test_numbers_that_are_equal_are_not_the_same_object() -> None:
    assert Unsigned(5) == 5
    assert dumps([Unsigned(5), 5, True]).count(b"0x5") == 1
    assert repr(Unsigned(5)) == "Unsigned(5)"
