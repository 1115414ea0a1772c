"""The filter, run by an interpreter of the few instructions it uses (linux/filter.h)."""

from __future__ import annotations

import os
from struct import Struct, iter_unpack, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.bridge.rules import IOCTL_TYPES, SYSCALL_RULES
from dmserver.bridge.seccomp import RET_ALLOW, RET_USER_NOTIF, build_filter, waits_killable
from dmserver.bridge.syscalls import MACHINES, SYSCALLS, Machine

SECCOMP_DATA = Struct("=IIQ6Q")
NAMES = [name for rule in SYSCALL_RULES for name in rule.names]
LOAD, JUMP_EQUAL, RETURN, SHIFT_RIGHT, AND = 0x20, 0x15, 0x06, 0x74, 0x54


def verdict(program: bytes, nr: int, arch: int, *args: int) -> int:
    data = SECCOMP_DATA.pack(nr, arch, 0, *(args + (0,) * (6 - len(args))))
    code = list(iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        operation, jump_true, jump_false, k = code[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = unpack_from("=I", data, k)[0]
            case 0x15:
                at += jump_true if accumulator == k else jump_false
            case 0x74:
                accumulator >>= k
            case 0x54:
                accumulator &= k
            case 0x06:
                return k
            case _:
                raise AssertionError(f"instruction {operation:#x}")


@pytest.fixture(params=list(MACHINES))
def cpu(request: pytest.FixtureRequest) -> Machine:
    return MACHINES[request.param]


@pytest.fixture
def program(cpu: Machine) -> bytes:
    return build_filter(NAMES, IOCTL_TYPES, cpu)


def test_every_named_call_is_notified(cpu: Machine, program: bytes) -> None:
    for name in NAMES:
        number = cpu.number(name)
        if number is not None and name != "ioctl":
            assert verdict(program, number, cpu.audit_arch) == RET_USER_NOTIF, name


def test_other_machines_are_left_alone(cpu: Machine, program: bytes) -> None:
    number = cpu.number("openat")
    assert number is not None
    assert verdict(program, number, cpu.audit_arch ^ 1) == RET_ALLOW


@pytest.mark.parametrize("name", MACHINES)
@given(number=st.integers(0, 1 << 31), request=st.integers(0, (1 << 64) - 1))
def test_nothing_else_is_notified(name: str, number: int, request: int) -> None:
    cpu = MACHINES[name]
    program = build_filter(NAMES, IOCTL_TYPES, cpu)
    wanted = {cpu.number(name) for name in NAMES} - {cpu.number("ioctl")}
    assert (verdict(program, number, cpu.audit_arch) == RET_USER_NOTIF) is (number in wanted)
    ioctl = cpu.number("ioctl")
    assert ioctl is not None
    notified = verdict(program, ioctl, cpu.audit_arch, 3, request) == RET_USER_NOTIF
    assert notified is ((request >> 8 & 0xFF) in IOCTL_TYPES)


def test_numbers_are_one_to_one() -> None:
    for column in (0, 1):
        numbers = [row[column] for row in SYSCALLS.values() if row[column] is not None]
        assert len(set(numbers)) == len(numbers)


def test_what_the_kernel_can_do_is_what_its_version_says() -> None:
    major, minor = os.uname().release.split(".")[:2]
    assert waits_killable() is ((int(major), int(minor)) >= (5, 19))
