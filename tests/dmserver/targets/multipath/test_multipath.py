from __future__ import annotations

import errno
from typing import Any

import pytest
from support.constructors import replay
from support.targets import Bench, flush, pattern, read, start, status, write

from dmserver.io.bio import Bio, Op
from dmserver.io.work import ThreadWork
from dmserver.model.dm_target import StatusType, TargetError, do_io
from dmserver.targets.multipath.multipath import Multipath

ONE_PATH = "round-robin 0 1 1 1:0 1"
BIO = "2 queue_mode bio 0"
TWO_GROUPS = f"{BIO} 2 1 round-robin 0 2 1 1:0 1 1:1 1 round-robin 0 1 1 1:2 1"


def message(device: Any, *words: str) -> None:
    assert device.live.targets[0].message(list(words)) is None


def every(bio: Bio) -> bool:
    return True


def counts(bench: Bench, *numbers: int) -> list[int]:
    return [len(bench.disks[number].log) for number in numbers]


def test_recorded_constructors() -> None:
    assert replay(Bench(), Multipath, "t_multi_switch_constructors") == 9


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("1 bogus 0 0 0", "Unrecognised multipath feature request"),
        ("2 pg_init_retries 51 0 0 0", "pg_init_retries must be between 1 and 50"),
        ("2 pg_init_delay_msecs 60001 0 0 0", "pg_init_delay_msecs must be between 0 and 60000"),
        ("0 1", "invalid number of hardware handler args"),
        ("0 0 x", "invalid number of priority groups"),
        ("0 0 0 1", "invalid initial priority group"),
        ("0 0 0", "invalid initial priority group number"),
        ("0 0 1 1025", "invalid initial priority group number"),
        (f"{BIO} 2 1 round-robin 0 1 0 1:0", "priority group count mismatch"),
        (f"{BIO} 1 1 round-robin", "not enough priority group arguments"),
        (f"{BIO} 1 1 round-robin x", "invalid number of path selector args"),
        (f"{BIO} 1 1 round-robin 0 0", "invalid number of paths"),
        (f"{BIO} 1 1 round-robin 0 1 x", "invalid number of selector args"),
        (f"{BIO} 1 1 round-robin 0 2 1 1:0 1 1:1", "not enough path parameters"),
        (f"{BIO} 1 1 round-robin 0 1 2 1:0 1 1", "round-robin ps: incorrect number of arguments"),
        (f"{BIO} 1 1 queue-length 0 1 1 1:0 x", "queue-length ps: invalid repeat count"),
        (f"{BIO} 1 1 service-time 0 1 2 1:0 1 101", "service-time ps: invalid relative_throughput value"),
    ],
)
def test_refusals(params: str, message: str) -> None:
    assert Bench().refusal(Multipath, 64, params) == (errno.EINVAL, message)


def test_only_scsi_devices_have_hardware_handlers() -> None:
    refusal = Bench().refusal(Multipath, 64, "0 1 alua 1 1 round-robin 0 1 0 1:0")
    assert refusal == (errno.ENODEV, "error attaching hardware handler")


@pytest.mark.parametrize(
    "params",
    [
        "0 0 1 1 round-robin 0 1 1 1:0 1 ",
        "5 queue_if_no_path pg_init_retries 3 pg_init_delay_msecs 70 0 1 1 queue-length 0 1 1 1:0 1 ",
        "3 retain_attached_hw_handler queue_mode bio 0 1 1 service-time 0 2 2 1:0 1 5 1:1 1 7 ",
        "3 retain_attached_hw_handler queue_mode bio 0 0 0 ",
    ],
)
def test_the_table_line_builds_the_table_again(params: str) -> None:
    device = Bench().load("m", (Multipath, 64, params))
    assert status(device, StatusType.TABLE) == params


def test_status_line() -> None:
    device = Bench().load("m", (Multipath, 64, TWO_GROUPS))
    assert status(device) == "2 1 0 0 2 1 E 0 2 0 1:0 A 0 1:1 A 0 E 0 1 0 1:2 A 0 "
    read(device, 0)
    assert status(device) == "2 0 0 0 2 1 A 0 2 0 1:0 A 0 1:1 A 0 E 0 1 0 1:2 A 0 "


def test_the_group_that_was_asked_for_waits_for_paths() -> None:
    device = Bench().load("m", (Multipath, 64, f"{BIO} 2 2 {ONE_PATH} round-robin 0 1 1 1:1 1"))
    for path in ("1:0", "1:1"):
        message(device, "fail_path", path)
    with pytest.raises(OSError, match="5"):
        read(device, 0)
    assert status(device) == "2 0 0 0 2 2 E 0 1 0 1:0 F 1 E 0 1 0 1:1 F 1 "


def test_uevents_of_paths() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, f"{BIO} 1 1 {ONE_PATH}"))
    sent: list[dict[str, str]] = []
    bench.mapper.events.on_uevent(lambda event: sent.append(event.env))
    for action in ("fail_path", "reinstate_path"):
        message(device, action, "1:0")
    bench.work.run()
    assert [list(env.items())[3:10] for env in sent] == [
        [
            ("DM_TARGET", "multipath"),
            ("DM_ACTION", action),
            ("DM_SEQNUM", str(number)),
            ("DM_PATH", "1:0"),
            ("DM_NR_VALID_PATHS", valid),
            ("DM_NAME", "m"),
            ("DM_UUID", ""),
        ]
        for number, (action, valid) in enumerate([("PATH_FAILED", "0"), ("PATH_REINSTATED", "1")], 1)
    ]


def test_round_robin_takes_turns_in_the_current_group() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, TWO_GROUPS))
    for sector in range(4):
        write(device, sector, pattern(1, sector))
    flush(device)
    assert counts(bench, 0, 1, 2) == [3, 2, 0]
    assert read(bench.disks[0], 2) == pattern(1, 2)


def test_a_failing_path_is_left_for_the_others() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, TWO_GROUPS))
    bench.disks[0].fail = every
    ended = start(device, Op.WRITE, 5, pattern(9))
    bench.work.run()
    assert ended == [0]
    assert read(bench.disks[1], 5) == pattern(9)
    assert status(device) == "2 0 0 0 2 1 A 0 2 0 1:0 F 1 1:1 A 0 E 0 1 0 1:2 A 0 "
    assert device.event_nr == 1
    assert list(bench.mapper.events.lines) == ["device-mapper: multipath: 253:0: Failing path 1:0."]
    bench.disks[1].fail = every
    ended = start(device, Op.WRITE, 6, pattern(8))
    bench.work.run()
    assert ended == [0]
    assert status(device) == "2 0 0 0 2 2 E 0 2 0 1:0 F 1 1:1 F 1 A 0 1 0 1:2 A 0 "
    bench.disks[2].fail = every
    ended = start(device, Op.WRITE, 7, pattern(7))
    bench.work.run()
    assert ended == [errno.EIO]


def test_an_error_that_is_not_the_paths() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, TWO_GROUPS))
    bench.disks[0].submit_bio = lambda bio: bio.endio(errno.ENOSPC)
    assert start(device, Op.WRITE, 0, pattern(1)) == [errno.ENOSPC]
    assert "F" not in status(device)


def test_bios_wait_for_a_path() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, "3 queue_if_no_path queue_mode bio 0 1 1 round-robin 0 1 1 1:0 1"))
    message(device, "fail_path", "1:0")
    ended = start(device, Op.WRITE, 0, pattern(9))
    bench.work.run()
    assert not ended
    message(device, "REINSTATE_PATH", "1:0")
    bench.work.run()
    assert ended == [0]
    assert read(bench.disks[0], 0) == pattern(9)
    assert bench.mapper.events.lines[-1] == "device-mapper: multipath: 253:0: Reinstating path 1:0."


def test_queueing_by_message() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, f"{BIO} 1 1 round-robin 0 1 1 1:0 1"))
    message(device, "fail_path", "1:0")
    with pytest.raises(OSError, match="5"):
        read(device, 0)
    message(device, "queue_if_no_path")
    assert status(device, StatusType.TABLE).startswith("4 queue_if_no_path ")
    ended = start(device, Op.READ, 0, bytes(512))
    bench.work.run()
    assert not ended
    message(device, "fail_if_no_path")
    bench.work.run()
    assert ended == [errno.EIO]


def test_a_noflush_suspension_keeps_bios_for_the_next_table() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, "3 queue_if_no_path queue_mode bio 0 1 1 round-robin 0 1 1 1:0 1"))
    message(device, "fail_path", "1:0")
    ended = start(device, Op.WRITE, 0, pattern(9))
    bench.table(device, (Multipath, 64, f"{BIO} 1 1 round-robin 0 1 1 1:1 1"))
    suspended = bench.suspend(device, noflush=True)
    bench.work.run()
    assert suspended
    assert not ended
    bench.resume(device)
    assert ended == [0]
    assert read(bench.disks[1], 0) == pattern(9)


def test_a_flushing_suspension_fails_what_waits_and_queueing_comes_back() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, "3 queue_if_no_path queue_mode bio 0 1 1 round-robin 0 1 1 1:0 1"))
    message(device, "fail_path", "1:0")
    ended = start(device, Op.WRITE, 0, pattern(9))
    suspended = bench.suspend(device)
    bench.work.run()
    assert suspended
    assert ended == [errno.EIO]
    with pytest.raises(TargetError) as refusal:
        message(device, "fail_if_no_path")
    assert refusal.value.errno == errno.EBUSY
    bench.resume(device)
    assert status(device, StatusType.TABLE).startswith("4 queue_if_no_path ")


def test_groups_by_message() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, TWO_GROUPS))
    message(device, "switch_group", "2")
    read(device, 0)
    assert counts(bench, 0, 1, 2) == [0, 0, 1]
    message(device, "disable_group", "1")
    assert status(device) == "2 0 0 0 2 1 D 0 2 0 1:0 A 0 1:1 A 0 E 0 1 0 1:2 A 0 "
    read(device, 0)
    assert counts(bench, 0, 1, 2) == [0, 0, 2]
    message(device, "disable_group", "2")
    read(device, 0)
    assert counts(bench, 0, 1, 2) == [1, 0, 2]
    message(device, "enable_group", "2")
    message(device, "switch_group", "1")
    assert status(device) == "2 0 0 0 2 1 E 0 2 0 1:0 A 0 1:1 A 0 E 0 1 0 1:2 A 0 "
    bench.work.run()
    assert device.event_nr == 5


@pytest.mark.parametrize(
    ("words", "number", "line"),
    [
        (["bogus"], errno.EINVAL, "Invalid multipath message arguments. Expected 2 arguments, got 1."),
        (["bogus", "1:0"], errno.EINVAL, "Unrecognised multipath message received: bogus"),
        (["switch_group", "3"], errno.EINVAL, "invalid PG number supplied to switch_pg_num"),
        (["switch_group", "0"], errno.EINVAL, "invalid PG number supplied to switch_pg_num"),
        (["disable_group", "0"], errno.EINVAL, "invalid PG number supplied to bypass_pg"),
        (["fail_path", "77:7"], errno.ENXIO, "message: error getting device 77:7"),
    ],
)
def test_messages_refused(words: list[str], number: int, line: str) -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, TWO_GROUPS))
    with pytest.raises(TargetError) as refusal:
        message(device, *words)
    assert refusal.value.errno == number
    assert bench.mapper.events.lines[-1] == f"device-mapper: multipath: {line}"


def test_a_message_about_a_device_that_is_no_path() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, TWO_GROUPS))
    with pytest.raises(TargetError):
        message(device, "fail_path", "1:5")
    assert bench.mapper.pdevs.find((1, 5)) is None


def test_queue_length_takes_the_shortest_queue() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, f"{BIO} 1 1 queue-length 0 2 1 1:0 1 1:1 1"))
    bench.disks[0].slow = True
    ended = [start(device, Op.READ, 0, bytes(512)) for _ in range(4)]
    assert status(device) == "2 0 0 0 1 1 A 0 2 1 1:0 A 0 1 1:1 A 0 0 "
    assert counts(bench, 0, 1) == [0, 3]
    bench.disks[0].finish()
    assert ended == [[0]] * 4


def test_service_time_weighs_bytes_by_throughput() -> None:
    bench = Bench()
    device = bench.load("m", (Multipath, 64, f"{BIO} 1 1 service-time 0 2 2 1:0 1 1 1:1 1 3"))
    for disk in bench.disks[:2]:
        disk.slow = True
    for _ in range(4):
        start(device, Op.READ, 0, bytes(512))
    assert status(device) == "2 0 0 0 1 1 A 0 2 2 1:0 A 0 512 1 1:1 A 0 1536 3 "


def test_measured_by_ima() -> None:
    device = Bench().load("m", (Multipath, 64, f"{BIO} 1 1 queue-length 0 1 1 1:0 1"))
    assert device.live is not None
    assert device.live.targets[0].ima_status() == (
        "target_name=multipath,target_version=1.14.0,nr_priority_groups=1,pg_state_0=E,nr_pgpaths_0=1,"
        "path_selector_name_0=queue-length,path_name_0_0=1:0,is_active_0_0=A,fail_count_0_0=0,path_selector_status_0_0=;"
    )


@pytest.mark.parametrize("fails_early", [True, False])
def test_commands_do_not_wait_for_a_path(fails_early: bool) -> None:
    bench = Bench()
    device = bench.load("device", (Multipath, 64, f"3 queue_if_no_path queue_mode bio 0 1 1 {ONE_PATH}"))
    bench.disks[0].fail = every
    if fails_early:
        message(device, "fail_path", "1:0")
    data = memoryview(bytearray(512))
    bench.mapper.work = ThreadWork()
    assert do_io(Op.READ, device, 0, data) == errno.EAGAIN
