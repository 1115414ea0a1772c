"""The short way of DEV_STATUS says what the long way says."""

from __future__ import annotations

from struct import pack_into

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.linux_client import LinuxClient

from dmproto.commands import BY_NAME
from dmproto.records import TargetSpec
from dmproto.wire import DATA_OFFSET, MAX_DATA_SIZE
from dmserver.control.linux_call import quick_status

DEV_STATUS = BY_NAME["DEV_STATUS"].ioctl
TABLE = (TargetSpec(start=0, length=8, type="zero"),)
NAMES = ["plain", "live", "named", "loaded", "suspended", "x" * 127]


@pytest.fixture(scope="module")
def client() -> LinuxClient:
    """One device in each state that shows."""
    client = LinuxClient()
    client.ok("DEV_CREATE", name="plain")
    client.device("live", TABLE)
    client.ok("DEV_CREATE", name="named", uuid="u" * 40)
    client.ok("DEV_CREATE", name="loaded")
    client.ok("TABLE_LOAD", TABLE, name="loaded", flags=1)
    client.device("suspended", TABLE)
    client.ok("TABLE_LOAD", (*TABLE, TargetSpec(start=8, length=8, type="zero")), name="suspended")
    client.ok("DEV_SUSPEND", name="suspended", flags=2)
    client.ok("DEV_CREATE", name="x" * 127)
    for _ in range(3):
        client.mapper.devices[1].open()
    client.mapper.devices[1].deferred_remove = True
    client.mapper.devices[1].event_nr = 77
    client.mapper.devices[1].internal_suspends = 1
    return client


numbers = st.integers(0, 0xFFFFFFFF)
texts = st.sampled_from([b"", *map(str.encode, NAMES), b"absent", b"x" * 128, b"u" * 40]) | st.binary(max_size=128)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Mostly what a client sends, with anything in the place of anything."""
    buffer = bytearray(draw(st.sampled_from([bytes(312), b"\xa5" * 312, bytes(range(1, 256)) * 2])))
    for at, text in ((48, draw(texts)), (176, draw(st.just(b"") | texts))):
        buffer[at : at + len(text) + 1] = text + b"\0"
    size = draw(st.sampled_from([312, 305, 304, 0, MAX_DATA_SIZE, MAX_DATA_SIZE + 1, 16384]) | numbers)
    flags = draw(st.sampled_from([0, 1 << 12, 1 << 15, 0xFFFF7FFF]) | numbers)
    pack_into("<3I7I", buffer, 0, 4, draw(st.integers(0, 48)), 0, size, *(draw(numbers) for _ in range(3)), flags, 5, 6)
    pack_into("<Q", buffer, 40, draw(st.just(0) | st.just(253 << 8) | st.integers(0, 2**64 - 1)))
    return bytes(buffer)


@given(request=requests())
@example(request=bytes(DATA_OFFSET))
@example(request=bytes(DATA_OFFSET - 1))
def test_quick_status_writes_what_the_long_way_writes(client: LinuxClient, request: bytes) -> None:
    def answers() -> list[tuple[int, bytes]]:
        got: list[tuple[int, bytes]] = []
        client.control.ioctl(client.session, DEV_STATUS, request, lambda *answer: got.append(answer))
        return got

    short = answers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.control, "quick", lambda session, number, buffer: None)
        assert short == answers()


@pytest.mark.parametrize("name", NAMES)
def test_every_state_takes_the_short_way(client: LinuxClient, name: str) -> None:
    request = bytearray(312)
    pack_into(f"<4I32x{len(name)}s", request, 0, 4, 0, 0, 312, name.encode())
    assert quick_status(client.mapper, bytes(request)) is not None
