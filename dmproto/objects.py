"""Construct pieces for schemas over property-list objects.

The "stream" of these schemas is the object that stands in the dictionary when parsing, and the list that takes
the new object when building. `load` and `dump` are the doors; inside they are ordinary Constructs with parents, paths
and `_parse`/`_build`. Paths name keys from the outside in: `cmd_data[2].start`.
"""

from __future__ import annotations

from typing import Any

from construct import Construct, Container, Subconstruct

from .errors import BadDictionary
from .proplib import Unsigned
from .wire import to_bytes

__all__ = ["Array", "Dictionary", "Key", "Number", "Schema", "String", "describe", "same"]


def describe(obj: object) -> str:
    """An object in a sentence: `string "x"`, `number -1`, `array of 3`."""
    match obj:
        case bool():
            return f"bool {str(obj).lower()}"
        case int():
            return f"number {int(obj)}"
        case str():
            return f'string "{obj if len(obj) <= 40 else obj[:40] + "..."}"'
        case bytes():
            return f"data of {len(obj)} bytes"
        case list():
            return f"array of {len(obj)}"
        case dict():
            return f"dictionary of {len(obj)}"
    return f"{type(obj).__name__}"


def same(one: object, other: object) -> bool:
    """Whether two objects externalize alike: 5 signed, 5 unsigned and true are three objects."""
    pairs = [(one, other)]
    while pairs:
        left, right = pairs.pop()
        if type(left) is not type(right):
            return False
        if isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            pairs.extend((value, right[key]) for key, value in left.items())
        elif isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            pairs.extend(zip(left, right, strict=True))
        elif left != right:
            return False
    return True


class Schema(Construct):  # type: ignore[misc]  # construct has no types
    """A schema over one object. `kind` is its type in words, for tables and errors."""

    kind: str

    def load(self, obj: object) -> Any:
        """The value of `obj`. Raises BadDictionary with the key path."""
        return self._parsereport(obj, Container(), "")

    def dump(self, value: object) -> Any:
        """The object for `value`. Raises BadDictionary when the value does not fit."""
        taker: list[object] = []
        self._build(value, taker, Container(), "")
        return taker[0]

    def expected(self, obj: object, path: str) -> BadDictionary:
        return BadDictionary(f"expected {self.kind}, got {describe(obj)}", path=path)


class Number(Schema):
    """A number of so many bits. Parsing minds the value only, as `prop_dictionary_get_uint32` does."""

    def __init__(self, bits: int, *, signed: bool = False) -> None:
        super().__init__()
        self.signed = signed
        self.low, self.high = (-1 << bits - 1, 1 << bits - 1) if signed else (0, 1 << bits)
        self.bits = bits
        self.kind = "a signed number" if signed else "an unsigned number"

    def _parse(self, stream: object, context: Container, path: str) -> int:
        if not isinstance(stream, int) or isinstance(stream, bool):
            raise self.expected(stream, path)
        if not self.low <= stream < self.high:
            raise BadDictionary(f"expected {self.kind} of {self.bits} bits, got {int(stream)}", path=path)
        return int(stream)

    def _build(self, obj: int, stream: list[object], context: Container, path: str) -> int:
        if not self.low <= obj < self.high:
            raise BadDictionary(f"expected {self.kind} of {self.bits} bits, got {obj}", path=path)
        stream.append(obj if self.signed else Unsigned(obj))
        return obj


class String(Schema):
    """A string without a NUL. What is longer than `limit` bytes is cut, as `strlcpy` does."""

    kind = "a string"

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit

    def _parse(self, stream: object, context: Container, path: str) -> str:
        if not isinstance(stream, str):
            raise self.expected(stream, path)
        if "\0" in stream:
            raise BadDictionary("expected a string without NUL", path=path)
        if self.limit is not None and len(stream) * 4 > self.limit and len(data := to_bytes(stream)) > self.limit:
            return data[: self.limit].decode("utf-8", "surrogateescape")
        return stream

    def _build(self, obj: str, stream: list[object], context: Container, path: str) -> str:
        stream.append(obj)
        return obj


class Array(Subconstruct):  # type: ignore[misc]  # construct has no types
    """An array of like objects; of exactly `count` when that is given."""

    def __init__(self, item: Construct, count: int | None = None) -> None:
        super().__init__(item)
        self.count = count
        self.kind = "an array" if count is None else f"an array of {count}"

    load, dump, expected = Schema.load, Schema.dump, Schema.expected

    def _parse(self, stream: object, context: Container, path: str) -> list[Any]:
        if not isinstance(stream, list) or self.count not in (None, len(stream)):
            raise self.expected(stream, path)
        parse = self.subcon._parse
        return [parse(item, context, f"{path}[{index}]") for index, item in enumerate(stream)]

    def _build(self, obj: list[Any], stream: list[object], context: Container, path: str) -> list[Any]:
        items: list[object] = []
        build = self.subcon._build
        for index, item in enumerate(obj):
            build(item, items, context, f"{path}[{index}]")
        stream.append(items)
        return obj


class Key(Subconstruct):  # type: ignore[misc]  # construct has no types
    """One key of a dictionary: its name, the schema of its object, and what a person wants to know of it.

    `flow` tells who writes it: "in" the caller, "out" the driver, or both. `source` is the name in the C header.
    """

    def __init__(self, name: str, schema: Construct, *, required: bool = False, flow: str, source: str = "") -> None:
        super().__init__(schema)
        self.name = name
        self.required = required
        self.flow = flow
        self.source = source


class Dictionary(Schema):
    """A dictionary with known keys. Parsing gives the values of those that are there, and skips the unknown."""

    kind = "a dictionary"

    def __init__(self, *keys: Key) -> None:
        super().__init__()
        self.keys = keys
        self.by_name = {key.name: key for key in keys}

    def _parse(self, stream: object, context: Container, path: str) -> dict[str, Any]:
        if not isinstance(stream, dict):
            raise self.expected(stream, path)
        values: dict[str, Any] = {}
        for key in self.keys:
            where = f"{path}.{key.name}" if path else key.name
            if key.name in stream:
                values[key.name] = key.subcon._parse(stream[key.name], context, where)
            elif key.required:
                raise BadDictionary(f"the key is missing, expected {key.subcon.kind}", path=where)
        return values

    def _build(self, obj: dict[str, Any], stream: list[object], context: Container, path: str) -> dict[str, Any]:
        objects: dict[str, object] = {}
        for name, value in obj.items():
            taker: list[object] = []
            self.by_name[name].subcon._build(value, taker, context, f"{path}.{name}" if path else name)
            objects[name] = taker[0]
        stream.append(objects)
        return obj
