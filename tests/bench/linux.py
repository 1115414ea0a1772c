"""Linux's control: long lists; commands among many devices.

A list is compared to packing its records with struct, their lengths known.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from time import process_time

from compare import Report, interleave

from dmproto import linux
from dmproto.commands import BY_NAME
from dmproto.records import Header, Message, Payloads, TargetSpec
from dmserver.control.linux import LinuxControl
from dmserver.control.session import Session
from dmserver.model.mapper import Mapper
from dmserver.targets.registry import TargetRegistry

MANY = 100_000


def run(report: Report) -> None:
    _long_list(report)
    _among_many(report)


class _Client:
    """A control node on a device-mapper with so many devices."""

    def __init__(self, devices: int) -> None:
        self.control = LinuxControl(Mapper(), TargetRegistry.installed())
        self.session = Session()
        for number in range(devices):
            self.control.mapper.create(f"device-{number:06}", f"LVM-{number:032}")

    def do(self, word: str, payload: Payloads = None, size: int = 0, **fields: str | int) -> Callable[[], bytes]:
        """A command that may be given again and again; it returns what is written back."""
        row = BY_NAME[word]
        header = Header(version=(4, 0, 0), **fields)
        request = linux.build(Message(command=row, header=header, payload=payload, size=size))

        def call() -> bytes:
            written: list[bytes] = []
            self.control.ioctl(self.session, row.ioctl, request, lambda result, reply: written.append(reply))
            return written[0]

        return call


def _long_list(report: Report) -> None:
    client = _Client(MANY)
    devices = client.control.mapper.sorted_by_name()
    pack = Struct("<QI16s4xII").pack

    def by_hand() -> bytes:
        return b"".join([pack(device.devt, 40, device.name_bytes, device.event_nr, 0) for device in devices])

    contestants = {"list": client.do("LIST_DEVICES", size=312 + 40 * MANY), "struct by hand": by_hand}
    medians = interleave(contestants, seconds=4, rounds=5, clock=process_time)
    report.add(f"LIST_DEVICES of {MANY}", medians, "list", ["struct by hand"], 3)


def _among_many(report: Report) -> None:
    """create, load, resume and remove, beside how many devices there are."""

    def lifecycle(devices: int) -> Callable[[], object]:
        client = _Client(devices)
        table = (TargetSpec(start=0, length=8, type="zero"),)
        steps = [
            client.do("DEV_CREATE", name="device-0500005"),
            client.do("TABLE_LOAD", table, name="device-0500005"),
            client.do("DEV_SUSPEND", name="device-0500005"),
            client.do("DEV_REMOVE", name="device-0500005"),
        ]
        return lambda: [step() for step in steps]

    medians = interleave({"many": lifecycle(MANY), "ten": lifecycle(10)}, seconds=4, rounds=15, clock=process_time)
    report.add(f"create..remove among {MANY}", medians, "many", ["ten"], 1.5)
