"""The socket: three forms, order, limits, bad input, who may come in."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from functools import partial

import pytest
from support.serving import Served, served

from dmproto import linux, proplib
from dmproto.commands import BY_NAME
from dmproto.records import Header, Message
from dmproto.stream import binary_request
from dmserver.client import Client, CommandError
from dmserver.server import HIGH_WATER, READER_LIMIT, Policy


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as running:
        running.host.add_pdev("/dev/ram0=ram:1M")
        yield running


def plist(command: str, **keys: object) -> bytes:
    return proplib.dumps({"command": command, "version": [4, 0, 0], **keys})


def jsoned(command: str, **keys: object) -> bytes:
    return json.dumps({"command": command, "version": [4, 0, 0], **keys}).encode()


def binary(word: str, **fields: object) -> bytes:
    header = Header(version=(4, 0, 0), **fields)
    buffer = linux.build(Message(command=BY_NAME[word], header=header, size=16384))
    return binary_request(BY_NAME[word].ioctl, buffer)


def plists(data: bytes) -> list[dict[str, object]]:
    texts = data.split(b"</plist>\n")
    assert texts.pop() == b""
    replies = [proplib.loads(text + b"</plist>\n") for text in texts]
    return [reply for reply in replies if isinstance(reply, dict)]


def test_pipelined_requests_of_all_forms_are_answered_in_order(server: Served) -> None:
    requests = [plist("create", name="a"), b" \n\0", jsoned("create", name="b"), binary("DEV_STATUS", name="b")]
    reply = server.exchange(b"".join(requests * 2))
    first = reply.index(b"</plist>\n") + 9
    assert plists(reply[:first])[0]["name"] == "a"
    end = reply.index(b"\n", first) + 1
    assert json.loads(reply[first:end])["minor"] == 1
    mark, result, size = struct.unpack_from("<4siI", reply, end)
    assert (mark, result) == (b"DMIO", 0)
    assert linux.parse_header(reply[end + 12 : end + 12 + size]).dev == 253 << 8 | 1
    rest = reply[end + 12 + size :]
    assert plists(rest[: rest.index(b"</plist>\n") + 9])[0]["errno"] == errno.EEXIST


def test_any_split_of_the_bytes_gives_the_same_replies(server: Served) -> None:
    request = plist("names") + jsoned("names") + binary("LIST_DEVICES")
    whole = server.exchange(request)
    with server.connect() as connection:
        for byte in request:
            connection.sendall(bytes([byte]))
        connection.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: connection.recv(1 << 16), b"")) == whole


@pytest.mark.parametrize("word", ["VERSION", "LIST_DEVICES", "DEV_STATUS", "DEV_CREATE", "DEV_WAIT", "TABLE_STATUS"])
def test_an_ioctl_alone_is_answered_like_one_among_others(server: Served, word: str) -> None:
    request = binary(word, name="" if word == "LIST_DEVICES" else "a")
    server.exchange(plist("create", name="a"))
    if word == "DEV_WAIT":
        server.host.mapper.devices[0].event()
    with server.connect() as connection:
        connection.sendall(request)
        alone = connection.recv(1 << 16)
    assert server.exchange(b"\0" + request) == alone


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"<plist><dict></plist>", errno.EIO),
        (b"<plist><array/></plist>", errno.EIO),
        (b"<plist>nonsense</plist>", errno.EIO),
        (b"<plist><dict/></plist>", errno.EIO),
        (b"<plist><dict><key>command</key><string>x</string></dict></plist>", errno.EIO),
    ],
)
def test_a_malformed_plist_is_answered_and_the_connection_goes_on(server: Served, data: bytes, number: int) -> None:
    wrong, right = plists(server.exchange(data + plist("names")))
    assert wrong["errno"] == number
    assert isinstance(wrong["error"], str)
    assert right["cmd_data"] == []


def test_malformed_json_is_answered_in_json(server: Served) -> None:
    wrong, right = server.exchange(b'{"command" "names"}' + jsoned("names")).splitlines()
    assert json.loads(wrong)["errno"] == errno.EIO
    assert json.loads(right)["cmd_data"] == []


@pytest.mark.parametrize("data", [b"nonsense", b"\xff", b"DMIX" + bytes(8), b"]"])
def test_what_is_no_message_is_answered_once_and_the_connection_closes(server: Served, data: bytes) -> None:
    (reply,) = plists(server.exchange(data + plist("names")))
    assert reply["errno"] == errno.EINVAL


def test_a_stream_that_ends_within_a_message_is_answered(server: Served) -> None:
    (reply,) = plists(server.exchange(plist("names")[:-20]))
    assert reply["errno"] == errno.EIO


def test_a_message_too_large_is_answered_and_the_connection_goes_on() -> None:
    with served("netbsd", limit=131072, binary_limit=1000) as server:
        pad = "x" * 131072
        fits = plist("names", pad="x" * (131071 - len(plist("names", pad="x")) + 1))
        assert len(fits) == 131071
        replies = plists(server.exchange(plist("names", pad=pad) + fits))
        assert [reply.get("errno") for reply in replies] == [errno.E2BIG, None]
        reply = server.exchange(binary_request(0xC138FD00, bytes(1000)) + plist("names"))
        assert reply.startswith(struct.pack("<4siI", b"DMIO", -errno.E2BIG, 0))
        assert len(plists(reply[12:])) == 1


def test_a_waiting_command_holds_up_its_own_connection_only(server: Served) -> None:
    with Client(server.path) as client, server.connect() as waiting:
        client.create("a")
        client.reload("a", [(0, 8, "linear", "/dev/ram0 0")])
        client.resume("a")
        waiting.sendall(plist("waitevent", name="a", event_nr=0) + plist("names"))
        assert client.names() == [("a", 0)]
        server.loop.call_soon_threadsafe(server.host.mapper.devices[0].event)
        data = b""
        while data.count(b"</plist>") < 2:
            data += waiting.recv(1 << 16)
        event, names = plists(data)
        assert event["event_nr"] == 1
        assert names["cmd_data"] == [{"name": "a", "dev": 0}]


def test_a_waiting_command_is_given_up_when_the_peer_goes(server: Served) -> None:
    with Client(server.path) as client:
        client.create("a")
        with server.connect() as waiting:
            waiting.sendall(plist("waitevent", name="a", event_nr=0))
            assert client.names() == [("a", 0)]
        client.remove("a")
        assert client.names() == []


def test_a_peer_that_does_not_read_is_not_read_from(server: Served) -> None:
    with Client(server.path) as client, server.connect() as stuck:
        for number in range(200):
            client.create(f"a-rather-long-name-of-a-device-{number}")
        stuck.setblocking(False)
        assert _send_until_full(stuck, plist("names") * 100) < 64 * HIGH_WATER
        assert len(client.names()) == 200
        stuck.settimeout(30)
        (first, *_) = plists(_one_plist(stuck))
        assert len(first["cmd_data"]) == 200


def test_requests_that_waited_for_the_peer_to_read_are_answered(server: Served) -> None:
    """Replies far beyond what may wait, to requests that came in one read."""
    with Client(server.path) as client:
        for number in range(100):
            client.create(f"a-rather-long-name-of-a-device-{number}")
    reply = server.exchange(jsoned("names") * 600)
    assert len(reply) > 2 * HIGH_WATER
    assert reply.count(b"\n") == 600


def _send_until_full(connection: socket.socket, data: bytes) -> int:
    sent = 0
    while sent < 64 * HIGH_WATER:
        try:
            sent += connection.send(data)
        except BlockingIOError:
            break
    return sent


def _one_plist(connection: socket.socket) -> bytes:
    data = b""
    while b"</plist>\n" not in data:
        data += connection.recv(1 << 16)
    return data[: data.index(b"</plist>\n") + 9]


def test_a_stranger_is_not_let_in() -> None:
    with served(policy=Policy(admins={os.geteuid() + 1})) as server, server.connect() as connection:
        assert connection.recv(100) == b""


def test_a_reader_may_look_but_not_touch() -> None:
    with served(policy=Policy(admins=(), readers={os.geteuid()})) as server:
        with Client(server.path) as client:
            assert client.names() == []
            with pytest.raises(CommandError) as refused:
                client.create("a")
            assert refused.value.errno == errno.EPERM
        assert server.exchange(binary("VERSION")) == struct.pack("<4siI", b"DMIO", -errno.EACCES, 0)


def test_a_reader_may_not_send_what_takes_long_to_read() -> None:
    with served(policy=Policy(admins=(), readers={os.geteuid()})) as server:
        wrong, right = plists(server.exchange(plist("names", pad="x" * READER_LIMIT) + plist("names")))
        assert (wrong["errno"], right["cmd_data"]) == (errno.E2BIG, [])
        reply = server.exchange(binary_request(0xC138FD00, bytes(READER_LIMIT)))
        assert reply == struct.pack("<4siI", b"DMIO", -errno.E2BIG, 0)


def test_long_texts_are_answered_in_order(server: Served) -> None:
    pad = "x" * (1 << 18)
    reply = server.exchange(plist("names", pad=pad) + jsoned("names") + jsoned("names", pad=pad) + plist("names"))
    end = reply.index(b"</plist>\n") + 9
    (first,) = plists(reply[:end])
    assert (first["pad"], first["cmd_data"]) == (pad, [])
    short, long, rest = reply[end:].split(b"\n", 2)
    assert (json.loads(short)["cmd_data"], json.loads(long)["pad"]) == ([], pad)
    assert plists(rest)[0]["cmd_data"] == []


def test_a_long_text_that_is_malformed_is_answered(server: Served) -> None:
    wrong, right = plists(server.exchange(b"<plist>" + b"<array>" * (1 << 16) + b"</plist>" + plist("names")))
    assert (wrong["errno"], right["cmd_data"]) == (errno.EIO, [])


def test_a_long_text_holds_up_its_own_connection_only(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr("dmserver.server.encode", lambda *_, **__: (go.wait(30) and b"told") or b"")
    with server.connect() as slow, server.connect() as quick:
        slow.sendall(plist("names", pad="x" * (1 << 18)))
        quick.sendall(binary("VERSION"))
        assert quick.recv(100).startswith(b"DMIO")
        go.set()
        assert slow.recv(100) == b"told"


def test_what_fails_in_the_thread_ends_its_connection_only(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("dmserver.server.decode", fail)
    assert server.exchange(plist("names", pad="x" * (1 << 18))) == b""
    monkeypatch.undo()
    assert len(plists(server.exchange(plist("names", pad="x" * (1 << 18))))) == 1


def test_a_peer_that_goes_while_its_text_is_read_is_forgotten(server: Served) -> None:
    for _ in range(20):
        with server.connect() as gone:
            gone.sendall(jsoned("create", name="a", pad="x" * (1 << 18)))
    with Client(server.path) as client:
        assert client.names() in ([], [("a", 0)])


def test_many_small_messages_are_all_answered(server: Served) -> None:
    assert server.exchange(b"{}" * 5000 + jsoned("names")).count(b"\n") == 5001


def test_peers_that_go_while_they_wait_leave_nothing_behind(server: Served) -> None:
    with Client(server.path) as client:
        client.create("a")
        waiting = [server.connect() for _ in range(100)]
        for peer in waiting:
            peer.sendall(plist("waitevent", name="a", event_nr=0) * 3)
        for peer in waiting:
            peer.close()
        while server.host.linux.waits:
            assert client.names() == [("a", 0)]
        client.remove("a")


def test_a_peer_that_has_sent_its_last_byte_may_still_wait(server: Served) -> None:
    with Client(server.path) as client, server.connect() as waiting:
        client.create("a")
        waiting.sendall(plist("waitevent", name="a", event_nr=0) * 2)
        waiting.shutdown(socket.SHUT_WR)
        while not server.host.linux.waits:
            assert client.names() == [("a", 0)]
        client.remove("a")
        replies = plists(b"".join(iter(lambda: waiting.recv(1 << 16), b"")))
        assert [reply.get("errno") for reply in replies] == [None, errno.ENXIO]


def test_many_waits_behind_each_other_end_with_their_device(server: Served) -> None:
    with Client(server.path) as client:
        client.create("a")
        waiting = [server.connect() for _ in range(200)]
        for peer in waiting:
            peer.sendall(binary("DEV_WAIT", name="a") * 2)
            peer.shutdown(socket.SHUT_WR)
        while len(server.host.linux.waits.get(server.host.mapper.devices[0], ())) < len(waiting):
            assert client.names() == [("a", 0)]
        client.remove("a")
        for peer in waiting:
            reply = b"".join(iter(partial(peer.recv, 1 << 16), b""))
            assert reply.startswith(struct.pack("<4si", b"DMIO", 0))
            assert reply.endswith(struct.pack("<4siI", b"DMIO", -errno.ENXIO, 12) + reply[-12:])
            peer.close()


def test_the_log_never_holds_parameters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    key = "000102030405060708090a0b0c0d0e0f"
    entry = {"start": 0, "length": 8, "type": "linear", "params": f"x{key}"}
    with served() as server, Client(server.path) as client:
        client.create("secret")
        with pytest.raises(CommandError):
            client.command("reload", name="secret", cmd_data=[entry])
        with pytest.raises(CommandError):
            client.message("secret", f"key set {key}")
    assert "secret" in caplog.text
    assert key not in caplog.text


def test_the_server_survives_a_handler_that_fails(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(server.host.linux, "ioctl", fail)
    assert server.exchange(binary("LIST_DEVICES")) == b""
    assert len(plists(server.exchange(plist("names")))) == 1


def test_a_command_whose_modules_cannot_be_read_now_fails(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "module.py")

    monkeypatch.setattr(server.host.linux, "ioctl", fail)
    monkeypatch.setattr(server.host, "dictionary", fail)
    failed = b"DMIO" + (-errno.EMFILE).to_bytes(4, "little", signed=True) + bytes(4)
    assert server.exchange(binary("LIST_DEVICES")) == failed
    assert server.exchange(binary("LIST_DEVICES") * 2) == failed * 2
    told = plists(server.exchange(plist("names")))
    assert told == [{"errno": errno.EMFILE, "error": "module.py: Too many open files"}]
    assert b'"errno":24' in server.exchange(jsoned("names")).replace(b" ", b"")
