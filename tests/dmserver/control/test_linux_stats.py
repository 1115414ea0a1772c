"""The @stats_* messages, by the rules that no recording shows."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from support.linux_client import LinuxClient
from support.targets import ManualWork

from dmproto.records import TargetMessage, TargetSpec

ZERO = (TargetSpec(start=0, length=64, type="zero"),)


@pytest.fixture
def client() -> LinuxClient:
    return LinuxClient(work=ManualWork())


def _message(client: LinuxClient, text: str) -> Any:
    return client.ok("TARGET_MSG", TargetMessage(sector=0, message=text), name="d").payload


@pytest.mark.parametrize(
    "words",
    [
        "0+0 8",
        "8 8",
        "0+8 8 1",
        "0+8 8 1 bogus",
        "0+8 8 1 histogram:",
        "0+8 8 1 histogram:2,2",
        "0+8 8 2 histogram:1 histogram:2",
        "0+8 8 prog aux more",
        "18446744073709551615+8 1",
    ],
)
def test_malformed_regions_are_refused(client: LinuxClient, words: str) -> None:
    client.device("d", ZERO)
    message = TargetMessage(sector=0, message=f"@stats_create {words}")
    assert client.fails("TARGET_MSG", message, name="d") == errno.EINVAL
    assert client.mapper.events.lines[-1] == "device-mapper: stats: Invalid parameters for message @stats_create"


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("0+8388608 1 1 histogram:1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", errno.ENOMEM),
        ("0+153722867280912930 1", errno.ENOMEM),
        ("0+153722867280912931 1", errno.EOVERFLOW),
        ("0+18446744073709551615 1", errno.EOVERFLOW),
    ],
)
def test_too_many_areas_are_refused(client: LinuxClient, words: str, number: int) -> None:
    client.device("d", ZERO)
    message = TargetMessage(sector=0, message=f"@stats_create {words}")
    assert client.fails("TARGET_MSG", message, name="d") == number


def test_request_based_devices_have_statistics(client: LinuxClient) -> None:
    disk = client.mapper.by_dev((1, 0))
    assert disk
    disk.request_based = True
    client.device("d", (TargetSpec(start=0, length=8, type="multipath", params="0 0 1 1 round-robin 0 1 0 1:0"),))
    assert _message(client, "@stats_create - 8") == "0"
    assert _message(client, "@stats_list") == "0: 0+8 8 - -\n"


def test_the_last_area_is_printed_with_the_whole_step(client: LinuxClient) -> None:
    client.device("d", ZERO)
    assert _message(client, "@stats_create 4+20 16") == "0"
    assert [line.split()[0] for line in _message(client, "@stats_print 0").splitlines()] == ["4+16", "20+16"]


def test_an_answer_without_words_is_what_the_request_holds_there(client: LinuxClient) -> None:
    client.device("d", ZERO)
    reply = client.ok("TARGET_MSG", TargetMessage(sector=0x414243, message="@stats_list"), name="d")
    assert reply.payload == "CBA"


@pytest.mark.parametrize("words", ["-0", "4294967296", "-4294967296"])
def test_ids_wrap_at_32_bits(client: LinuxClient, words: str) -> None:
    client.device("d", ZERO)
    _message(client, "@stats_create - 64")
    assert str(_message(client, f"@stats_print {words}")).startswith("0+64 ")


@pytest.mark.parametrize("message", ["set_region_mappings 0:0", "@cancel_deferred_remove", "@stats_list"])
def test_every_message_points_data_start_at_the_reply(client: LinuxClient, message: str) -> None:
    client.device("d", (TargetSpec(start=0, length=64, type="switch", params="1 8 0 1:0 0"),))
    reply = client.ok("TARGET_MSG", TargetMessage(sector=0, message=message), name="d", data_start=320)
    assert reply.header.data_start == 312
