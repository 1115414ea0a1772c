"""Faster equals of Construct schemas: `fuse(schema, name)` writes one Construct class for a whole schema.

Construct interprets a schema field by field, through a stream and a context; most of its time goes there. What
`fuse` generates is the code a person would write for the same bytes: one `struct.Struct` for each run of fixed
fields, `bytes.find` for strings, one loop for a chain, every bound checked. Rules:

1. The schema stays the truth. Whatever the quick code cannot take is handed to the schema, at the offset in question,
   and the schema's exception is what the caller sees, with the offset in its attribute `offset`.
2. The generated source is in `.source`, and tracebacks show it.
3. `parse` and `build` work on bytes without stream or context; `parse_at(data, offset, end)` reads in the middle of a
   buffer. `_parse` and `_build` are there for use inside any other Construct. Structs come out as plain dicts.
4. What can be fused: little-endian `FormatField`s and arrays of them, `Padding`, `Bytes`, `FixedText`, `Text`, `Align`,
   `If(expression, Text())` and `Rebuild(..., expression)`, all in one `Struct`; or a `Chain` of such a struct.
   Anything else is a TypeError when fusing.
"""

from __future__ import annotations

import io
import linecache
import struct
from typing import Any, BinaryIO, cast

from construct import Construct, ConstructError, Container, stream_seek, stream_tell, stream_write

from .codegen_source import write_source
from .schema import Chain, bad_next, located
from .wire import to_bytes, to_text

__all__ = ["Fused", "fuse"]


class Fused(Construct):  # type: ignore[misc]  # construct has no types
    """Base of the generated classes. `schema` is the interpreted original, `source` the generated code."""

    schema: Construct
    source: str

    def _parse(self, stream: BinaryIO, context: Container, path: str) -> Any:
        start = stream_tell(stream, path)
        lead = start % 8  # alignment counts from the start of the stream
        data = bytes(lead) + stream.read()
        try:
            value, stop = self.walk(data, lead, len(data), **self._from_context(context))
        except ConstructError:
            stream_seek(stream, start, 0, path)
            return self.schema._parse(stream, context, path)
        stream_seek(stream, start + stop - lead, 0, path)
        return value

    def _build(self, obj: Any, stream: BinaryIO, context: Container, path: str) -> Any:
        if stream_tell(stream, path) % 8:
            return self.schema._build(obj, stream, context, path)
        try:
            data = self.build(obj)
        except ConstructError:
            return self.schema._build(obj, stream, context, path)
        stream_write(stream, data, len(data), path)
        return obj

    def _sizeof(self, context: Container, path: str) -> int:
        return cast(int, self.schema._sizeof(context, path))

    def _from_context(self, context: Container) -> dict[str, Any]:
        return {"count": context.count} if isinstance(self.schema, Chain) and self.schema.counted else {}

    def walk(self, data: bytes, offset: int, end: int) -> tuple[Any, int]:
        """The value at `offset`, and the offset behind it. Abstract: each generated class has its own."""
        raise NotImplementedError


class _Texts(dict[bytes, str]):
    """Memo of short fixed texts (target types): the bytes of a `char[n]` to the text up to its first NUL."""

    def __missing__(self, data: bytes) -> str:
        if len(self) >= 1024:
            self.clear()
        text = self[data] = to_text(data.partition(b"\0")[0])
        return text


class _Codes(dict[str, bytes]):
    """The inverse memo. A text that does not fit into `limit` bytes is a struct.error, as any other bad field."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __missing__(self, text: str) -> bytes:
        data = to_bytes(text)
        if len(data) > self.limit or 0 in data:
            raise struct.error("text does not fit")
        if len(self) >= 1024:
            self.clear()
        self[text] = data
        return data


class _Packs(dict[int, tuple[Any, int]]):
    """Memo of packers by length of the text inside: fixed fields, the text with its NUL, fill, more fixed fields."""

    def __init__(self, before: str, after: str, modulus: int) -> None:
        self.before, self.after, self.modulus = before, after, modulus

    def __missing__(self, length: int) -> tuple[Any, int]:
        if len(self) >= 4096:
            self.clear()
        head = struct.calcsize("<" + self.before)
        width = length + 1 + -(head + length + 1) % self.modulus
        packer = struct.Struct(f"<{self.before}{width}s{self.after}")
        entry = self[length] = (packer.pack, packer.size)
        return entry


class _Watched(io.BytesIO):
    """Remembers where the last read began: the field in which the data ran out."""

    last = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.last = self.tell()
        return super().read(size)


def _context(*, parsing: bool) -> Container:
    """What `Construct.parse_stream` and `build_stream` make for themselves."""
    return Container(_parsing=parsing, _building=not parsing, _sizing=False, _params=None)


def refusal(schema: Construct, data: bytes, offset: int, end: int, path: str) -> ConstructError:
    """Why `schema` cannot parse what stands at `offset`."""
    stream = _Watched(bytes(data[:end]))
    stream.seek(offset)
    try:
        schema._parse(stream, _context(parsing=True), path)
    except ConstructError as error:
        return error if hasattr(error, "offset") else located(error, stream.last)
    raise AssertionError(f"{schema!r} parses what its generated code refuses")


def objection(schema: Construct, obj: Any, path: str) -> Exception:
    """Why `schema` cannot build `obj`."""
    try:
        schema._build(obj, io.BytesIO(), _context(parsing=False), path)
    except Exception as error:
        return error
    raise AssertionError(f"{schema!r} builds what its generated code refuses")


def fuse(schema: Construct, name: str) -> Any:
    """One generated Construct instance, the equal of `schema`, whose class is called `name`.

    Raises TypeError naming the part that cannot be fused.
    """
    source = write_source(schema, name)
    namespace: dict[str, Any] = {
        "Codes": _Codes,
        "Fused": Fused,
        "Packs": _Packs,
        "Struct": struct.Struct,
        "Texts": _Texts,
        "bad_next": bad_next,
        "schema": schema.subcon if isinstance(schema, Chain) else schema,
        "pack_numbers": struct.pack,
        "objection": objection,
        "refusal": refusal,
        "struct_error": struct.error,
        "unpack_from": struct.unpack_from,
    }
    filename = f"<fused {name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), namespace)
    generated = namespace[name]
    generated.schema, generated.source = schema, source
    return generated()
