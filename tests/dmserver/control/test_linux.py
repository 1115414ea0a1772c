"""Linux's control against the recordings, and the rules that no recording shows."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.linux_client import LinuxClient
from support.linux_replay import FILES, replay
from support.targets import ManualWork

from dmproto.flags import DmFlag
from dmproto.records import TargetMessage, TargetSpec
from dmserver.control.linux_resolver import LinuxResolver
from dmserver.control.session import Session
from dmserver.io.bio import Bio, Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import Target

LINEAR = (TargetSpec(start=0, length=64, type="linear", params="1:0 0"),)
ZERO = (TargetSpec(start=0, length=64, type="zero"),)


@pytest.fixture
def client() -> Iterator[LinuxClient]:
    return LinuxClient(work=ManualWork())


def run(client: LinuxClient) -> None:
    client.mapper.work.run()  # type: ignore[attr-defined]  # it is the ManualWork


@pytest.mark.parametrize("file", FILES)
def test_replays_as_recorded(file: str) -> None:
    results = replay(file)
    assert results
    assert [str(result) for result in results if result.difference] == []


# -- entry checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "buffer", "privileged", "expected"),
    [
        (0xC138FD07, b"", False, (-errno.EACCES, b"")),
        (0xC138FC07, b"", True, (-errno.ENOTTY, b"")),
        (0xC138FD07, bytes(11), True, (-errno.EFAULT, b"")),
        (0x0000FD00, b"\4" + bytes(11), True, (0, b"\4\0\0\0\x2f\0\0\0\0\0\0\0")),
        (0xC138FD12, b"\4" + bytes(11), True, (-errno.ENOTTY, b"\4\0\0\0\x2f\0\0\0\0\0\0\0")),
        (0xC138FD12, b"\5" + bytes(11), True, (-errno.EINVAL, b"\4\0\0\0\x2f\0\0\0\0\0\0\0")),
        (0xC138FD07, b"\4" + bytes(303), True, (-errno.EFAULT, b"\4\0\0\0\x2f\0\0\0\0\0\0\0")),
    ],
)
def test_entry_checks_come_in_the_kernels_order(
    client: LinuxClient, number: int, buffer: bytes, privileged: bool, expected: tuple[int, bytes]
) -> None:
    answers: list[tuple[int, bytes]] = []
    session = Session(privileged=privileged)
    client.control.ioctl(session, number, buffer, lambda result, written: answers.append((result, written)))
    assert answers == [expected]


def test_secure_data_is_wiped_even_when_the_command_fails(client: LinuxClient) -> None:
    result, written = client.raw("TABLE_LOAD", ZERO, name="missing", flags=DmFlag.SECURE_DATA)
    assert (result, written) == (-errno.ENXIO, bytes(16384))


def test_secure_data_wipes_the_version_too_where_nothing_is_copied_back(client: LinuxClient) -> None:
    client.device("d", ZERO)
    geometry = client.raw("DEV_SET_GEOMETRY", "1 1 1 0", name="d", flags=DmFlag.SECURE_DATA)
    assert geometry == (0, bytes(16384))
    assert client.raw("REMOVE_ALL", flags=DmFlag.SECURE_DATA) == (0, bytes(305))


def test_very_long_numbers_are_numbers(client: LinuxClient) -> None:
    client.device("d", ZERO)
    assert client.fails("DEV_SET_GEOMETRY", "1 2 3 " + "9" * 5000, name="d") == errno.EINVAL
    for path, number in (
        ("/dev/dm-" + "9" * 5000, errno.ENODEV),
        ("1:" + "9" * 5000, errno.EOVERFLOW),
        ("9" * 5000 + ":0", errno.EOVERFLOW),
        ("0" * 5000 + "77:7", errno.ENXIO),
    ):
        table = (TargetSpec(start=0, length=8, type="linear", params=f"{path} 0"),)
        assert client.fails("TABLE_LOAD", table, name="d") == number


def test_a_device_is_told_by_one_thing(client: LinuxClient) -> None:
    client.ok("DEV_CREATE", name="d", uuid="u")
    for header, complaint in (
        ({"name": "d", "dev": 0xFD00}, "name d, dev fd00"),
        ({"uuid": "u", "dev": 0x1_0000_FD00}, "uuid u, name , dev 10000fd00"),
    ):
        assert client.fails("DEV_STATUS", **header) == errno.ENXIO
        assert client.mapper.events.lines[-1] == f"device-mapper: ioctl: Invalid ioctl structure: {complaint}"
    told = len(client.mapper.events.lines)
    assert client.fails("DEV_STATUS") == client.fails("DEV_STATUS", name="e") == errno.ENXIO
    assert len(client.mapper.events.lines) == told


def test_the_log_shows_the_codes_of_what_cannot_be_printed(client: LinuxClient) -> None:
    assert client.fails("DEV_RENAME", "\\", name="\u00e9\n\udcff") == errno.ENXIO
    complaint = r"Unable to rename non-existent device, \xc3\xa9\x0a\xff to \x5c"
    assert client.mapper.events.lines[-1] == f"device-mapper: ioctl: {complaint}"


# -- parked commands ----------------------------------------------------------------------------------------


def test_several_waiters_are_answered_by_one_event(client: LinuxClient) -> None:
    client.device("d", ZERO)
    first, second = (client.start("DEV_WAIT", name="d") for _ in range(2))
    client.rename("d", "e")
    assert first.answer is second.answer is None
    run(client)
    assert first.ok().header.event_nr == second.ok().header.event_nr == 1
    assert client.control.waits == {}


def test_a_cancelled_wait_answers_eintr_once(client: LinuxClient) -> None:
    client.device("d", ZERO)
    wait = client.start("DEV_WAIT", name="d")
    wait.cancel()
    wait.cancel()
    client.rename("d", "e")
    run(client)
    assert wait.answers == [(-errno.EINTR, client.VERSION)]


def test_an_event_of_another_thread_just_before_a_wait_parks_is_not_lost(
    client: LinuxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.device("d", ZERO)
    on_event = DmDev.on_event

    def late(self: DmDev, wake: Callable[[], None]) -> Callable[[], None]:
        self.event()
        return on_event(self, wake)

    monkeypatch.setattr(DmDev, "on_event", late)
    wait = client.start("DEV_WAIT", name="d")
    run(client)
    assert wait.ok().header.event_nr == 1


def test_removal_answers_a_wait_with_the_table_that_goes(client: LinuxClient) -> None:
    client.device("d", ZERO)
    wait = client.start("DEV_WAIT", name="d")
    client.ok("DEV_REMOVE", name="d")
    reply = wait.ok()
    assert reply.header.event_nr == 1
    assert reply.payload == (TargetSpec(start=0, length=64, type="zero"),)


class Holder(Target):
    """Keeps every bio."""

    name = "holder"
    version = (1, 0, 0)
    held: list[Bio]

    def ctr(self, argv: Any) -> None:
        self.held = []

    def map(self, bio: Bio) -> Any:
        from dmserver.model.dm_target import MapResult

        self.held.append(bio)
        return MapResult.SUBMITTED


@pytest.fixture
def held(client: LinuxClient) -> Holder:
    """A device `d` with one bio under way, which its target holds."""
    client.control.registry.register(Holder)
    client.device("d", (TargetSpec(start=0, length=64, type="holder"),))
    device = client.mapper.by_name("d")
    assert device is not None
    assert device.live is not None
    target = device.live.targets[0]
    assert isinstance(target, Holder)
    device.submit_bio(Bio(Op.WRITE, 0, 1, memoryview(bytes(512)), bdev=device))
    return target


def test_a_suspension_waits_for_what_is_under_way(client: LinuxClient, held: Holder) -> None:
    suspend = client.start("DEV_SUSPEND", name="d", flags=DmFlag.SUSPEND)
    resume = client.start("DEV_SUSPEND", name="d")
    assert suspend.answer is None
    held.held.pop().endio()
    run(client)
    assert suspend.ok().header.flags & DmFlag.SUSPEND
    assert resume.answer is not None


def test_a_suspension_waits_for_what_began_after_it_was_drained(client: LinuxClient, held: Holder) -> None:
    suspend = client.start("DEV_SUSPEND", name="d", flags=DmFlag.SUSPEND)
    held.held.pop().endio()
    held.hold()  # copying in the background, say
    run(client)
    assert suspend.answer is None
    held.release()
    run(client)
    assert suspend.ok().header.flags & DmFlag.SUSPEND


def test_an_interrupted_suspension_lets_bios_run_again(client: LinuxClient, held: Holder) -> None:
    suspend = client.start("DEV_SUSPEND", name="d", flags=DmFlag.SUSPEND)
    suspend.cancel()
    assert suspend.answers == [(-errno.EINTR, client.VERSION)]
    device = client.mapper.by_name("d")
    assert device is not None
    assert not device.suspended
    device.submit_bio(Bio(Op.WRITE, 1, 1, memoryview(bytes(512)), bdev=device))
    assert len(held.held) == 2


def test_swapping_waits_too_and_then_goes_on(client: LinuxClient, held: Holder) -> None:
    client.ok("TABLE_LOAD", ZERO, name="d")
    resume = client.start("DEV_SUSPEND", name="d")
    assert resume.answer is None
    held.held.pop().endio()
    run(client)
    assert resume.ok().header.flags & DmFlag.UEVENT_GENERATED
    assert client.ok("TABLE_STATUS", name="d").payload == (TargetSpec(start=0, length=64, type="zero"),)


def _message(client: LinuxClient, text: str) -> Any:
    return client.ok("TARGET_MSG", TargetMessage(sector=0, message=text), name="d").payload


def test_statistics_count_and_time_what_a_target_holds(client: LinuxClient, held: Holder) -> None:
    held.held.pop().endio()
    assert _message(client, "@stats_create 0+16 8 2 precise_timestamps histogram:1000000000 prog aux") == "0"
    device = client.mapper.by_name("d")
    assert device
    device.submit_bio(Bio(Op.WRITE, 6, 4, memoryview(bytes(2048)), bdev=device))
    client.mapper.work.advance(2)
    busy = "0+8 0 0 0 0 0 0 0 0 1 2000000000 2000000000 0 2000000000 0:0\n"
    assert str(_message(client, "@stats_print 0 0 1")) == busy
    held.held.pop().endio()
    first = "0+8 0 0 0 0 1 0 2 2000000000 0 2000000000 2000000000 0 2000000000 0:1\n"
    second = "8+8 0 0 0 0 1 0 2 2000000000 0 2000000000 2000000000 0 2000000000 0:1\n"
    assert _message(client, "@stats_print_clear 0") == first + second
    assert _message(client, "@stats_print 0 - 1") == "0+8 0 0 0 0 0 0 0 0 0 0 0 0 0 0:0\n"
    assert _message(client, "@stats_list prog") == "0: 0+16 8 prog aux precise_timestamps histogram:1000000000\n"


# -- devices that tables name -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1:0", "01:00", "4294967297:0", "100", "0x100", "1:0:7:", "/dev/ram0", "/dev//ram0"])
def test_names_of_one_device_have_one_key(client: LinuxClient, name: str) -> None:
    key, path, _ = LinuxResolver(client.mapper)(name)
    assert (key, path) == ((1, 0), "/dev/ram0")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("77:7", errno.ENXIO),
        ("1:1048576", errno.EOVERFLOW),
        ("4096:0", errno.EOVERFLOW),
        ("ram0", errno.ENODEV),
        ("1:0x", errno.ENODEV),
        ("", errno.ENODEV),
        ("0", errno.ENODEV),
        ("/dev/nope", errno.ENODEV),
        ("/dev/dm-0", errno.ENODEV),
        ("253:0", errno.ENXIO),
    ],
)
def test_names_of_nothing(client: LinuxClient, name: str, number: int) -> None:
    client.ok("DEV_CREATE", name="without disk")
    with pytest.raises(OSError, match=r"no such") as caught:
        LinuxResolver(client.mapper)(name)
    assert caught.value.errno == number


def test_a_device_open_exclusively_is_busy(client: LinuxClient) -> None:
    disk = client.mapper.disks.by_dev((1, 0))
    assert disk
    disk.open(holder="a file system")
    client.ok("DEV_CREATE", name="d")
    assert client.fails("TABLE_LOAD", LINEAR, name="d") == errno.EBUSY
    disk.close(holder="a file system")
    client.ok("TABLE_LOAD", LINEAR, name="d")


def test_a_table_may_not_stack_a_device_on_itself_by_its_first_table(client: LinuxClient) -> None:
    client.ok("DEV_CREATE", name="d")
    own = (TargetSpec(start=0, length=64, type="linear", params="253:0 0"),)
    assert client.fails("TABLE_LOAD", own, name="d") == errno.ENXIO


# -- uevents ------------------------------------------------------------------------------------------------


def test_uevents_have_the_kernels_lines_in_the_kernels_order(client: LinuxClient) -> None:
    sent: list[list[str]] = []
    client.mapper.events.on_uevent(lambda event: sent.append(event.lines()))
    client.device("d", ZERO, cookie=0x210D4D)
    assert sent[-1] == [
        "change@/devices/virtual/block/dm-0",
        "ACTION=change",
        "DEVPATH=/devices/virtual/block/dm-0",
        "SUBSYSTEM=block",
        "DM_COOKIE=2166093",
        "MAJOR=253",
        "MINOR=0",
        "DEVNAME=dm-0",
        "DEVTYPE=disk",
        "DISKSEQ=1",
        "SEQNUM=3",
    ]
    assert [lines[0] for lines in sent] == [
        "add@/devices/virtual/bdi/253:0",
        "add@/devices/virtual/block/dm-0",
        "change@/devices/virtual/block/dm-0",
    ]


def test_a_deferred_removal_happens_in_the_commands_thread_after_the_last_close(client: LinuxClient) -> None:
    client.device("d", ZERO)
    device = client.mapper.by_name("d")
    assert device
    device.open()
    assert client.ok("DEV_REMOVE", name="d", flags=DmFlag.DEFERRED_REMOVE).header.flags & DmFlag.DEFERRED_REMOVE
    before = client.mapper.events.global_nr
    device.close()
    assert client.mapper.by_name("d") is device
    run(client)
    assert client.mapper.by_name("d") is None
    assert client.mapper.events.global_nr > before


def test_remove_all_takes_stacks_in_one_go_and_leaves_what_is_open(client: LinuxClient) -> None:
    client.device("a bottom", ZERO)
    client.device("b middle", (TargetSpec(start=0, length=64, type="linear", params="/dev/mapper/a\\ bottom 0"),))
    client.device("c top", (TargetSpec(start=0, length=64, type="linear", params="253:1 0"),))
    client.device("held", ZERO)
    device = client.mapper.by_name("held")
    assert device
    device.open()
    client.ok("REMOVE_ALL")
    assert [left.name for left in client.mapper.sorted_by_name()] == ["held"]
    assert client.mapper.events.lines[-1] == "device-mapper: ioctl: remove_all left 1 open device(s)"
