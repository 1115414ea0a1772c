"""What tables may be loaded, by the rules that no recording shows."""

from __future__ import annotations

import errno

import pytest
from support.linux_client import LinuxClient
from support.targets import ManualWork

from dmproto.flags import DmFlag
from dmproto.records import TargetSpec
from dmserver.model.dm_target import StatusType, Target, TargetFeature

ZERO = (TargetSpec(start=0, length=64, type="zero"),)


@pytest.fixture
def client() -> LinuxClient:
    return LinuxClient(work=ManualWork())


def _kind(type_name: str, type_features: TargetFeature) -> type[Target]:
    return type(type_name, (Target,), {"name": type_name, "version": (1, 0, 0), "features": type_features})


@pytest.mark.parametrize(
    ("types", "read_only", "complaint"),
    [
        (["single", "zero"], False, "table: 253:0: target type single must appear alone in table"),
        (["zero", "single"], False, "table: 253:0: single: singleton target type must appear alone in table (-EINVAL)"),
        (
            ["fixed", "zero"],
            False,
            "table: 253:0: zero: immutable target type cannot be mixed with other target types (-EINVAL)",
        ),
        (
            ["zero", "fixed"],
            False,
            "table: 253:0: fixed: immutable target type cannot be mixed with other target types (-EINVAL)",
        ),
        (["writer"], True, "table: 253:0: writer: target type may not be included in a read-only table (-EINVAL)"),
    ],
)
def test_types_that_do_not_go_together(client: LinuxClient, types: list[str], read_only: bool, complaint: str) -> None:
    for name, features in FEATURES.items():
        client.control.registry.register(_kind(name, features))
    client.ok("DEV_CREATE", name="d")
    table = tuple(TargetSpec(start=8 * at, length=8, type=name) for at, name in enumerate(types))
    assert client.fails("TABLE_LOAD", table, name="d", flags=DmFlag.READONLY * read_only) == errno.EINVAL
    assert f"device-mapper: {complaint}" in client.mapper.events.lines


FEATURES = {
    "single": TargetFeature.SINGLETON,
    "fixed": TargetFeature.IMMUTABLE,
    "writer": TargetFeature.ALWAYS_WRITEABLE,
}


@pytest.mark.parametrize(
    ("live", "new", "complaint"),
    [
        ("fixed", "zero", "can't replace immutable target type fixed"),
        ("fixed", "fixed", ""),
        ("fixed", "error", ""),
        ("zero", "error", ""),
        ("fixed", "error zero", ""),
        ("fixed", "zero error", ""),
    ],
)
def test_what_may_replace_a_live_table(client: LinuxClient, live: str, new: str, complaint: str) -> None:
    for name, features in FEATURES.items():
        client.control.registry.register(_kind(name, features))
    client.device("d", (TargetSpec(start=0, length=8, type=live),))
    table = tuple(TargetSpec(start=8 * at, length=8, type=name) for at, name in enumerate(new.split()))
    if not complaint:
        client.ok("TABLE_LOAD", table, name="d")
        return
    assert client.fails("TABLE_LOAD", table, name="d") == errno.EINVAL
    assert client.mapper.events.lines[-1] == f"device-mapper: ioctl: {complaint}"


@pytest.fixture
def request_based(client: LinuxClient) -> LinuxClient:
    """With a device `d` that a request-based table made so."""
    disk = client.mapper.by_dev((1, 0))
    assert disk
    disk.request_based = True
    client.device("d", (TargetSpec(start=0, length=8, type="multipath", params="0 0 1 1 round-robin 0 1 0 1:0"),))
    return client


def test_error_is_of_the_type_that_the_device_has(request_based: LinuxClient) -> None:
    client = request_based
    client.ok("TABLE_LOAD", (TargetSpec(start=0, length=8, type="error"),), name="d")
    client.ok("DEV_SUSPEND", name="d")
    two = tuple(TargetSpec(start=at, length=8, type="error") for at in (0, 8))
    assert client.fails("TABLE_LOAD", two, name="d") == errno.EINVAL
    assert list(client.mapper.events.lines)[-2:] == [
        "device-mapper: table: request-based DM doesn't support multiple targets",
        "device-mapper: table: unable to determine table type",
    ]
    assert client.fails("TABLE_LOAD", (TargetSpec(start=0, length=8, type="zero"),), name="d") == errno.EINVAL
    assert client.mapper.events.lines[-1] == (
        "device-mapper: ioctl: can't change device type (old=2 vs new=1) after initial table load."
    )


def test_a_table_without_devices_is_of_the_type_of_the_live_one(client: LinuxClient) -> None:
    empty = (TargetSpec(start=0, length=8, type="multipath", params="0 0 0 0"),)
    client.ok("DEV_CREATE", name="d")
    client.ok("TABLE_LOAD", ZERO, name="d")
    assert client.fails("TABLE_LOAD", empty, name="d") == errno.EINVAL
    client.ok("DEV_SUSPEND", name="d")
    client.ok("TABLE_LOAD", empty, name="d")


def test_blocks_of_4096_bytes_must_line_up(client: LinuxClient) -> None:
    disk = client.mapper.disks.by_dev((1, 1))
    assert disk
    disk.limits.logical_block_size = disk.limits.physical_block_size = disk.limits.io_min = 4096
    client.ok("DEV_CREATE", name="d")
    for params, length, complaint in (
        ("1:1 4", 8, "start=4 not aligned to h/w logical block size 4096 of ram1"),
        ("1:1 0", 12, "len=12 not aligned to h/w logical block size 4096 of ram1"),
        ("1:1 16380", 8, "ram1 too small for target: start=16380, len=8, dev_size=16384"),
    ):
        table = (TargetSpec(start=0, length=length, type="linear", params=params),)
        assert client.fails("TABLE_LOAD", table, name="d") == errno.EINVAL
        assert f"device-mapper: table: 253:0: {complaint}" in client.mapper.events.lines
    shifted = (TargetSpec(start=0, length=4, type="zero"), TargetSpec(start=4, length=8, type="linear", params="1:1 0"))
    assert client.fails("TABLE_LOAD", shifted, name="d") == errno.EINVAL
    complaint = "table line 1 (start sect 4 len 8) not aligned to h/w logical block size 4096"
    assert f"device-mapper: table: 253:0: {complaint}" in client.mapper.events.lines


def test_a_status_is_brought_up_to_date_unless_the_caller_says_no(client: LinuxClient) -> None:
    class Stale(Target):
        name = "stale"
        refreshed = 0

        def refresh_status(self) -> None:
            Stale.refreshed += 1

        def status(self, kind: StatusType) -> str:
            return str(self.refreshed)

    client.control.registry.register(Stale)
    client.device("d", (TargetSpec(start=0, length=8, type="stale"),))
    for flags, expected in (
        (DmFlag.NOFLUSH, "0"),
        (DmFlag.STATUS_TABLE, "0"),
        (DmFlag.IMA_MEASUREMENT, ""),
        (DmFlag(0), "1"),
    ):
        reply = client.ok("TABLE_STATUS", name="d", flags=flags)
        assert reply.payload == (TargetSpec(start=0, length=8, type="stale", params=expected),)
