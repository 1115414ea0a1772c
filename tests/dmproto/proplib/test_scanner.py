"""Every recorded verdict of proplib's parser, the rules behind them, and the fast lanes against the plain reader."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dmproto.errors import BadPlist, MessageTooLarge
from dmproto.proplib import MAX_DEPTH, Unsigned, dumps, lanes, loads, scanner

VECTORS = Path(__file__).parents[3] / "specs" / "vectors" / "netbsd"


def recorded(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (VECTORS / name).read_text().splitlines()]


def input_of(record: dict[str, Any]) -> bytes:
    if "input_hex" in record:
        return bytes.fromhex(record["input_hex"])
    if "input" in record:
        return record["input"].encode()
    levels = int(record["label"].split()[0])
    return b"<plist><dict><key>a</key>" + b"<array>" * levels + b"</array>" * levels + b"</dict></plist>"


CORPUS = recorded("proplib_corpus.jsonl")


@pytest.mark.parametrize("flavour", ["library", "kernel"])
@pytest.mark.parametrize("record", CORPUS, ids=lambda record: f"{record['category']}: {record['label']}")
def test_corpus(record: dict[str, Any], flavour: str) -> None:
    prefix = "kernel_" if flavour == "kernel" else ""
    if record[f"{prefix}verdict"] == "reject":
        with pytest.raises(BadPlist) as caught:
            loads(input_of(record), top=record["top"], flavour=flavour)
        assert caught.value.offset is not None
        return
    obj = loads(input_of(record), top=record["top"], flavour=flavour)
    if "output_omitted" in record:
        assert len(dumps(obj)) == record["output_omitted"]
    elif "output_hex" in record:
        assert dumps(obj) == bytes.fromhex(record["output_hex"])
    elif "note" not in record:
        assert dumps(obj) == (record.get(f"{prefix}output") or record["output"]).encode()


@pytest.mark.parametrize("file", sorted((VECTORS / "transcripts").glob("*.jsonl")), ids=lambda file: file.stem)
def test_transcripts(file: Path) -> None:
    """The kernel's reader takes what the driver got beyond the parser (EIO), and replies come back as they are."""
    for record in recorded(f"transcripts/{file.name}"):
        if "elided" in record or "control" in record:
            continue
        text = bytes.fromhex(record["request_hex"]) if "request_hex" in record else record["request"].encode()
        if record.get("ioctl_errno") == 5 and record.get("cmd_errno") is None:
            with pytest.raises(BadPlist):
                loads(text, flavour="kernel", top="dictionary")
        else:
            loads(text, flavour="kernel", top="dictionary")
        if reply := record.get("reply"):
            assert dumps(loads(reply.encode(), flavour="kernel")) == reply.encode()


def test_numbers_are_echoed_as_the_kernel_read_them() -> None:
    """The driver echoes `cmd_data`, so a reply shows what the kernel's reader made of each number."""
    compared = 0
    for stored in recorded("transcripts/integers.jsonl"):
        if not stored["label"].startswith("start ") or stored["ioctl_errno"]:
            continue
        request: Any = loads(stored["request"].encode(), flavour="kernel")
        echoed: Any = loads(stored["reply"].encode(), flavour="kernel")
        assert dumps(request["cmd_data"]) == dumps(echoed["cmd_data"])
        compared += 1
    assert compared > 5


#: Text of one value, and what it is: None is refused. Rules of the C sources that the corpus shows no case of.
VALUES = {
    "<string>&lt;&gt;&amp;&apos;&quot;</string>": "<>&'\"",
    "<string>a]]>b</string>": "a]]>b",
    '<string>x</string a="b">': "x",
    '<string>x</string a "b">': "x",
    '<string>x</string ="b">': "x",
    '<string>x</string a="b" >': None,
    "<string>x</string\n>": None,
    "<string>x<!-- c --></string>": None,
    '<integer>5</integer version="1">': 5,
    "<integer>-0x10</integer>": -16,
    "<integer>-010</integer>": -8,
    "<integer>0x0000000000000000000000000f</integer>": Unsigned(15),
    "<integer> 0x10</integer>": 16,
    "<integer>\v7</integer>": 7,
    "<integer>7\v</integer>": None,
    "<integer>\v</integer>": None,
    "<integer>-</integer>": None,
    "<integer>- 1</integer>": None,
    "<integer>1_0</integer>": None,
    "<integer>18446744073709551615</integer>": Unsigned((1 << 64) - 1),
    "<integer>18446744073709551616</integer>": None,
    "<integer>0x10000000000000000</integer>": None,
    "<integer> -9223372036854775809</integer>": Unsigned((1 << 63) - 1),
    "<integer>" + "9" * 5000 + "</integer>": None,
    "<integer/>": None,
    "<data/>": None,
    '<data size="3">QUJD</data>': b"ABC",
    '<data size=" +0x3">QUJD</data>': b"ABC",
    '<data size="">QUJD</data>': None,
    '<data size="3 ">QUJD</data>': None,
    '<data size="-18446744073709551613">QUJD</data>': b"ABC",
    '<data size="-18446744073709551616"></data>': None,
    "<data>Q===</data>": None,
    "<data>QQ=\t=</data>": b"A",
    "<data>QUI= =</data>": None,
    "<data>=</data>": None,
    "<true/>": True,
    "<true></true>": None,
    '<array></array a="b">': [],
    "<array></integer>5</integer></array>": [5],
    "<array></string>x</string></array>": ["x"],
    "<array></true></array>": None,
    "<array></dict><key>a</key><true/></dict></array>": [{"a": True}],
    '<array></dict a="b"></dict></array>': None,
    '<dict><key a>b="c">k</key><true/></dict>': {"k": True},
    '<dict><key>k</key x="y"><true/></dict z="">': {"k": True},
    "<dict><key>a&amp;b</key><true/></dict>": {"a&b": True},
    "<dict><key>k</key></true></dict>": None,
    "<dict></key><true/></dict>": None,
    "<dict><!-- a --><!-- b --><key>k</key><!----><true/><!-- --></dict>": {"k": True},
}  # fmt: skip


@pytest.mark.parametrize("text", VALUES)
def test_value(text: str) -> None:
    whole = f"<plist><array>{text}</array></plist>".encode()
    expected = VALUES[text]
    if expected is None:
        with pytest.raises(BadPlist):
            loads(whole)
    else:
        assert dumps(loads(whole)) == dumps([expected])


#: Decimal text, and what the kernel's flavour makes of it where the library refuses or makes it unsigned.
CLAMPED = {
    "18446744073709551616": (1 << 63) - 1,
    "-99999999999999999999999": -(1 << 63),
    "0x10000000000000000": Unsigned((1 << 64) - 1),
    "-0x8000000000000001": -(1 << 63),
    " -9223372036854775809": -(1 << 63),
    "0" + "7" * 40: (1 << 63) - 1,
}


@pytest.mark.parametrize("text", CLAMPED)
def test_the_kernel_clamps(text: str) -> None:
    whole = f"<plist><array><integer>{text}</integer></array></plist>".encode()
    assert dumps(loads(whole, flavour="kernel")) == dumps([CLAMPED[text]])


@pytest.mark.parametrize(
    ("text", "top", "accepted"),
    [
        (b"<plist><string>x</string></plist>", None, True),
        (b"<plist><string>x</string></plist>", "dictionary", False),
        (b"<plist><array/></plist>", "dictionary", False),
        (b"<plist/>", None, False),
        (b"<plist></plist>", None, False),
        (b'<plist foo="1"><dict/></plist>', None, False),
        (b'<plist version "1"><dict/></plist version="2">', None, True),
        (b"<!DOCTYPE plistic><plist><dict/></plist>", None, True),
        (b"<plist><dict/></plist>\0<", None, True),
        (b"<plist><dict/>\0</plist>", None, False),
        (b"", None, False),
        (b"<plist><!-- c", None, False),
    ],
)
def test_outermost(text: bytes, top: Any, accepted: bool) -> None:
    if accepted:
        loads(text, top=top)
    else:
        with pytest.raises(BadPlist):
            loads(text, top=top)


@pytest.mark.parametrize(
    ("text", "offset", "says"),
    [
        ("<plist><dict><key>é</key><real>1</real></dict></plist>", 26, "<real> is no type"),
        ("<plist><dict><key>é</key><string>&nbsp;</string></dict></plist>", 34, "&amp;"),
        ("<plist><array><integer>1</integer>x</array></plist>", 34, "a value or </array>"),
        ("<plist><dict></dict>", 20, "the end of the text"),
    ],
)
def test_errors_say_where(text: str, offset: int, says: str) -> None:
    with pytest.raises(BadPlist, match=re.escape(says)) as caught:
        loads(text.encode())
    assert caught.value.offset == offset


def test_limits() -> None:
    nested = b"<plist>" + b"<array>" * 4 + b"</array>" * 4 + b"</plist>"
    assert loads(nested, max_depth=4) == [[[[]]]]
    with pytest.raises(BadPlist):
        loads(nested, max_depth=3)
    with pytest.raises(MessageTooLarge) as caught:
        loads(nested, max_size=len(nested) - 1)
    assert caught.value.offset == len(nested) - 1
    assert loads(nested, max_size=len(nested)) == [[[[]]]]
    too_deep = b"<plist>" + b"<array>" * (MAX_DEPTH + 1) + b"</array>" * (MAX_DEPTH + 1) + b"</plist>"
    with pytest.raises(BadPlist):
        loads(too_deep)


scalars = (
    st.text(st.characters(codec="utf-8") | st.sampled_from("<>&'\" \t\r\n")).filter(lambda text: "\0" not in text)
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.integers(0, (1 << 64) - 1).map(Unsigned)
    | st.booleans()
    | st.binary(min_size=1)
)
keys = st.text("abcdeé&<>", max_size=8)
objects = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=30,
)
rows = st.lists(
    st.fixed_dictionaries({"a": st.text("x<&", max_size=3), "b": st.integers(0, 99).map(Unsigned), "c": scalars})
)


@given(objects | rows)
def test_what_is_written_is_read(obj: Any) -> None:
    again = loads(dumps(obj))
    assert again == obj
    assert dumps(again) == dumps(obj)  # tells signed from unsigned and True from 1


def plain_loads(text: bytes, **options: Any) -> Any:
    """`loads` with its lanes closed."""
    with pytest.MonkeyPatch.context() as patch:
        closed = re.compile(r"(?!)").match
        patch.setattr(scanner, "member", closed)
        patch.setattr(scanner, "item", closed)
        patch.setattr(lanes, "member", closed)
        patch.setattr(scanner, "_USUAL_START", "<none>")
        patch.setattr(scanner, "_USUAL_END", "<none>")
        return loads(text, **options)


def outcome(read: Any, text: bytes, **options: Any) -> Any:
    try:
        return dumps(read(text, **options))
    except BadPlist as error:
        return error.offset, error.message


@given(
    objects | rows,
    st.lists(st.tuples(st.integers(0, 4000), st.sampled_from(["", " ", "<", ">", "/", "&", "0", "x", "=", "\0"]))),
    st.integers(0, 8),
    st.sampled_from(["library", "kernel"]),
)
@example([{"a": "x"}] * 9, [], 1, "library")
def test_lanes_read_as_the_plain_reader(obj: Any, edits: list[tuple[int, str]], depth: int, flavour: Any) -> None:
    text = dumps(obj).decode("utf-8", "surrogateescape")
    for place, insertion in edits:
        place %= len(text) + 1
        text = text[:place] + insertion + text[place + 1 :]
    raw = text.encode("utf-8", "surrogateescape")
    assert outcome(loads, raw, flavour=flavour) == outcome(plain_loads, raw, flavour=flavour)
    fast, plain = (outcome(read, raw, max_depth=depth) for read in (loads, plain_loads))
    assert isinstance(fast, bytes) == isinstance(plain, bytes)


def spelled(obj: Any, gap: Callable[[], str]) -> str:
    """The text of `obj` with gaps wherever the grammar has them."""
    if isinstance(obj, dict):
        pairs = [f"{gap()}<key>{escape(key)}</key>{gap()}{spelled(value, gap)}" for key, value in obj.items()]
        return f"<dict>{''.join(pairs)}{gap()}</dict>"
    if isinstance(obj, list):
        return f"<array>{''.join(gap() + spelled(value, gap) for value in obj)}{gap()}</array>"
    return re.sub(r"(?s).*<plist[^>]*>\n|\n</plist>\n$", "", dumps(obj).decode("utf-8", "surrogateescape"))


@given(objects | rows, st.data())
def test_blanks_and_comments_between_tags_change_nothing(obj: Any, data: st.DataObject) -> None:
    gaps = st.sampled_from(["", " ", "\n", "\t\r\n", "<!-- c -->", " <!-- -- > --><!---->\n"])
    text = f"<plist>{spelled(obj, lambda: data.draw(gaps))}</plist>"
    assert dumps(loads(text.encode("utf-8", "surrogateescape"))) == dumps(obj)


@pytest.mark.parametrize("options", [{"flavour": "userland"}, {"top": "string"}])
def test_options_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'(userland|string)'.* expected one of .*'(library|dictionary)'"):
        loads(b"<plist><dict/></plist>", **options)
