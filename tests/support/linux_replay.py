"""Replay of the recordings in specs/vectors/linux: the same steps on a fresh device-mapper, and what differs.

`replay(file)` gives one `Result` for each ioctl and each other step that was compared. What is masked is in
linux_masks.py, each with its reason; specs/fidelity.md counts them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from support.linux_machine import LinuxMachine, Step
from support.linux_masks import MASK_SEPARATOR, MASKS, NOT_LOGGED, SHELL
from support.linux_vectors import VECTORS, expand

from dmproto.commands import BY_NAME, Payload
from dmproto.linux import parse
from dmproto.records import TargetSpec, TargetVersion
from dmproto.wire import huge_decode
from dmserver.model.dm_dev import DmDev
from dmserver.model.keyring import Keyring

__all__ = ["FILES", "LinuxReplay", "Result", "Step", "replay", "steps"]

#: A key in a table: size in bytes, type, description.
_KEY = re.compile(rb" :([0-9]+):(logon|user):([^ ]+)")

FILES = sorted(path.stem for path in VECTORS.glob("*.jsonl"))


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one step. `what`: the command, or the operation. `masked`: what was left out of the comparison;
    `difference`: "" when all else is identical."""

    file: str
    line: int
    what: str
    types: tuple[str, ...] = ()
    masked: str = ""
    difference: str = ""

    def __str__(self) -> str:
        return f"{self.file}.jsonl:{self.line} {self.what}: {self.difference or 'identical'}"


def steps(file: str) -> list[Step]:
    return [json.loads(line) for line in (VECTORS / f"{file}.jsonl").read_text().splitlines()]


@cache
def replay(file: str) -> tuple[Result, ...]:
    """Replay one file from the start."""
    return tuple(LinuxReplay(file).run())


@dataclass
class Stream:
    """Recorded lines against ours: ours may come late or early, but all of them, and in order."""

    ours: list[Any] = field(default_factory=list)
    theirs: list[Any] = field(default_factory=list)

    def difference(self) -> str:
        common = min(len(self.ours), len(self.theirs))
        if self.ours[:common] != self.theirs[:common]:
            text = f"{self.ours[:common]} instead of {self.theirs[:common]}"
            self.clear()
            return text
        del self.ours[:common], self.theirs[:common]
        return ""

    def clear(self) -> None:
        self.ours.clear()
        self.theirs.clear()


class LinuxReplay:
    """The steps of one file on a fresh machine, and what differs."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.machine = LinuxMachine()
        self.mapper = self.machine.mapper
        self.work = self.machine.work
        self.in_program = False
        self.kmsg = Stream()
        self.uevents = Stream()
        self.mapper.events.on_log(self._logged)
        self.mapper.events.on_uevent(lambda event: self._sent(event.env))

    # -- the log and the uevents ------------------------------------------------------------------------

    def _logged(self, line: str) -> None:
        if not NOT_LOGGED.search(line):
            self.kmsg.ours.append(line)

    def _sent(self, env: dict[str, str]) -> None:
        shown = [(key, value) for key, value in env.items() if key not in ("DEVPATH", "DISKSEQ", "SEQNUM")]
        if env["SUBSYSTEM"] == "block" or not self.in_program:
            self.uevents.ours.append(shown)

    def _expect(self, step: Step) -> None:
        lines = [line for line in step.get("kmsg") or () if "device-mapper: " in line or line.startswith("md")]
        self.kmsg.theirs += [line for line in lines if not NOT_LOGGED.search(line)]
        self.uevents.theirs += [list(event.items()) for event in step.get("uevents") or () if self._is_ours(event)]

    def _is_ours(self, event: dict[str, str]) -> bool:
        """Programs also make loop devices; a bdi event does not tell whose it is."""
        if event["SUBSYSTEM"] == "bdi":
            return not self.in_program
        return event["SUBSYSTEM"] == "block" and event["DEVNAME"].startswith("dm-")

    # -- running ----------------------------------------------------------------------------------------

    def run(self) -> list[Result]:
        results = []
        for line, step in enumerate(steps(self.file), 1):
            results += self.step(line, step)
        for stream, what in ((self.kmsg, "kmsg"), (self.uevents, "uevents")):
            if stream.ours or stream.theirs:
                results.append(
                    Result(self.file, line, what, difference=f"left over: {stream.ours}, missing: {stream.theirs}")
                )
        return results

    def step(self, line: int, step: Step) -> Iterator[Result]:
        """Do one step; a program's ioctls are steps of their own."""
        op = step["op"]
        if op in ("dmsetup", "run", "readfile"):
            yield from self._program(line, step)
        elif op == "exec":
            self.work.run()
            if act := SHELL.get((self.file, line)):
                act(self.mapper)
            self.uevents.clear()
        else:
            yield self._compare(line, step)

    def _program(self, line: int, step: Step) -> Iterator[Result]:
        """What the ioctls log and send is recorded with the program, not with each of them."""
        self.in_program = step["op"] == "run"
        for ioctl in step.get("ioctls") or ():
            yield self._compare(line, {"op": "ioctl", "nested": True, "in_program": self.in_program, **ioctl})
        self.work.run()
        self._expect(step)
        difference = self._streams_differ()
        self.in_program = False
        if difference:
            yield Result(self.file, line, step["op"], difference=difference)

    def _streams_differ(self) -> str:
        streams = (("kmsg", self.kmsg), ("uevents", self.uevents))
        return "".join(f"; {name} {text}" for name, stream in streams if (text := stream.difference()))

    def _compare(self, line: int, step: Step) -> Result:
        what = step.get("cmd") or step["op"]
        if step["op"] == "ioctl" and what not in BY_NAME:
            what = "unknown command"
        masked = self._hidden(step)
        self._find_keys(step)
        self._modprobe(step)
        outcome = self.machine.do(step)
        self.work.run()
        self._expect(step)
        recorded = _recorded(step)
        _complete_written(step, outcome, recorded)
        masked = masked or self._mask(step, outcome, recorded)
        difference = "; ".join(
            _contrast(key, outcome.get(key), value) for key, value in recorded.items() if outcome.get(key) != value
        )
        if "nested" not in step:
            difference += self._streams_differ()
        return Result(self.file, line, what, _types(step), masked=masked, difference=difference)

    def _find_keys(self, step: Step) -> None:
        """A table that was taken names keys that were in the machine's keyring; no recording tells more than their
        size."""
        if step.get("cmd") == "TABLE_LOAD" and step["errno"] == "0":
            keyring = self.mapper.shared.setdefault(Keyring, Keyring())
            assert isinstance(keyring, Keyring)
            for size, kind, description in _KEY.findall(expand(step["request"])):
                keyring.setdefault((kind.decode(), description.decode()), bytes(int(size)))

    def _modprobe(self, step: Step) -> None:
        """A program may have loaded the modules whose types it is told of."""
        if step.get("cmd") == "LIST_VERSIONS" and step["errno"] == "0" and step.get("in_program"):
            for name in reversed(_listed(step)):
                self.machine.registry.get(name)

    def _hidden(self, step: Step) -> str:
        """A creation or load that the recording leaves out shows in the uevents of later steps: the disk was there."""
        events = [event for event in step.get("uevents") or () if event.get("DEVNAME", "").startswith("dm-")]
        had_disk = {int(event["MINOR"]) for event in events if event["ACTION"] == "remove" and "cmd" in step}
        if unknown := had_disk - set(self.mapper.devices):
            numbers = [str(minor) for minor in unknown]
            at = next(at for at, event in enumerate(step["uevents"]) if event.get("MINOR") in numbers)
            step["uevents"] = step["uevents"][: at - 1] + step["uevents"][at + 1 :]
            return self._hidden(step) or "removes a device whose creation is not in the recording"
        if step.get("cmd") == "TABLE_LOAD" and step["errno"] == "0" and "nested" not in step:
            device = self._device(step)
            if device and not any(event["ACTION"] == "add" for event in events):
                had_disk.add(device.minor)
        hidden = [device for minor in had_disk if (device := self.mapper.devices.get(minor)) and not device.has_disk]
        for device in hidden:
            device.has_disk = True
        return "the disk is there already: a load before is not in the recording" if hidden else ""

    def _mask(self, step: Step, ours: Step, theirs: Step) -> str:
        """Blank what may differ, where it does; returns what that was."""
        masked = []
        for mask in MASKS:
            both = (ours.get("written") or b"", theirs.get("written") or b"")
            if both[0] != both[1] and min(map(len, both)) > 12 and mask.applies({"file": self.file, **step}):
                ours["written"], theirs["written"] = map(mask.blank, both)
                masked.append(mask.field)
        return MASK_SEPARATOR.join(masked)

    def _device(self, step: Step) -> DmDev | None:
        if "request" in step:
            buffer = expand(step["request"])
            name, uuid = _requested_name(step), _requested_name(step, 176)
            if name or uuid:
                return self.mapper.by_name(name) or self.mapper.by_uuid(uuid)
            major, minor = huge_decode(int.from_bytes(buffer[40:48], "little"))
            return self.mapper.devices.get(minor) if major == self.mapper.major else None
        if str(step.get("dev", "")).startswith("253:"):
            return self.mapper.devices.get(int(step["dev"][4:]))
        return None

    # -- steps ------------------------------------------------------------------------------------------


def _listed(step: Step) -> list[str]:
    """The target types in a recorded reply."""
    payload = parse(expand(step["written"]), BY_NAME["LIST_VERSIONS"], reply=True).payload
    return [entry.name for entry in payload or () if isinstance(entry, TargetVersion)]


def _requested_name(step: Step, at: int = 48) -> str:
    buffer = expand(step["request"])
    return buffer[at : buffer.find(0, at)].decode("utf-8", "surrogateescape")


def _recorded(step: Step) -> Step:
    """What of a recorded step is compared."""
    if step["op"] in ("ioctl_bg",):
        return {}
    recorded = {key: step[key] for key in ("errno", "rc", "sha256", "reply", "revents") if key in step}
    if "written" in step:
        recorded["written"] = expand(step["written"])
        recorded.pop("rc", None)
    elif step["op"] == "join" and step["errno"] in ("ETIMEDOUT", "EINTR"):
        recorded.pop("rc")
    return recorded


def _complete_written(step: Step, outcome: Step, recorded: Step) -> None:
    """Of a program's ioctl only the bytes up to the last one that changed were seen: where ours goes on, it must leave
    the caller's bytes as they were."""
    ours, theirs = outcome.get("written"), recorded.get("written")
    if "nested" in step and step["errno"] != "0" and isinstance(ours, bytes) and isinstance(theirs, bytes):
        request = expand(step["request"])[: len(ours)].ljust(len(ours), b"\0")
        recorded["written"] = theirs + request[len(theirs) :] if len(ours) > len(theirs) else theirs


def _types(step: Step) -> tuple[str, ...]:
    """The target types that a load or a status tells of."""
    command = BY_NAME.get(step.get("cmd", ""))
    if command is None or Payload.TARGET_SPECS not in (command.takes, command.gives) or step.get("errno") != "0":
        return tuple(dict.fromkeys(target[2] for target in step.get("targets") or ()))
    reply = command.gives is Payload.TARGET_SPECS
    if "written" not in step:
        return ()
    message = parse(expand(step["written" if reply else "request"]), command, reply=reply)
    return tuple(dict.fromkeys(spec.type for spec in message.payload or () if isinstance(spec, TargetSpec)))


def _contrast(key: str, ours: object, theirs: object) -> str:
    """How two values differ; of bytes, the lengths and the first run of different bytes."""
    if not (isinstance(ours, bytes) and isinstance(theirs, bytes)):
        return f"{key} {ours!r} instead of {theirs!r}"
    at = next((at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), -1)
    where = f"at {at}: {ours[at : at + 64]!r} instead of {theirs[at : at + 64]!r}" if at >= 0 else "alike so far"
    return f"{key} of {len(ours)} bytes instead of {len(theirs)}, {where}"
