"""Every generated codec equals the schema it was written from: results, exceptions, paths."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from construct import (
    Array,
    Bytes,
    Construct,
    ConstructError,
    Container,
    If,
    Int8ul,
    Int16ul,
    Int32ub,
    Int32ul,
    Int64ul,
    ListContainer,
    Padding,
    Prefixed,
    Rebuild,
    StreamError,
    StringError,
    Struct,
    ValidationError,
    len_,
    this,
)
from hypothesis import example, given
from hypothesis import strategies as st

from dmproto import linux
from dmproto.codegen import Fused, fuse
from dmproto.schema import Align, Chain, FixedText, Text

SCHEMAS: dict[str, Construct] = {
    "dm_ioctl": linux.dm_ioctl,
    "netbsd_dm_ioctl": linux.netbsd_dm_ioctl,
    "dm_target_spec": linux.dm_target_spec,
    "dm_target_deps": linux.dm_target_deps,
    "dm_name_list": linux.dm_name_list,
    "dm_name_list_v4_0": linux.dm_name_list_v4_0,
    "dm_target_versions": linux.dm_target_versions,
    "dm_target_msg": linux.dm_target_msg,
    "text": Struct("text" / Text()),
    "raw": Struct("class" / Int8ul, "raw" / Bytes(3), Padding(2), "data" / Array(2, Int16ul)),
    "table_load": Chain(linux.dm_target_spec, counted=True),
    "table_status": Chain(linux.dm_target_spec, counted=True, from_first=True, partial=True),
    "name_list": Chain(linux.dm_name_list),
    "name_list_v4_0": Chain(linux.dm_name_list_v4_0),
    "target_versions": Chain(linux.dm_target_versions),
}
FUSED: dict[str, Any] = {name: fuse(schema, name) for name, schema in SCHEMAS.items()}

schemas = st.sampled_from(sorted(SCHEMAS))


def plain(value: Any) -> Any:
    """Construct's containers as dicts and lists."""
    if isinstance(value, Container):
        return {key: plain(item) for key, item in value.items() if key != "_io"}
    if isinstance(value, ListContainer):
        return [plain(item) for item in value]
    return value


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives: its value, or the class, path and message of its exception."""
    try:
        return plain(call())
    except ConstructError as error:
        return type(error), error.path, str(error)
    except (KeyError, AttributeError, UnicodeEncodeError) as error:
        return type(error)


def context_of(name: str, count: int) -> dict[str, int]:
    return {"count": count} if getattr(SCHEMAS[name], "counted", False) else {}


def numbers(draw: st.DrawFn, bits: int) -> int:
    """Mostly what fits into a field, at times what does not."""
    return draw(st.one_of(st.integers(0, 2 ** (bits - 1) - 1), st.sampled_from([0, 2**bits - 1, 2**bits, -1])))


texts = st.one_of(st.text(max_size=20), st.binary(max_size=300).map(lambda b: b.decode("utf-8", "surrogateescape")))


@st.composite
def objects(draw: st.DrawFn, schema: Construct) -> Any:
    """A value that the schema builds, or nearly."""
    if isinstance(schema, Chain):
        return draw(st.lists(objects(schema.subcon), max_size=4))
    value: dict[str, Any] = {}
    for renamed in schema.subcons:
        sub = getattr(renamed, "subcon", renamed)
        if not renamed.name or isinstance(sub, Rebuild):
            continue
        if isinstance(sub, FixedText | Text) or hasattr(sub, "thensubcon"):
            value[renamed.name] = draw(texts)
        elif isinstance(sub, Bytes):
            value[renamed.name] = draw(st.binary(max_size=4) if draw(st.integers(0, 9)) == 0 else st.just(b"abc"))
        elif isinstance(sub, Array):
            count = sub.count if isinstance(sub.count, int) else draw(st.integers(0, 4))
            value[renamed.name] = [numbers(draw, 8 * sub.subcon.length) for _ in range(count)]
        else:
            value[renamed.name] = numbers(draw, 8 * sub.length)
    return value


@given(st.data(), schemas)
def test_building_equals_the_schema(data: st.DataObject, name: str) -> None:
    value = data.draw(objects(SCHEMAS[name]))
    assert outcome(lambda: FUSED[name].build(value)) == outcome(lambda: SCHEMAS[name].build(value))


@given(st.data(), schemas, st.integers(0, 5))
def test_parsing_equals_the_schema(data: st.DataObject, name: str, count: int) -> None:
    """Random bytes, and built messages with a few bytes changed or cut off."""
    built = outcome(lambda: SCHEMAS[name].build(data.draw(objects(SCHEMAS[name]))))
    raw = bytearray(built if isinstance(built, bytes) else data.draw(st.binary(max_size=400)))
    for offset, value in data.draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3)):
        if raw:
            raw[offset % len(raw)] = value
    raw = raw[: data.draw(st.one_of(st.none(), st.integers(0, len(raw))))]
    context = context_of(name, count)
    assert outcome(lambda: FUSED[name].parse(bytes(raw), **context)) == outcome(
        lambda: SCHEMAS[name].parse(bytes(raw), **context)
    )


@given(st.data(), schemas, st.integers(0, 24), st.integers(0, 3))
def test_inside_other_constructs_it_equals_the_schema(data: st.DataObject, name: str, lead: int, count: int) -> None:
    """Behind other fields, at any alignment, followed by more."""
    value = {"lead": bytes(lead), "inner": data.draw(objects(SCHEMAS[name])), "end": 7}
    around = [Struct("lead" / Bytes(lead), "inner" / inner, "end" / Int8ul) for inner in (FUSED[name], SCHEMAS[name])]
    built = [outcome(lambda outer=outer: outer.build(value)) for outer in around]
    assert built[0] == built[1]
    if isinstance(built[0], bytes):
        context = context_of(name, count)
        parsed = [outcome(lambda outer=outer: outer.parse(built[0], **context)) for outer in around]
        assert parsed[0] == parsed[1]


@given(st.lists(objects(linux.dm_name_list), min_size=1, max_size=5), st.integers(0, 4))
@example([], 0)
def test_parse_at_reads_in_the_middle_and_stops_at_the_end(entries: list[Any], words: int) -> None:
    codec = FUSED["name_list"]
    if not isinstance(body := outcome(lambda: codec.build(entries)), bytes) or not body:
        return
    data = b"\xff" * 8 * words + body + b"\xff" * 8
    got = codec.parse_at(data, 8 * words, len(data) - 8)
    assert [entry["name"] for entry in got] == [entry["name"] for entry in codec.parse(body)]


@pytest.mark.parametrize(
    ("name", "data", "kind", "path", "offset"),
    [
        ("dm_ioctl", bytes(20), StreamError, "(parsing) -> target_count", 20),
        ("dm_target_msg", bytes(8) + b"abc", StreamError, "(parsing) -> message", 8),
        ("target_versions", b"\x18" + bytes(15) + b"ab", StreamError, "(parsing)[0] -> name", 16),
        ("target_versions", b"\x0f" + bytes(16), ValidationError, "(parsing)[0] -> next", 0),
        ("dm_target_deps", b"\x02" + bytes(15), StreamError, "(parsing) -> dev", 16),
        ("table_load", bytes(39), StreamError, "(parsing)[0] -> target_type", 24),
    ],
)
def test_errors_know_their_offset(name: str, data: bytes, kind: type[Exception], path: str, offset: int) -> None:
    with pytest.raises(kind) as caught:
        FUSED[name].parse(data, **context_of(name, 1))
    assert (caught.value.path, caught.value.offset) == (path, offset)


def test_a_late_error_in_a_long_chain_costs_one_struct() -> None:
    """The schema is asked about the spoiled struct only; it reads nothing before it."""
    specs = [{"sector_start": 0, "length": 1, "status": 0, "target_type": "zero", "params": ""}] * 20_000
    data = FUSED["table_load"].build(specs)
    with pytest.raises(StreamError) as caught:
        FUSED["table_load"].parse(data[:-1], count=20_000)
    assert caught.value.path == "(parsing)[19999] -> params"


def test_texts_that_do_not_fit() -> None:
    spec = {"sector_start": 0, "length": 1, "status": 0, "next": 0, "target_type": "t" * 17, "params": ""}
    with pytest.raises(StringError, match="at most 16"):
        FUSED["dm_target_spec"].build(spec)


def test_the_source_is_code_that_compiles_and_tracebacks_can_show() -> None:
    import inspect

    codec = FUSED["table_load"]
    assert isinstance(codec, Fused)
    compile(codec.source, "table_load", "exec")
    assert max(map(len, codec.source.splitlines())) <= 120
    assert inspect.getsource(type(codec).build).strip() in codec.source


def test_sizeof_is_the_schemas() -> None:
    assert FUSED["dm_ioctl"].sizeof() == 312
    assert FUSED["netbsd_dm_ioctl"].sizeof() == 320


@pytest.mark.parametrize(
    "schema",
    [
        Struct("big" / Int32ub),
        Struct("x" / Prefixed(Int8ul, Bytes(3))),
        Struct("a" / Text(), "b" / Text()),
        Struct(Align(8)),
        Struct("n" / Int8ul, "x" / If(this.n, Int8ul)),
        Struct("n" / Int8ul, "a" / Text(), "x" / If(this.n, Text())),
        Struct("count" / Rebuild(Int32ul, len_(this.x)), "x" / Array(this.count, Int64ul), "y" / Int8ul),
    ],
    ids=str,
)
def test_what_cannot_be_fused_is_named(schema: Construct) -> None:
    with pytest.raises(TypeError, match="cannot fuse"):
        fuse(schema, "x")


def test_streams_are_left_behind_the_value() -> None:
    stream = io.BytesIO(b"\0" * 8 + b"message\0rest")
    assert FUSED["dm_target_msg"].parse_stream(stream) == {"sector": 0, "message": "message"}
    assert stream.read() == b"rest"
