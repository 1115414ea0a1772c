"""Framing: what each form looks like, what is refused and how, and that the split of the bytes never matters."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmproto.stream import (
    CLOSED,
    NEED_DATA,
    BinaryReply,
    BinaryRequest,
    JsonMessage,
    Malformed,
    PlistMessage,
    ReplyStream,
    RequestStream,
    binary_reply,
    binary_request,
)

PLIST = b"<?xml?><plist><dict/></plist>"


def events(chunks: list[bytes], stream: Any = None, **limits: int) -> list[Any]:
    stream = stream or RequestStream(**limits)
    seen: list[Any] = []
    for chunk in chunks:
        if chunk:
            stream.receive_data(chunk)
        while (event := stream.next_event()) not in (NEED_DATA, CLOSED):
            seen.append(event)
    stream.receive_data(b"")
    while (event := stream.next_event()) is not CLOSED:
        assert event is not NEED_DATA
        seen.append(event)
    return seen


def plain(seen: list[Any]) -> list[Any]:
    """Events that compare: exceptions by what they say."""
    return [
        (type(event.error), str(event.error), event.form, event.fatal) if isinstance(event, Malformed) else event
        for event in seen
    ]


MESSAGES = {
    PLIST: PlistMessage(PLIST),
    b"<anything\0</plist>": PlistMessage(b"<anything\0</plist>"),
    b"<plist><!-- </plist>": PlistMessage(b"<plist><!-- </plist>"),
    b"{}": JsonMessage(b"{}"),
    b'{"a": {"}{": "\\"}"}, "b": [{}]}': JsonMessage(b'{"a": {"}{": "\\"}"}, "b": [{}]}'),
    b'{"\\\\": {}}': JsonMessage(b'{"\\\\": {}}'),
    b"DMIO\x01\0\0\xc0\x03\0\0\0\0<{": BinaryRequest(0xC0000001, b"\0<{"),
    b"DMIO\0\0\0\0\0\0\0\0": BinaryRequest(0, b""),
}


@pytest.mark.parametrize("text", MESSAGES)
def test_one_message(text: bytes) -> None:
    assert events([text]) == [MESSAGES[text]]


def test_pipelined_with_gaps() -> None:
    whole = b"\n \0\t\r".join([b"", *MESSAGES, b""])
    assert events([whole]) == list(MESSAGES.values())


def test_nothing_yet_and_nothing_more() -> None:
    stream = RequestStream()
    assert stream.next_event() is NEED_DATA
    stream.receive_data(PLIST[:-1])
    assert stream.next_event() is NEED_DATA
    stream.receive_data(PLIST[-1:] + b"\n\0")
    assert stream.next_event() == PlistMessage(PLIST)
    assert stream.next_event() is NEED_DATA
    stream.receive_data(b"")
    assert stream.next_event() is CLOSED


@pytest.mark.parametrize(
    ("text", "number", "form"),
    [
        (b"nonsense", errno.EINVAL, "plist"),
        (b"[1]", errno.EINVAL, "plist"),
        (b"DMIX", errno.EINVAL, "plist"),
        (b"<plist><dict/>", errno.EIO, "plist"),
        (b'{"a": "}', errno.EIO, "json"),
        (b"DMIO\0", errno.EINVAL, "binary"),
        (b"DMIO\0\0\0\0\x02\0\0\0x", errno.EINVAL, "binary"),
    ],
)
def test_fatal(text: bytes, number: int, form: str) -> None:
    *before, last = events([PLIST, text])
    assert before == [PlistMessage(PLIST)]
    assert isinstance(last, Malformed)
    assert (last.error.errno, last.form, last.fatal) == (number, form, True)


def test_nothing_is_read_behind_a_fatal_event() -> None:
    stream = RequestStream()
    stream.receive_data(b"x" + PLIST)
    assert isinstance(stream.next_event(), Malformed)
    stream.receive_data(PLIST)
    assert stream.next_event() is CLOSED


def padded(size: int) -> bytes:
    return b"<plist>" + b"x" * (size - len(b"<plist></plist>")) + b"</plist>"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_too_large_is_skipped(step: int) -> None:
    """131071 bytes with the newline behind are taken, 131072 are refused; the next message is found."""
    limit = 131072 if step > 1 else 200
    whole = b"\n".join([padded(limit - 2), padded(limit - 1), padded(3 * limit), PLIST, b""])
    taken, *refused, last = events([whole[at : at + step] for at in range(0, len(whole), step)], plist_limit=limit)
    assert taken == PlistMessage(padded(limit - 2))
    assert [(event.error.errno, event.form, event.fatal) for event in refused] == [(errno.E2BIG, "plist", False)] * 2
    assert last == PlistMessage(PLIST)


def test_too_large_json_and_binary_are_skipped() -> None:
    whole = b'{"a": "' + b'}\\"' * 100 + b'"}' + binary_request(5, b"D" * 100) + binary_request(6, b"ok") + b"{}"
    refused, binary, *rest = events([whole], plist_limit=100, binary_limit=100)
    assert (refused.form, refused.error.errno, refused.fatal) == ("json", errno.E2BIG, False)
    assert (binary.form, binary.error.errno, binary.fatal) == ("binary", errno.E2BIG, False)
    assert rest == [BinaryRequest(6, b"ok"), JsonMessage(b"{}")]


@pytest.mark.parametrize("chunk", [b"<" + b"x" * 999, b'{"' + b"\\}" * 499, b"DMIO\0\0\0\0\xff\xff\xff\xff"])
def test_skipping_keeps_nothing(chunk: bytes) -> None:
    stream = RequestStream(plist_limit=2000, binary_limit=2000)
    stream.receive_data(chunk)
    for _ in range(20):
        assert stream.next_event() is NEED_DATA
        stream.receive_data(b"y" * 1000)
    assert stream.next_event() is NEED_DATA
    assert len(stream._buffer) < 2000 + 1000


def test_replies() -> None:
    whole = binary_reply(-errno.ENXIO, b"") + binary_reply(0, b"\4\0\0\0") + PLIST + b"\n{}\n"
    expected = [BinaryReply(-errno.ENXIO, b""), BinaryReply(0, b"\4\0\0\0"), PlistMessage(PLIST), JsonMessage(b"{}")]
    assert events([whole], ReplyStream()) == expected
    assert events([bytes([byte]) for byte in whole], ReplyStream()) == expected


messages = st.one_of(
    st.sampled_from(list(MESSAGES)),
    st.binary(max_size=40).map(lambda text: b"<" + text + b"</plist>"),
    st.builds(binary_request, st.integers(0, (1 << 32) - 1), st.binary(max_size=40)),
    st.lists(st.sampled_from(list('{}"\\ax'))).map(lambda text: b"{" + "".join(text).encode()),
    st.binary(max_size=12),
)


@given(st.lists(messages), st.lists(st.integers(0, 300)), st.integers(5, 60))
def test_any_split_gives_the_same_events(texts: list[bytes], cuts: list[int], limit: int) -> None:
    whole = b"".join(texts)
    marks = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    chunks = [whole[start:end] for start, end in pairwise(marks)]
    limits = {"plist_limit": limit, "binary_limit": limit}
    expected = plain(events([whole], **limits))
    assert plain(events(chunks, **limits)) == expected
    assert plain(events([bytes([byte]) for byte in whole], **limits)) == expected


@given(before=st.sampled_from([b"", PLIST[:9], b"DM", b"{", b"}", b" ", b"DMIO\1\0\0\0\xff\0\0\0"]), data=st.data())
def test_a_lone_request_is_what_the_stream_would_say(before: bytes, data: st.DataObject) -> None:
    whole = binary_request(data.draw(st.integers(0, 0xFFFFFFFF)), data.draw(st.binary(max_size=30)))
    damaged = whole[: data.draw(st.integers(0, len(whole)))] + data.draw(st.binary(max_size=3))
    received = data.draw(st.sampled_from([whole, damaged, whole + whole, b"\0" + whole]))
    stream, other = RequestStream(binary_limit=25), RequestStream(binary_limit=25)
    for each in (stream, other):
        each.receive_data(before or b"\0")
        each.next_event()
    lone = stream.lone_request(received)
    if lone is None:
        assert plain(events([received], stream)) == plain(events([received], other))
        assert (received, before.strip()) != (whole, b"") or len(whole) >= 25 + 12
    else:
        other.receive_data(received)
        assert other.next_event() == BinaryRequest(*lone)
        assert other.next_event() is NEED_DATA
