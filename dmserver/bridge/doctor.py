"""`dmserver doctor`: what this machine allows, and what follows from it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec

from dmproto.output import print_lines

from .launch import enter, receive_listener
from .syscalls import MACHINES

__all__ = ["CHECKS", "Finding", "add_arguments", "examine", "main"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `follows` says what works, or does not, because of it."""

    what: str
    ok: bool
    found: str
    follows: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def main(args: argparse.Namespace) -> int:
    """Print the findings; 0 when `dmserver run` can work, else 1."""
    findings = examine()
    print_lines(json.dumps(asdict(finding)) if args.json else _told(finding) for finding in findings)
    return 0 if all(finding.ok for finding in findings if finding.what in NEEDED) else 1


def _told(finding: Finding) -> str:
    return f"{'yes' if finding.ok else ' no'}  {finding.what}: {finding.found}\n       {finding.follows}"


def examine() -> list[Finding]:
    """Look at everything."""
    return [check() for check in CHECKS]


def _machine() -> Finding:
    name = platform.machine()
    ok = name in MACHINES
    return Finding("machine", ok, name, f"the bridge knows {', '.join(MACHINES)}")


def _seccomp() -> Finding:
    """A child enters the filter and ends."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        enter(theirs, "", [], {}, lambda: os._exit(0))
    theirs.close()
    with ours:
        try:
            os.close(receive_listener(ours))
            ok, found = True, f"Linux {platform.release()}"
        except OSError as error:
            ok, found = False, str(error.strerror)
    os.waitpid(pid, 0)
    return Finding("seccomp user notification", ok, found, _then(ok, "`dmserver run` and `record`"))


def _memory() -> Finding:
    """Yama lets a process look into its descendants only."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
            scope = int(file.read())
    except OSError:
        scope = 0
    follows = {
        0: "`dmserver run --socket` joins servers of the same user",
        1: "`dmserver run --socket` cannot join a server: only a program's ancestors may read its memory",
    }
    return Finding(
        "memory of other processes",
        scope == 0,
        f"ptrace_scope {scope}",
        follows.get(scope, "programs cannot be supervised by an ordinary user"),
    )


def _fuse() -> Finding:
    what, device = "FUSE", "/dev/fuse"
    follows = "reading and writing mapped devices, under the bridge and by --mount"
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding(what, False, f"{device} cannot be opened", _then(False, follows))
    if find_spec("mfusepy") is None:
        return Finding(what, False, "mfusepy is not installed (dmproto[fuse])", _then(False, follows))
    mounter = "root" if os.geteuid() == 0 else shutil.which("fusermount3") or shutil.which("fusermount")
    return Finding(
        what, bool(mounter), f"mounted by {mounter or 'nobody: no fusermount3'}", _then(bool(mounter), follows)
    )


def _ciphers() -> Finding:
    what, follows = "ciphers", "the target crypt, and so LUKS"
    if find_spec("cryptography") is None:
        return Finding(what, False, "cryptography is not installed (dmproto[crypt])", _then(False, follows))
    return Finding(what, True, "cryptography is installed", _then(True, follows))


def _user_namespaces() -> Finding:
    pid = os.fork()
    if not pid:
        os._exit(_unshare())
    ok = os.waitpid(pid, 0)[1] == 0
    found = "allowed" if ok else "refused"
    return Finding("user namespaces", ok, found, "not needed: nothing here uses them; programs such as unshare(1) do")


def _unshare() -> int:
    import ctypes

    clone_newuser = 0x10000000
    return 1 if ctypes.CDLL(None).unshare(clone_newuser) else 0


def _control() -> Finding:
    try:
        os.close(os.open("/dev/mapper/control", os.O_RDWR))
        return Finding("the kernel's own device-mapper", True, "/dev/mapper/control opens", "not used")
    except OSError as error:
        return Finding("the kernel's own device-mapper", False, str(error.strerror), "not needed")


def _then(ok: bool, what: str) -> str:
    return f"{what}: {'works' if ok else 'not here'}"


CHECKS: tuple[Callable[[], Finding], ...] = (_machine, _seccomp, _memory, _fuse, _ciphers, _user_namespaces, _control)

#: Without these no program runs under the bridge.
NEEDED = {"machine", "seccomp user notification"}
