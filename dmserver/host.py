"""One device-mapper with its kernel's rules: what every door (socket, bridge, NBD, FUSE) talks to.

| personality | a binary request                              | a dictionary                                          |
|-------------|-----------------------------------------------|-------------------------------------------------------|
| `auto`      | Linux's rules                                 | NetBSD's, mended; verbs its driver lacks: Linux's     |
| `linux`     | Linux's rules                                 | translated, Linux's rules, the reply translated back  |
| `netbsd`    | translated, NetBSD's, the reply translated back | NetBSD's, as shipped                                |
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, get_args

from dmproto.commands import BY_VERB, COMMANDS, CommandFlag

from .control.linux import LinuxControl
from .control.session import Cancel, Session
from .io.disks import LOOP_MAJOR, VND_MAJOR, Disks
from .io.work import ThreadWork
from .model.mapper import Mapper
from .model.minors import EverGrowing, LowestFree
from .targets.registry import TargetRegistry

if TYPE_CHECKING:
    from .control.netbsd import NetbsdControl
    from .io.blockdev import BlockDevice
    from .model.dm_dev import DmDev

__all__ = ["LINUX_MAJOR", "NETBSD_MAJOR", "Host", "Personality"]

Personality = Literal["auto", "linux", "netbsd"]

#: Device-mapper's block major.
LINUX_MAJOR, NETBSD_MAJOR = 253, 169


_EXTENSIONS = ("pdevs", "log")

#: Commands that change no device and no table.
_QUERIES = frozenset(
    {
        "VERSION",
        "LIST_DEVICES",
        "DEV_STATUS",
        "DEV_WAIT",
        "TABLE_DEPS",
        "TABLE_STATUS",
        "LIST_VERSIONS",
        "DEV_ARM_POLL",
        "GET_TARGET_VERSION",
    }
)
_QUERY_NUMBERS = frozenset(command.number for command in COMMANDS if command.name in _QUERIES)
_QUERY_VERBS = frozenset(verb for command in COMMANDS if command.name in _QUERIES for verb in command.verbs)

#: Verbs that only Linux's rules know, and those that NetBSD lets anyone use.
_LINUX_VERBS = frozenset(verb for verb, command in BY_VERB.items() if CommandFlag.NETBSD not in command.flags)
_ANYONES_VERBS = frozenset(verb for verb, command in BY_VERB.items() if CommandFlag.ANYONE in command.flags)

_Reply = ParamSpec("_Reply")


class Host:
    """A device-mapper. `major` is its block major, by default the kernel's own; `registry` holds the target types.

    Requests are answered through `done`, at once or later; a parked one returns the function that ends it with EINTR.
    """

    def __init__(
        self, personality: Personality = "auto", *, major: int | None = None, registry: TargetRegistry | None = None
    ) -> None:
        if personality not in get_args(Personality):
            raise ValueError(f"personality {personality!r}: expected one of {', '.join(get_args(Personality))}")
        netbsd = personality == "netbsd"
        self.personality = personality
        self.registry = TargetRegistry.installed() if registry is None else registry
        self._work = ThreadWork()
        self.mapper = Mapper(
            work=self._work,
            major=major or (NETBSD_MAJOR if netbsd else LINUX_MAJOR),
            minors=EverGrowing() if netbsd else LowestFree(),
            disks=Disks(file_major=VND_MAJOR if netbsd else LOOP_MAJOR),
        )
        #: Counts what may have changed devices or tables.
        self.changes = 0
        self.mapper.on_remove.append(self._changed)
        self.linux = LinuxControl(self.mapper, self.registry)

    @cached_property
    def netbsd(self) -> NetbsdControl:
        """NetBSD's rules; they and its dictionary are not even imported for a client of Linux's."""
        from .control.netbsd import NetbsdControl

        return NetbsdControl(self.mapper, self.registry, mended=self.personality != "netbsd")

    def add_pdev(self, text: str) -> BlockDevice:
        """Declare `DEVICE=BACKING[,dev=MAJ:MIN][,ro]`; BACKING is a file, a block device, or `ram:SIZE`. ValueError
        when it is malformed or taken, OSError when the backing cannot be used."""
        return self.mapper.disks.declare(text)

    def open(self, *, privileged: bool = True) -> Session:
        """Open a control node."""
        return Session(privileged=privileged, event_nr=self.mapper.events.global_nr)

    def ioctl(self, session: Session, number: int, buffer: bytes, done: Callable[[int, bytes], None]) -> Cancel | None:
        """A binary request: the whole ioctl number and the caller's whole buffer. `done(result, written)` gets 0 or
        -errno, and the prefix of the buffer that is written back."""
        if number & 0xFF not in _QUERY_NUMBERS:
            done = self._count(done)
        if self.personality == "netbsd":
            from .control.translated import ioctl_to_netbsd

            return ioctl_to_netbsd(self.netbsd, session, number, buffer, done)
        return self.linux.ioctl(session, number, buffer, done)

    def quick(self, session: Session, number: int, buffer: bytes) -> bytes | None:
        """What is written back, if that is sure to depend on the request and on `Mapper.generation` alone; None: it is
        for `ioctl` to tell."""
        return None if self.personality == "netbsd" else self.linux.quick(session, number, buffer)

    def dictionary(self, session: Session, request: object, done: Callable[[dict[str, Any]], None]) -> Cancel | None:
        """A dictionary request, which becomes the reply. That holds `errno` and `error` when the command failed."""
        if not isinstance(request, dict):
            from dmproto.objects import describe

            _refuse({}, done, errno.EIO, f"expected a dictionary, got {describe(request)}")
            return None
        verb = request.get("command")
        if not isinstance(verb, str):
            verb = ""
        if verb in _EXTENSIONS:
            self._extension(session, request, done)
            return None
        if verb not in _QUERY_VERBS:
            done = self._count(done)
        if not session.privileged:
            done = _without_secrets(done)
        if self.personality == "netbsd" or (
            self.personality == "auto" and (verb not in _LINUX_VERBS or not session.privileged)
        ):
            return self.netbsd.dictionary(session, request, done)
        if not session.privileged and verb not in _ANYONES_VERBS:
            from dmproto.objects import describe

            _refuse(request, done, errno.EPERM, f"command {describe(verb)} needs the superuser")
            return None
        if not session.privileged:
            session = self.open()
        from .control.translated import dictionary_to_linux

        return dictionary_to_linux(self.linux, session, request, done)

    def _extension(self, session: Session, request: dict[str, Any], done: Callable[[dict[str, Any]], None]) -> None:
        """The commands that are ours: `pdevs` lists the physical devices, newest first, `log` the kernel's log."""
        from dmproto.proplib import Unsigned

        if request["command"] == "pdevs":
            request["cmd_data"] = [
                {
                    "path": pdev.path,
                    "dev": pdev.number,
                    "ref_cnt": Unsigned(pdev.ref_cnt),
                    "size": Unsigned(pdev.bdev.size),
                }
                for pdev in self.mapper.pdevs
            ]
        elif session.privileged:
            request["cmd_data"] = list(self.mapper.events.lines)
        else:
            _refuse(request, done, errno.EPERM, "command 'log' needs the superuser")
            return
        done(request)

    def _changed(self, device: DmDev) -> None:
        self.changes += 1

    def _count(self, done: Callable[_Reply, None]) -> Callable[_Reply, None]:
        def counted(*reply: _Reply.args, **keys: _Reply.kwargs) -> None:
            self.changes += 1
            done(*reply, **keys)

        return counted

    def close(self) -> None:
        """Stop the worker threads and free the disks. Devices are forgotten, as at a reboot."""
        self._work.close()
        self.mapper.disks.close()


def _refuse(request: dict[str, Any], done: Callable[[dict[str, Any]], None], number: int, sentence: str) -> None:
    from .control.netbsd_call import Call, Refusal

    Call(request, done).finish(Refusal(number, sentence))


def _without_secrets(done: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """NetBSD shows anyone a table, and has no targets with keys in it; those of Linux are blotted out."""

    from dmproto.parameters import redact

    def redacted(reply: dict[str, Any]) -> None:
        entries = reply.get("cmd_data")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("params"), str):
                entry["params"] = redact(str(entry.get("type")), entry["params"])
        done(reply)

    return redacted
