"""The Construct pieces that the schemas of this package need beyond Construct's own.

`FixedText` is a C `char[n]`, `Text` a NUL-terminated string, `Align` the kernel's `align_ptr()`, and `Chain` a
list of variable-length structs in which each says where the next one stands (`next`). They are ordinary,
interpreted Construct classes; `codegen.fuse` knows them and writes faster equals.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from construct import (
    Adapter,
    Bytes,
    Construct,
    ConstructError,
    Container,
    ListContainer,
    SizeofError,
    StreamError,
    StringError,
    Struct,
    Subconstruct,
    ValidationError,
    stream_read,
    stream_seek,
    stream_size,
    stream_tell,
    stream_write,
)

from .wire import to_bytes, to_text

__all__ = ["Align", "Chain", "FixedText", "Text", "bad_next", "located"]


def located(error: ConstructError, offset: int) -> ConstructError:
    """The same exception, with the stream offset (bytes) of the trouble in its attribute `offset`."""
    error.offset = offset
    return error


def bad_next(value: int, base: int, least: int, end: int, path: str, offset: int) -> ConstructError:
    """A `next` at `offset` that leads back, into its own struct or out of the data. It counts from `base`."""
    message = f"{value} bytes from offset {base}, expected {least - base} to {end - base - 1}"
    return located(ValidationError(message, f"{path} -> next"), offset)


class FixedText(Adapter):  # type: ignore[misc]  # construct has no types
    """`char name[size]`: text up to the first NUL, filled with NULs.

    At most `limit` bytes count, `size - 1` unless told: the kernel puts a NUL into the last byte.
    """

    def __init__(self, size: int, limit: int | None = None) -> None:
        super().__init__(Bytes(size))
        self.size = size
        self.limit = size - 1 if limit is None else limit

    def _decode(self, obj: bytes, context: Container, path: str) -> str:
        return to_text(obj[: self.limit].partition(b"\0")[0])

    def _encode(self, obj: str, context: Container, path: str) -> bytes:
        data = to_bytes(obj)
        if len(data) > self.limit or 0 in data:
            raise StringError(f"{obj[:40]!r} is {len(data)} bytes, expected at most {self.limit} and no NUL", path)
        return data.ljust(self.size, b"\0")


class Text(Construct):  # type: ignore[misc]  # construct has no types
    """A NUL-terminated string; the NUL must be there. Reads in growing pieces, O(n)."""

    def _parse(self, stream: BinaryIO, context: Container, path: str) -> str:
        start = stream_tell(stream, path)
        data, piece = b"", 64
        while chunk := stream.read(piece):
            data, seen, piece = data + chunk, len(data), 2 * piece
            if (nul := data.find(0, seen)) >= 0:
                stream_seek(stream, start + nul + 1, 0, path)
                return to_text(data[:nul])
        raise located(StreamError(f"{len(data)} bytes without a NUL, expected a terminated string", path), start)

    def _build(self, obj: str, stream: BinaryIO, context: Container, path: str) -> str:
        data = to_bytes(obj)
        if 0 in data:
            raise StringError(f"{obj[:40]!r} holds a NUL", path)
        stream_write(stream, data + b"\0", len(data) + 1, path)
        return obj

    def _sizeof(self, context: Container, path: str) -> int:
        raise SizeofError("strings vary in length", path=path)


class Align(Construct):  # type: ignore[misc]  # construct has no types
    """Fill up to the next multiple of `modulus` in the stream: `align_ptr()` of drivers/md/dm-ioctl.c."""

    def __init__(self, modulus: int = 8) -> None:
        super().__init__()
        self.modulus = modulus
        self.flagbuildnone = True

    def _parse(self, stream: BinaryIO, context: Container, path: str) -> None:
        stream_read(stream, -stream_tell(stream, path) % self.modulus, path)

    def _build(self, obj: object, stream: BinaryIO, context: Container, path: str) -> None:
        stream_write(stream, bytes(pad := -stream_tell(stream, path) % self.modulus), pad, path)

    def _sizeof(self, context: Container, path: str) -> int:
        raise SizeofError("the fill depends on the offset", path=path)


class Chain(Subconstruct):  # type: ignore[misc]  # construct has no types
    """A list of structs of which each names the offset of the following one in its field `next`.

    The offset counts from the struct itself, or from the first struct when `from_first`. A chain ends after
    `count` entries when the context has one, else at a `next` of 0. It may end early when `partial`: behind a string
    that ends where the data end. `next` of the last entry is ignored then, as the kernel and libdevmapper do.

    Built, entries are aligned to 8 and `next` is computed; that of the last is 0 in a chain without count. Every step
    goes forward by at least the fixed part of the entry, so parsing ends.
    """

    def __init__(
        self, entry: Struct, *, from_first: bool = False, counted: bool = False, partial: bool = False
    ) -> None:
        super().__init__(entry)
        self.from_first = from_first
        self.counted = counted
        self.partial = partial
        fixed = [sub for sub in entry.subcons if sub.name in self._fixed_names(entry)]
        self.fixed = sum(sub.sizeof() for sub in fixed)
        self.next_at = sum(sub.sizeof() for sub in fixed[: [sub.name for sub in fixed].index("next")])

    @staticmethod
    def _fixed_names(entry: Struct) -> list[str]:
        """Names of the fields before the first one whose size varies."""
        names = []
        for sub in entry.subcons:
            try:
                sub.sizeof()
            except SizeofError:
                break
            names.append(sub.name)
        return names

    def _parse(self, stream: BinaryIO, context: Container, path: str) -> ListContainer:
        first = offset = stream_tell(stream, path)
        end = stream_size(stream)
        count = context.count if self.counted else None
        entries = ListContainer()
        while count is None or len(entries) < count:
            if self.partial and offset == end:
                break
            where = f"{path}[{len(entries)}]"
            entry = self.subcon._parsereport(stream, context, where)
            entries.append(entry)
            if len(entries) == count or (count is None and entry.next == 0):
                break
            if self.partial and stream_tell(stream, path) == end:
                break
            base = first if self.from_first else offset
            following = base + entry.next
            if not offset + self.fixed <= following < end:
                raise bad_next(entry.next, base, offset + self.fixed, end, where, offset + self.next_at)
            offset = following
            stream_seek(stream, offset, 0, path)
        return entries

    def _build(self, obj: list[dict[str, Any]], stream: BinaryIO, context: Container, path: str) -> None:
        first = stream_tell(stream, path)
        for index, entry in enumerate(obj):
            start = stream_tell(stream, path)
            where = f"{path}[{index}]"
            self.subcon._build({**entry, "next": 0}, stream, context, where)
            end = stream_tell(stream, path)
            last = index == len(obj) - 1
            pad = -end % 8
            if not last:
                stream_write(stream, bytes(pad), pad, path)
            if last and not self.counted:
                break
            following = end + pad - (first if self.from_first else start)
            stream_seek(stream, start + self.next_at, 0, path)
            stream_write(stream, following.to_bytes(4, "little"), 4, path)
            stream_seek(stream, end if last else end + pad, 0, path)

    def _sizeof(self, context: Container, path: str) -> int:
        raise SizeofError("entries vary in size", path=path)
