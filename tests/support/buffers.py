"""A Hypothesis strategy for binary messages: canonical ones, and such with bytes changed."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from dmproto import linux
from dmproto.commands import COMMANDS, Command, Payload
from dmproto.records import DeviceEntry, Header, Message, TargetMessage, TargetSpec, TargetVersion

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.binary(max_size=12).map(
    lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape")
)
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
NAMES = TEXT.filter(bool)
SPECS = st.builds(
    TargetSpec,
    start=U64,
    length=U64,
    type=st.sampled_from(["linear", "x" * 16, ""]),
    params=TEXT,
    status=st.integers(-9, 9),
)
PAYLOADS = {
    Payload.NONE: st.none(),
    Payload.TARGET_SPECS: st.lists(SPECS, min_size=1, max_size=4).map(tuple),
    Payload.NAME_LIST: st.lists(
        st.builds(
            DeviceEntry,
            name=NAMES,
            dev=st.tuples(st.sampled_from([253, 7]), st.integers(0, 2**20 - 1)),
            event_nr=U32,
            uuid=st.none() | TEXT,
        ),
        max_size=4,
    ).map(tuple),
    Payload.TARGET_VERSIONS: st.lists(
        st.builds(TargetVersion, name=NAMES, version=st.tuples(U32, U32, U32)), max_size=4
    ).map(tuple),
    Payload.TARGET_DEPS: st.lists(U64, max_size=4).map(tuple),
    Payload.TARGET_MSG: st.builds(TargetMessage, sector=U64, message=TEXT),
    Payload.TEXT: TEXT,
}


@st.composite
def buffers(draw: Callable[..., object], changes: int = 3) -> tuple[Command, bool, bytes]:
    """A command, whether it is a reply, and a buffer: canonical, or with bytes changed."""
    command, reply = draw(st.sampled_from(COMMANDS)), draw(st.booleans())
    payload = draw(PAYLOADS[command.gives if reply else command.takes])
    header = draw(
        st.builds(
            Header,
            version=st.sampled_from([(4, 0, 0), (4, 16, 0), (4, 47, 0), (0, 0, 0)]),
            flags=U32,
            open_count=st.integers(-(2**31), 2**31 - 1),
            event_nr=U32,
            padding=st.sampled_from([0, 1]),
            dev=st.sampled_from([0, 0xFD00, 0xFD07, 0x10FD2C, 0x701]) | U64,
            name=TEXT,
            uuid=TEXT,
        )
    )
    data = bytearray(linux.build(Message(command=command, reply=reply, header=header, payload=payload)))
    for offset, value in draw(
        st.dictionaries(st.integers(0, len(data) - 1), st.integers(0, 255), max_size=changes)
    ).items():
        data[offset] = value
    return command, reply, bytes(data)
