"""Whatever several clients do, the device-mapper keeps its books: after every command the reference counts are what
the tables say, slots and flags agree, event numbers only grow, minors are unique, and no device is lost.

`MUTANTS` are bugs; each is found by the same machine within its budget.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.linux_client import LinuxClient
from support.targets import ManualWork

from dmproto.commands import BY_NAME
from dmproto.flags import DmFlag
from dmproto.linux import build
from dmproto.records import Header, Message, TargetSpec
from dmproto.stream import binary_reply, binary_request
from dmproto.wire import huge_encode
from dmserver.answers import Answers
from dmserver.control import linux_status, linux_table
from dmserver.control.linux import LinuxControl
from dmserver.control.linux_call import Call
from dmserver.control.session import Session
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_pdev import PdevList
from dmserver.model.dm_table import DmTable
from dmserver.model.mapper import Mapper
from dmserver.model.minors import LowestFree

SETTINGS = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)

#: Names that devices can have, and others.
NAMES = st.sampled_from([*"aabbcc", "d/e", ""])

#: Mostly names that devices do have, so that most commands do something.
KNOWN = st.runner().flatmap(lambda machine: st.sampled_from([*sorted(machine.shadows) * 4, "a", "b", "c", "d/e", ""]))
UUIDS = st.sampled_from(["", "", "u", "v"])
GOOD = [("zero", ""), ("error", ""), ("linear", "1:0 0"), ("linear", "1:1 8"), ("striped", "2 4 1:1 0 1:2 0")]
#: Some of them work only sometimes.
BAD = [
    ("linear", "/dev/ram0 16"),
    ("linear", "/dev/ram0 16384"),
    ("linear", "253:0 0"),
    ("linear", "253:1 0"),
    ("striped", "2 4 1:1 0 9:9 0"),
    ("linear", "1:3"),
    ("nosuch", ""),
]
GOOD_LINES = st.lists(st.sampled_from(GOOD), min_size=1, max_size=3)
LINES = st.lists(st.sampled_from(GOOD + BAD), min_size=1, max_size=3)


@dataclass
class Shadow:
    """What the machine believes of a device."""

    uuid: str
    minor: int
    live: int = 0
    inactive: int = 0
    suspended: bool = False
    deferred: bool = False


def _tell(replies: list[bytes], result: int, written: bytes) -> None:
    replies.append(binary_reply(result, written))


class Machine(RuleBasedStateMachine):
    """Three control nodes on one device-mapper, and programs that open its devices."""

    @initialize()
    def begin(self) -> None:
        self.client = LinuxClient(work=ManualWork())
        control = self.client.control
        self.answers = Answers(control.mapper, partial(LinuxControl.quick, control))
        control.quick = lambda *request: None  # type: ignore[method-assign]  # commands go the long way
        self.sessions = [Session() for _ in range(3)]
        self.shadows: dict[str, Shadow] = {}
        self.opened: list[DmDev] = []
        self.event_nrs: dict[DmDev, int] = {}
        self.global_nr = 0
        self.waits = 0

    def ioctl(self, command: str, payload: Any = None, **header: Any) -> Message | None:
        """The reply, or None when the command failed."""
        self.client.session = self.sessions[self.global_nr % 3]
        pending = self.client.start(command, payload, **header)
        self.client.mapper.work.run()  # type: ignore[attr-defined]  # it is the ManualWork
        if pending.answer is None:
            pending.cancel()
        assert len(pending.answers) == 1
        return pending.ok() if pending.answers[0][0] == 0 else None

    def gone(self) -> None:
        """Forget what is not there any more, but only what may go: removed, or marked and closed."""
        for name, shadow in list(self.shadows.items()):
            device = self.client.mapper.devices.get(shadow.minor)
            if shadow.deferred and (device is None or device.name != name):
                del self.shadows[name]

    @rule(name=st.sampled_from("abc"), lines=GOOD_LINES)
    def activate(self, name: str, lines: list[tuple[str, str]]) -> None:
        """The usual way, in one step."""
        if name not in self.shadows:
            self.create(name=name, uuid="", minor=None)
        self.load(name=name, lines=lines)
        self.suspend(name=name, suspend=False)

    @rule(name=NAMES, uuid=UUIDS, minor=st.sampled_from([None, None, 0, 1, 7]))
    def create(self, name: str, uuid: str, minor: int | None) -> None:
        flags = 0 if minor is None else DmFlag.PERSISTENT_DEV
        reply = self.ioctl("DEV_CREATE", name=name, uuid=uuid, flags=flags, dev=huge_encode((0, minor or 0)))
        taken = {shadow.minor for shadow in self.shadows.values()}
        uuids = {shadow.uuid for shadow in self.shadows.values() if shadow.uuid}
        free = minor not in taken and name not in self.shadows and uuid not in uuids and name in ("a", "b", "c")
        assert (reply is not None) == free
        if reply:
            lowest = next(number for number in range(9) if number not in taken)
            chosen = lowest if minor is None else minor
            assert reply.header.dev == huge_encode((253, chosen))
            self.shadows[name] = Shadow(uuid, chosen)

    @rule(name=KNOWN, deferred=st.booleans())
    def remove(self, name: str, deferred: bool) -> None:
        openers = self._openers(name)
        reply = self.ioctl("DEV_REMOVE", name=name, flags=DmFlag.DEFERRED_REMOVE * deferred)
        assert (reply is not None) == (name in self.shadows and (deferred or not openers))
        if reply and openers:
            self.shadows[name].deferred = True
        elif reply:
            del self.shadows[name]
        self.gone()

    def _openers(self, name: str) -> int:
        device = self.client.mapper.by_name(name)
        return device.openers if device else 0

    @precondition(lambda self: len(self.shadows) == 3)
    @rule()
    def remove_all(self) -> None:
        self.ioctl("REMOVE_ALL")
        for name in list(self.shadows):
            if not self._openers(name) and self.client.mapper.by_name(name) is None:
                del self.shadows[name]
        assert all(self._openers(name) for name in self.shadows)

    @rule(name=KNOWN, new=NAMES)
    def rename(self, name: str, new: str) -> None:
        reply = self.ioctl("DEV_RENAME", new, name=name)
        assert (reply is not None) == (name in self.shadows and new in ("a", "b", "c") and new not in self.shadows)
        if reply:
            self.shadows[new] = self.shadows.pop(name)

    @rule(name=KNOWN, uuid=UUIDS)
    def set_uuid(self, name: str, uuid: str) -> None:
        reply = self.ioctl("DEV_RENAME", uuid, name=name, flags=DmFlag.UUID)
        shadow = self.shadows.get(name)
        taken = uuid in {each.uuid for each in self.shadows.values()}
        assert (reply is not None) == bool(shadow and not shadow.uuid and uuid and not taken)
        if reply and shadow:
            shadow.uuid = uuid

    @rule(name=KNOWN, lines=LINES)
    def load(self, name: str, lines: list[tuple[str, str]]) -> None:
        specs = tuple(TargetSpec(start=8 * at, length=8, type=t, params=p) for at, (t, p) in enumerate(lines))
        reply = self.ioctl("TABLE_LOAD", specs, name=name)
        if reply:
            self.shadows[name].inactive = len(lines)

    @rule(name=KNOWN)
    def clear(self, name: str) -> None:
        if self.ioctl("TABLE_CLEAR", name=name):
            self.shadows[name].inactive = 0
        self.gone()

    @rule(name=KNOWN, suspend=st.booleans())
    def suspend(self, name: str, suspend: bool) -> None:
        reply = self.ioctl("DEV_SUSPEND", name=name, flags=DmFlag.SUSPEND * suspend)
        shadow = self.shadows.get(name)
        if shadow is None:
            assert reply is None
        elif suspend:
            assert reply is not None
            shadow.suspended = True
        else:
            self._resumed(shadow, reply is not None)
        self.gone()

    def _resumed(self, shadow: Shadow, succeeded: bool) -> None:
        nothing_to_resume = shadow.suspended and not (shadow.live or shadow.inactive)
        dropped = bool(shadow.inactive) and not succeeded  # it did not fit; the device stays suspended
        assert succeeded != (nothing_to_resume or dropped)
        if shadow.inactive:
            shadow.live = shadow.live if dropped else shadow.inactive
            shadow.inactive, shadow.suspended = 0, dropped
        elif succeeded:
            shadow.suspended = False

    @rule(name=KNOWN)
    def wait(self, name: str) -> None:
        """Returns at once, or is interrupted."""
        self.ioctl("DEV_WAIT", name=name, event_nr=0)

    @rule(name=KNOWN)
    def open(self, name: str) -> None:
        device = self.client.mapper.by_name(name)
        if device and device.has_disk:
            device.open()
            self.opened.append(device)

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if self.opened:
            self.opened.pop(data.draw(st.integers(0, len(self.opened) - 1))).close()
            self.client.mapper.work.run()
            self.gone()
            assert all(self._openers(name) for name, shadow in self.shadows.items() if shadow.deferred)

    # -- what holds after each of them ------------------------------------------------------------------

    @invariant()
    def no_device_is_lost_and_minors_are_unique(self) -> None:
        listed = self.ioctl("LIST_DEVICES", flags=DmFlag.UUID)
        assert listed is not None
        assert isinstance(listed.payload, tuple)
        found = [(entry.name, entry.uuid, entry.dev) for entry in listed.payload]
        assert found == [(name, each.uuid, (253, each.minor)) for name, each in sorted(self.shadows.items())]
        assert len({dev for _, _, dev in found}) == len(found) == len(self.client.mapper.devices)

    @invariant()
    def slots_and_flags_agree(self) -> None:
        for name, shadow in self.shadows.items():
            for flag, targets in ((0, shadow.live), (DmFlag.QUERY_INACTIVE, shadow.inactive)):
                reply = self.ioctl("DEV_STATUS", name=name, flags=flag)
                assert reply is not None
                flags = reply.header.flags
                assert reply.header.target_count == targets
                assert bool(flags & DmFlag.ACTIVE_PRESENT) == bool(shadow.live)
                assert bool(flags & DmFlag.INACTIVE_PRESENT) == bool(shadow.inactive)
                assert bool(flags & DmFlag.SUSPEND) == shadow.suspended
                assert bool(flags & DmFlag.DEFERRED_REMOVE) == shadow.deferred

    @invariant()
    def what_is_known_is_right(self) -> None:
        command, session = BY_NAME["DEV_STATUS"], Session()
        for name in "abc":
            buffer = build(Message(command=command, header=Header(name=name), size=312))
            message = binary_request(command.ioctl, buffer)
            told: list[bytes] = []
            self.client.control.ioctl(session, command.ioctl, buffer, partial(_tell, told))
            known = self.answers.get(message) or self.answers.find(session, command.ioctl, buffer, message)
            assert known == (told[0] if name in self.shadows else None)

    @invariant()
    def references_are_what_the_tables_say(self) -> None:
        """Counted from the parameters that the tables show, not from what the model remembers."""
        references: Counter[str] = Counter()
        users: dict[str, set[str]] = {}
        for name in self.shadows:
            for flag in (0, DmFlag.QUERY_INACTIVE):
                reply = self.ioctl("TABLE_STATUS", name=name, flags=DmFlag.STATUS_TABLE | flag)
                assert reply is not None
                for spec in reply.payload or ():
                    for number in re.findall(r"\d+:\d+", spec.params):
                        references[number] += 1
                        users.setdefault(number, set()).add(name)
        mapper = self.client.mapper
        assert references == {pdev.number: pdev.ref_cnt for pdev in mapper.pdevs}
        held = Counter(device.dev[1] for device in self.opened if not device.removed)
        for bdev in (*mapper.disks, *mapper.devices.values()):
            major, minor = bdev.dev
            programs = held[minor] if major == 253 else 0
            assert bdev.openers == len(users.get(f"{major}:{minor}", ())) + programs

    @invariant()
    def event_numbers_only_grow(self) -> None:
        mapper = self.client.mapper
        for device in mapper.devices.values():
            assert device.event_nr >= self.event_nrs.get(device, 0)
            self.event_nrs[device] = device.event_nr
        assert mapper.events.global_nr >= self.global_nr
        self.global_nr = mapper.events.global_nr


def test_the_books_are_kept() -> None:
    run_state_machine_as_test(Machine, settings=SETTINGS)


# -- mutants ------------------------------------------------------------------------------------------------


def _leak_of_the_inactive_table(patch: pytest.MonkeyPatch) -> None:
    remove = Mapper.remove

    def mutant(self: Mapper, dev: DmDev) -> None:
        if dev.live:
            dev.inactive = None
        remove(self, dev)

    patch.setattr(Mapper, "remove", mutant)


def _leak_of_a_replaced_table(patch: pytest.MonkeyPatch) -> None:
    load = linux_table._populate

    def mutant(call: Call, table: DmTable) -> None:
        load(call, table)
        table.device.inactive = None

    patch.setattr(linux_table, "_populate", mutant)


def _references_of_a_failed_constructor_stay(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: DmTable, kind: Any, begin: int, length: int, argv: Any) -> None:
        target = kind(self, begin, length)
        try:
            target.ctr(argv)
        except BaseException:
            self.pdevs.clear()
            raise
        self.targets.append(target)
        self._ends.append(begin + length)
        self.size += length

    patch.setattr(DmTable, "add_target", mutant)


def _one_reference_each(patch: pytest.MonkeyPatch) -> None:
    incr = PdevList.incr

    def mutant(self: PdevList, key: Any, path: str, bdev: Any, user: Any) -> Any:
        return self.find(key) or incr(self, key, path, bdev, user)

    patch.setattr(PdevList, "incr", mutant)


def _minors_used_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LowestFree, "reserve", lambda self, minor: True)


def _freed_minors_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LowestFree, "free", lambda self, minor: self._taken.remove(minor))


def _renamed_device_lost(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: Mapper, dev: DmDev, name: str) -> None:
        self._unlink(dev)
        dev.name = name

    patch.setattr(Mapper, "rename", mutant)


def _uuid_not_freed(patch: pytest.MonkeyPatch) -> None:
    unlink = Mapper._unlink

    def mutant(self: Mapper, dev: DmDev) -> None:
        unlink(self, dev)
        if dev.uuid:
            self.uuids[dev.uuid_bytes] = dev

    patch.setattr(Mapper, "_unlink", mutant)


def _swapped_table_in_both_slots(patch: pytest.MonkeyPatch) -> None:
    swap = DmDev.swap

    def mutant(self: DmDev) -> DmTable | None:
        old = swap(self)
        self.inactive = self.live
        return old

    patch.setattr(DmDev, "swap", mutant)


def _old_table_kept(patch: pytest.MonkeyPatch) -> None:
    swap = DmDev.swap

    def mutant(self: DmDev) -> None:
        swap(self)

    patch.setattr(DmDev, "swap", mutant)


def _event_numbers_wrap(patch: pytest.MonkeyPatch) -> None:
    event = DmDev.event

    def mutant(self: DmDev) -> None:
        event(self)
        self.event_nr %= 2

    patch.setattr(DmDev, "event", mutant)


def _deferred_removal_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DmDev, "last_close", lambda self: None)


def _resume_forgets_to_run(patch: pytest.MonkeyPatch) -> None:
    resume = DmDev.resume

    def mutant(self: DmDev) -> None:
        resume(self)
        self.suspended = bool(self.event_nr)

    patch.setattr(DmDev, "resume", mutant)


def _inactive_flag_stuck(patch: pytest.MonkeyPatch) -> None:
    find = Call.find_device

    def mutant(self: Call) -> DmDev:
        device = find(self)
        if device.event_nr:
            self.set(DmFlag.INACTIVE_PRESENT)
        return device

    patch.setattr(Call, "find_device", mutant)


def _a_last_close_unnoticed(patch: pytest.MonkeyPatch) -> None:
    notice = DmDev.__setattr__

    def mutant(self: DmDev, name: str, value: object) -> None:
        generation = self.mapper.generation if name == "_openers" else None
        notice(self, name, value)
        if generation is not None and value == 0:
            self.mapper.generation = generation

    patch.setattr(DmDev, "__setattr__", mutant)


def _wait_answered_twice(patch: pytest.MonkeyPatch) -> None:
    interrupt = linux_status.Wait._interrupt

    def mutant(self: linux_status.Wait) -> None:
        interrupt(self)
        self.call.finish(-4)

    patch.setattr(linux_status.Wait, "_interrupt", mutant)


MUTANTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    _a_last_close_unnoticed,
    _leak_of_the_inactive_table,
    _leak_of_a_replaced_table,
    _references_of_a_failed_constructor_stay,
    _one_reference_each,
    _minors_used_twice,
    _freed_minors_forgotten,
    _renamed_device_lost,
    _uuid_not_freed,
    _swapped_table_in_both_slots,
    _old_table_kept,
    _event_numbers_wrap,
    _deferred_removal_forgotten,
    _resume_forgets_to_run,
    _inactive_flag_stuck,
    _wait_answered_twice,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__.strip("_"))
def test_a_planted_bug_is_found(mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever it breaks, it shows
        run_state_machine_as_test(Machine, settings=settings(SETTINGS, phases=(Phase.generate,), print_blob=False))
