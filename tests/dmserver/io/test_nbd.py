"""The NBD server, by a client of our own that may break rules."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nbd_client import Answer, NbdClient, counted, request
from support.stacks import Line, Stack, pattern

from dmserver.io.disk import Disk
from dmserver.io.nbd import NbdServer
from dmserver.io.nbd_options import receive
from dmserver.io.nbd_proto import MAX_BLOCK, MAX_OPTION, Command, CommandFlag, ExportFlag, Option, Reply
from dmserver.model.dm_dev import DmDev

SECTORS = 8192


class Served:
    """A server with `lin`, linear on the file `disk`."""

    def __init__(self, folder: str) -> None:
        self.stack = Stack()
        self.file = Path(folder, "disk")
        self.file.write_bytes(pattern(1, 0, SECTORS))
        self.disk: Disk = self.stack.file(str(self.file))
        self.lin: DmDev = self.stack.device("lin", (0, SECTORS, "linear", "7:0 0"))
        self.server = NbdServer(self.stack.mapper)
        self.path = self.server.start(f"{folder}/nbd")

    def client(self, name: str = "lin", *, structured: bool = False) -> NbdClient:
        client = NbdClient(self.path)
        if structured:
            client.structure()
            client.allocation(name)
        assert client.go(name) == Reply.ACK
        return client

    def closed(self, dev: DmDev) -> bool:
        """Whether all openers leave; waits for the server to notice that they did."""
        with NbdClient(self.path) as probe:
            for _ in range(10000):
                probe.option(Option.LIST)
                if not dev.openers:
                    return True
        return False


@pytest.fixture
def served() -> Iterator[Served]:
    folder = tempfile.mkdtemp(prefix="dm")
    served = Served(folder)
    yield served
    served.server.close()
    served.stack.close()
    shutil.rmtree(folder)


# -- negotiation --------------------------------------------------------------------------------------------


def test_list_and_info(served: Served) -> None:
    served.stack.mapper.create("empty")
    served.stack.device("zero", (0, 8, "zero", ""))
    with NbdClient(served.path) as client:
        assert client.hello == (0x4E42444D41474943, 0x49484156454F5054, 3)
        replies = client.option(Option.LIST)
        assert replies == [(Reply.SERVER, counted("lin")), (Reply.SERVER, counted("zero")), (Reply.ACK, b"")]
        assert client.go("lin", Option.INFO) == Reply.ACK
        assert client.size == SECTORS * 512
        assert client.flags & ExportFlag.CAN_MULTI_CONN
        assert not client.flags & ExportFlag.READ_ONLY
        assert served.lin.openers == 0, "INFO is no open"
        assert client.option(Option.ABORT) == [(Reply.ACK, b"")]
        assert client.sock.recv(1) == b""


@pytest.mark.parametrize("name", ["nope", "", "empty"])
def test_device_without_live_table_is_refused(served: Served, name: str) -> None:
    served.stack.mapper.create("empty")
    with NbdClient(served.path) as client:
        assert client.go(name) == Reply.ERR_UNKNOWN
        assert client.go("lin") == Reply.ACK, "the haggling went on"


def test_live_connection_is_one_open(served: Served) -> None:
    with served.client(), served.client():
        assert served.lin.openers == 2
    assert served.closed(served.lin)


def test_export_name_with_and_without_zeroes(served: Served) -> None:
    for flags, zeroes in ((3, 0), (1, 124)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(served.path)
            receive(sock, 18)
            sock.sendall(struct.pack(">I", flags) + struct.pack(">QII", 0x49484156454F5054, 1, 3) + b"lin")
            size, _ = struct.unpack(">QH", receive(sock, 10))
            assert size == SECTORS * 512
            assert receive(sock, zeroes) == bytes(zeroes)
            sock.sendall(request(Command.READ, 7, 512, 512))
            assert receive(sock, 16 + 512)[16:] == pattern(1, 1, 1)


@pytest.mark.parametrize(
    ("option", "data", "answer"),
    [
        (5, b"", Reply.ERR_UNSUP),
        (99, b"abc", Reply.ERR_UNSUP),
        (Option.LIST, b"x", Reply.ERR_INVALID),
        (Option.STRUCTURED_REPLY, b"x", Reply.ERR_INVALID),
        (Option.GO, b"", Reply.ERR_INVALID),
        (Option.GO, counted("lin") + b"\0\2\0\0", Reply.ERR_INVALID),
        (Option.INFO, b"\xff\xff\xff\xff", Reply.ERR_INVALID),
        (Option.SET_META_CONTEXT, counted("lin") + b"\0\0\0\1" + counted("base:allocation"), Reply.ERR_INVALID),
        (Option.LIST_META_CONTEXT, counted("lin") + b"\0\0\xff\xff", Reply.ERR_INVALID),
    ],
)
def test_option_that_is_refused(served: Served, option: int, data: bytes, answer: Reply) -> None:
    with NbdClient(served.path) as client:
        assert client.option(option, data)[-1][0] == answer
        assert client.go("lin") == Reply.ACK


def test_meta_contexts(served: Served) -> None:
    with NbdClient(served.path) as client:
        client.structure()
        listed = client.option(Option.LIST_META_CONTEXT, counted("lin") + b"\0\0\0\0")
        assert listed == [(Reply.META_CONTEXT, b"\0\0\0\0base:allocation"), (Reply.ACK, b"")]
        assert client.allocation("lin") == [(Reply.META_CONTEXT, b"\0\0\0\1base:allocation"), (Reply.ACK, b"")]
        other = counted("lin") + struct.pack(">I", 1) + counted("qemu:dirty")
        assert client.option(Option.SET_META_CONTEXT, other) == [(Reply.ACK, b"")]
        assert client.allocation("nope")[-1][0] == Reply.ERR_UNKNOWN


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\0\0\0\0" + b"x" * 16,
        b"\0\0\0\3" + b"y" * 64,
        b"\0\0\0\3" + struct.pack(">QII", 0x49484156454F5054, 3, MAX_OPTION + 1),
        b"\0\0\0\3" + struct.pack(">QII", 0x49484156454F5054, 1, 4) + b"nope",
    ],
)
def test_garbage_ends_the_connection_only(served: Served, garbage: bytes) -> None:
    with served.client() as good, socket.socket(socket.AF_UNIX) as bad:
        bad.connect(served.path)
        receive(bad, 18)
        bad.sendall(garbage)
        with pytest.raises((EOFError, ConnectionError)):
            receive(bad, 1)
        assert good.ask(Command.READ, 0, 512).data == pattern(1, 0, 1)


# -- transmission -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("length", [512, 4096, 65536, 66048, 1 << 20])
def test_read_and_write(served: Served, structured: bool, length: int) -> None:
    with served.client(structured=structured) as client:
        assert client.ask(Command.READ, 1024, length) == Answer(0x1234, 0, pattern(1, 2, length // 512))
        data = pattern(9, 0, length // 512)
        assert client.ask(Command.WRITE, 512, data=data, flags=CommandFlag.FUA) == Answer(0x1234)
        assert client.ask(Command.READ, 512, length).data == data
        assert client.ask(Command.FLUSH) == Answer(0x1234)
    assert served.file.read_bytes()[512 : 512 + length] == data


def test_requests_of_one_packet(served: Served) -> None:
    """Reads and writes mixed, more than a buffer of replies holds, one write larger than the receive buffer."""
    with served.client(structured=True) as client:
        writes = {5: pattern(5, 0, 8), 6: pattern(6, 0, 1024), 7: pattern(7, 0, 128)}
        packet = b""
        for cookie, data in writes.items():
            packet += request(Command.WRITE, cookie, (cookie - 5) << 19, len(data), data)
        for number in range(100):
            packet += request(Command.READ, 100 + number, 2 << 20 | number * 512, 8192)
        client.sock.sendall(packet)
        answers = {answer.cookie: answer for answer in (client.receive() for _ in range(103))}
        assert all(not answer.error for answer in answers.values())
        for number in range(100):
            assert answers[100 + number].data == pattern(1, 4096 + number, 16)
    content = served.file.read_bytes()
    for cookie, data in writes.items():
        assert content[(cookie - 5) << 19 :][: len(data)] == data


#: The disk's first half, a formula, what is no disk, what fails; and what the file has lost.
MIXED: list[Line] = [
    (0, 4096, "linear", "7:0 0"),
    (4096, 2048, "striped", "2 1 7:0 4096 7:0 5120"),
    (6144, 64, "zero", ""),
    (6208, 64, "error", ""),
    (6272, 64, "linear", "7:0 8128"),
]
SPOTS = [0, 4096, 6144, 6208, 6272, 6284, 6336]


@st.composite
def wanted(draw: st.DrawFn) -> tuple[int, int, int]:
    """Command, offset and length of a READ or WRITE, mostly near the ends of targets."""
    offset = (draw(st.sampled_from(SPOTS)) + draw(st.integers(-20, 20))) * 512 + draw(st.sampled_from([0, 0, 0, 1]))
    length = draw(st.sampled_from([512, 4096, 4096, 10240, 65536, 66048, 0, 100]))
    return draw(st.sampled_from([Command.READ, Command.READ, Command.WRITE])), max(0, offset), length


def exchange(client: NbdClient, packets: list[list[tuple[int, int, int]]]) -> list[Answer]:
    """Send each packet once the one before is answered; all answers, in the order of the requests."""
    answers: list[Answer] = []
    for packet in packets:
        sent = b""
        for cookie, (command, offset, length) in enumerate(packet, len(answers)):
            if command == Command.READ:
                client.lengths[cookie] = length
            sent += request(
                command, cookie, offset, length, bytes([cookie]) * length if command != Command.READ else b""
            )
        client.sock.sendall(sent)
        answers += sorted((client.receive() for _ in packet), key=lambda answer: answer.cookie)
    return answers


def together(requests: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """As few packets as may be, none of which has a WRITE and another request of the same bytes: such requests may pass
    each other, and a READ shows what comes later."""
    packets: list[list[tuple[int, int, int]]] = [[]]
    for command, offset, length in requests:
        if any(
            Command.WRITE in (command, other) and offset < at + size and at < offset + length
            for other, at, size in packets[-1]
        ):
            packets.append([])
        packets[-1].append((command, offset, length))
    return packets


@settings(max_examples=30, deadline=None)
@given(st.lists(wanted(), min_size=1, max_size=12), st.booleans())
def test_requests_alone_together_and_the_ordinary_way(requests: list[tuple[int, int, int]], structured: bool) -> None:
    """One by one, in one packet, and all by bios: the same answers, and the same disk."""
    results = []
    for way in ("alone", "together", "bios"):
        with tempfile.TemporaryDirectory(prefix="dm") as folder, pytest.MonkeyPatch.context() as patch:
            served = Served(folder)
            served.stack.device("mix", *MIXED)
            os.truncate(served.file, 8140 * 512)
            if way == "bios":
                patch.setattr("dmserver.io.mapped.MappedIo.enter", lambda self: None)
            with served.client("mix", structured=structured) as client:
                packets = together(requests) if way == "together" else [[one] for one in requests]
                results.append((exchange(client, packets), served.file.read_bytes()))
            served.server.close()
            served.stack.close()
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("structured", [False, True])
def test_reads_one_by_one_while_tables_are_swapped(served: Served, structured: bool) -> None:
    tables: list[Line] = [(0, 64, "linear", "7:0 0"), (0, 64, "linear", "7:0 64")]
    either = {pattern(1, 8, 8), pattern(1, 72, 8)}
    seen = set()
    stop = threading.Event()

    def read() -> None:
        with served.client(structured=structured) as client:
            while not stop.is_set():
                seen.add(client.ask(Command.READ, 4096, 4096).data)

    reader = threading.Thread(target=read)
    reader.start()
    swaps = 0
    while swaps < 100 or len(seen) < 2:
        served.stack.load(served.lin, [tables[swaps % 2]])
        served.stack.activate(served.lin)
        swaps += 1
    stop.set()
    reader.join()
    assert seen == either
    assert served.lin.io.in_flight == 0


@pytest.mark.parametrize("structured", [False, True])
def test_refused_requests(served: Served, structured: bool) -> None:
    end = SECTORS * 512
    with served.client(structured=structured) as client:
        assert client.ask(Command.READ, 1, 512).error == errno.EINVAL
        assert client.ask(Command.READ, 0, 100).error == errno.EINVAL
        assert client.ask(Command.READ, 0, 0).error == errno.EINVAL
        assert client.ask(Command.READ, end - 512, 1024).error == errno.EINVAL
        assert client.ask(Command.READ, 0, MAX_BLOCK + 512).error == errno.EINVAL
        assert client.ask(Command.WRITE, end - 512, data=bytes(1024)).error == errno.ENOSPC
        assert client.ask(Command.WRITE, 7, data=bytes(512)).error == errno.EINVAL
        assert client.ask(Command.TRIM, end, 512).error == errno.EINVAL
        assert client.ask(Command.WRITE_ZEROES, 0, 3).error == errno.EINVAL
        assert client.ask(5, 0, 512).error == errno.EINVAL
        assert client.ask(77).error == errno.EINVAL
        assert client.ask(Command.BLOCK_STATUS, 0, 100).error == errno.EINVAL
        assert client.ask(Command.READ, 0, 512).data == pattern(1, 0, 1)


def test_read_only_table_is_a_read_only_export(served: Served) -> None:
    served.stack.device("ro", (0, 64, "linear", "7:0 0"), read_only=True)
    with served.client("ro") as client:
        assert client.flags & ExportFlag.READ_ONLY
        assert client.ask(Command.WRITE, 0, data=bytes(512)).error == errno.EPERM
        assert client.ask(Command.TRIM, 0, 512).error == errno.EPERM
        assert client.ask(Command.WRITE_ZEROES, 0, 512).error == errno.EPERM
        assert client.ask(Command.READ, 0, 512).data == pattern(1, 0, 1)


def test_trim_zeroes_and_block_status(served: Served) -> None:
    with served.client(structured=True) as client:
        assert client.ask(Command.TRIM, 65536, 65536).error == 0
        assert client.ask(Command.WRITE_ZEROES, 262144, 65536).error == 0
        assert client.ask(Command.WRITE_ZEROES, 0, 4096, flags=CommandFlag.NO_HOLE | CommandFlag.FUA).error == 0
        assert client.ask(Command.WRITE_ZEROES, 8192, 4096, flags=CommandFlag.FAST_ZERO).error == 0
        status = client.ask(Command.BLOCK_STATUS, 32768, 262144).data
        assert list(struct.iter_unpack(">II", status)) == [(32768, 0), (65536, 3), (131072, 0), (32768, 3)]
        one = client.ask(Command.BLOCK_STATUS, 65536, 131072, flags=CommandFlag.REQ_ONE).data
        assert list(struct.iter_unpack(">II", one)) == [(65536, 3)]
    content = served.file.read_bytes()
    expected = bytearray(pattern(1, 0, SECTORS))
    for start, length in ((65536, 65536), (262144, 65536), (0, 4096), (8192, 4096)):
        expected[start : start + length] = bytes(length)
    assert content == expected


def test_zeroes_where_no_hole_can_be_made(served: Served) -> None:
    disk = served.stack.ram(64)
    served.stack.device("ram", (0, 64, "linear", "1:0 0"))
    with served.client("ram") as client:
        assert not client.flags & ExportFlag.SEND_TRIM
        assert client.ask(Command.TRIM, 0, 512).error == errno.EOPNOTSUPP
        assert client.ask(Command.WRITE_ZEROES, 0, 512, flags=CommandFlag.FAST_ZERO).error == errno.EOPNOTSUPP
        assert client.ask(Command.WRITE_ZEROES, 512, 1024).error == 0
    assert os.pread(disk.fd, 2048, 0) == pattern(1, 0, 1) + bytes(1024) + pattern(1, 3, 1)


def test_targets_that_do_more_than_remap(served: Served) -> None:
    served.stack.device("mix", (0, 8, "linear", "7:0 0"), (8, 8, "zero", ""), (16, 8, "error", ""))
    with served.client("mix", structured=True) as client:
        assert client.ask(Command.READ, 7 * 512, 1024).data == pattern(1, 7, 1) + bytes(512)
        assert client.ask(Command.READ, 15 * 512, 1024).error == errno.EIO
        assert client.ask(Command.WRITE, 16 * 512, data=bytes(512)).error == errno.EIO
        assert list(struct.iter_unpack(">II", client.ask(Command.BLOCK_STATUS, 0, 8192).data)) == [(8192, 0)]


def test_suspended_device_answers_later(served: Served) -> None:
    served.stack.device("zero", (0, 64, "zero", ""))
    with served.client() as held, served.client() as other, served.client("zero") as zero:
        assert served.stack.suspend(served.lin).wait(10)
        held.send(Command.WRITE, 1, data=pattern(7, 0, 1))
        held.send(Command.READ, 2, 512, 512)
        other.send(Command.FLUSH, 3)
        assert zero.ask(Command.READ, 0, 512).data == bytes(512)
        assert held.ask(Command.READ, 1, 512).error == errno.EINVAL, "what needs no device is answered at once"
        served.stack.load(served.lin, [(0, 64, "linear", "7:0 64")])
        served.stack.activate(served.lin)
        assert {held.receive(), held.receive()} == {Answer(1), Answer(2, 0, pattern(1, 65, 1))}
        assert other.receive() == Answer(3)
    assert served.file.read_bytes()[32768 : 32768 + 512] == pattern(7, 0, 1)


def test_client_that_leaves_while_its_request_is_held(served: Served) -> None:
    assert served.stack.suspend(served.lin).wait(10)
    with served.client() as client:
        client.send(Command.WRITE, 1, data=pattern(7, 0, 1))
        client.ask(Command.READ, 1, 512)
    assert served.lin.openers == 1, "its request is still under way"
    served.lin.resume()
    assert served.closed(served.lin)
    assert served.file.read_bytes()[:512] == pattern(7, 0, 1)


def test_client_that_does_not_read_keeps_nobody_from_suspending(served: Served) -> None:
    with served.client() as lazy:
        for number in range(40):
            lazy.send(Command.READ, number, 0, 1 << 20)
        with served.client() as other:
            assert other.ask(Command.READ, 0, 512).error == 0
        assert served.stack.suspend(served.lin).wait(10)
        served.lin.resume()
        answers = sorted((lazy.receive() for _ in range(40)), key=lambda answer: answer.cookie)
        assert answers == [Answer(number, 0, pattern(1, 0, 2048)) for number in range(40)]


def test_client_that_vanishes_in_the_middle_of_a_write(served: Served) -> None:
    for length in (4096, 1 << 20):
        with served.client() as client:
            client.sock.sendall(request(Command.WRITE, 1, 0, length, bytes(1000)))
        assert served.closed(served.lin)
    assert served.file.read_bytes()[:4096] == pattern(1, 0, 8)


@pytest.mark.parametrize("structured", [False, True])
def test_file_that_shrinks(served: Served, structured: bool) -> None:
    with served.client(structured=structured) as client:
        os.truncate(served.file, 65536)
        assert client.ask(Command.READ, 65536, 512).error == errno.EIO
        assert client.ask(Command.READ, 0, 1 << 20).error == errno.EIO
        assert client.ask(Command.READ, 65024, 512).data == pattern(1, 127, 1)


def test_write_that_is_too_large_ends_the_connection(served: Served) -> None:
    with served.client() as client:
        client.sock.sendall(request(Command.WRITE, 1, 0, MAX_BLOCK + 512, bytes(1024)))
        with pytest.raises((EOFError, ConnectionError)):
            receive(client.sock, 1)


def test_garbage_instead_of_a_request(served: Served) -> None:
    with served.client() as client, served.client() as good:
        client.sock.sendall(b"z" * 100)
        with pytest.raises((EOFError, ConnectionError)):
            receive(client.sock, 1)
        assert good.ask(Command.READ, 0, 512).error == 0


def test_thousand_connections(served: Served) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        clients = [served.client() for _ in range(1000)]
        for number, client in enumerate(clients):
            client.send(Command.READ, number, number * 512, 512)
        for number, client in enumerate(clients):
            assert client.receive() == Answer(number, 0, pattern(1, number, 1))
        for client in clients:
            client.sock.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert served.closed(served.lin)


# -- the server ---------------------------------------------------------------------------------------------


def test_close_ends_connections_even_with_held_requests(served: Served) -> None:
    with served.client() as client:
        assert served.stack.suspend(served.lin).wait(10)
        client.send(Command.READ, 1, 0, 512)
        server, served.server = served.server, NbdServer(served.stack.mapper)
        served.server.start(f"{served.path}2")
        server.close()
        assert not os.path.exists(served.path)
        with pytest.raises((EOFError, ConnectionError)):
            receive(client.sock, 1)
    served.lin.resume()


def test_tcp(served: Served) -> None:
    server = NbdServer(served.stack.mapper)
    address = server.start("tcp:127.0.0.1:0")
    assert address.startswith("tcp:127.0.0.1:")
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as sock:
        assert receive(sock, 8) == b"NBDMAGIC"
    server.close()


@pytest.mark.parametrize("address", ["tcp:", "tcp:host", "tcp::10809", "tcp:localhost:http"])
def test_malformed_address(served: Served, address: str) -> None:
    with pytest.raises(ValueError, match="tcp:HOST:PORT"):
        NbdServer(served.stack.mapper).start(address)


def test_a_path_where_no_socket_can_be_is_named(served: Served) -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere/s"):
        NbdServer(served.stack.mapper).start("/nowhere/s")


def test_socket_of_a_dead_server_is_replaced_and_of_a_live_one_kept(served: Served) -> None:
    with pytest.raises(OSError, match="in use"):
        NbdServer(served.stack.mapper).start(served.path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{served.path}-dead")
    server = NbdServer(served.stack.mapper)
    server.start(f"{served.path}-dead")
    with NbdClient(f"{served.path}-dead"):
        pass
    server.close()
