"""A client of Linux's control that speaks records: requests are built, replies parsed, by dmproto.linux."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from dmproto.commands import BY_NAME, Command
from dmproto.linux import build, parse
from dmproto.records import Header, Message, Payloads
from dmserver.control.linux import LinuxControl
from dmserver.control.session import Cancel, Session
from dmserver.io.disk import Disk
from dmserver.io.work import Work
from dmserver.model.mapper import Mapper
from dmserver.targets.registry import TargetRegistry

__all__ = ["LinuxClient", "Pending"]


@dataclass
class Pending:
    """A command that was started; `answers` gets (result, written) once it is answered."""

    command: Command
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    parked: Cancel | None = None

    @property
    def answer(self) -> tuple[int, bytes] | None:
        return self.answers[0] if self.answers else None

    def cancel(self) -> None:
        assert self.parked is not None
        self.parked()

    def ok(self) -> Message:
        """The reply of a command that succeeded, once."""
        ((result, written),) = self.answers
        assert result == 0
        return parse(written, self.command, reply=True)


class LinuxClient:
    """A device-mapper with ram disks 1:0 to 1:3 of 8 MiB, and an open control node."""

    VERSION: ClassVar[bytes] = b"\4\0\0\0\x2f\0\0\0\0\0\0\0"

    def __init__(self, *, work: Work | None = None) -> None:
        self.mapper = Mapper(work=work)
        for minor in range(4):
            self.mapper.disks.add(Disk(f"/dev/ram{minor}", (1, minor), "ram:8M"))
        self.control = LinuxControl(self.mapper, TargetRegistry.installed())
        self.session = Session()

    def start(self, command: str, payload: Payloads = None, /, **header: Any) -> Pending:
        """Issue a command that may be parked."""
        pending = Pending(BY_NAME[command])
        request = build(Message(command=pending.command, header=Header(**header), payload=payload))
        pending.parked = self.control.ioctl(
            self.session, pending.command.ioctl, request, lambda *answer: pending.answers.append(answer)
        )
        return pending

    def raw(self, command: str, payload: Payloads = None, /, **header: Any) -> tuple[int, bytes]:
        """(result, written) of a command that is answered at once."""
        answer = self.start(command, payload, **header).answer
        assert answer is not None
        return answer

    def ok(self, command: str, payload: Payloads = None, /, **header: Any) -> Message:
        """The reply of a command that succeeds at once."""
        return self.start(command, payload, **header).ok()

    def fails(self, command: str, payload: Payloads = None, /, **header: Any) -> int:
        """The errno of a command that fails at once."""
        result, _ = self.raw(command, payload, **header)
        assert result < 0
        return -result

    def device(self, name: str, table: Payloads, *, cookie: int = 0) -> None:
        """A device with a live table."""
        self.ok("DEV_CREATE", name=name)
        self.ok("TABLE_LOAD", table, name=name)
        self.ok("DEV_SUSPEND", name=name, event_nr=cookie)

    def rename(self, name: str, new: str) -> None:
        self.ok("DEV_RENAME", new, name=name)
