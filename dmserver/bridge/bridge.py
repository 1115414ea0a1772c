"""The bridge put together: the rooms that answer system calls, and what they share."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from functools import cached_property
from struct import unpack_from
from typing import TYPE_CHECKING

from dmproto.wire import huge_decode
from dmserver.host import Host
from dmserver.loop import Loop

from .caller import Caller
from .changes import Changes
from .control import ControlNodes, Door
from .devices import Devices
from .files import Files
from .loopdev import Loops
from .namespace import CONTROL, LOOP_CONTROL_DEV, Namespace
from .nodes import ABSENT, Dir, File, Link, Node, Special
from .opens import Opens
from .paths import Paths, Place
from .rules import DM_TYPE, LOOP_TYPE, SyscallRule, rules_by_number
from .seccomp import Listener
from .supervisor import CONTINUE, Call, Handler, Outcome, Supervisor
from .syscalls import AT_FDCWD

if TYPE_CHECKING:
    from dmserver.model.dm_dev import DmDev

    from .blockioctl import BlockIoctls
    from .keys import Keys

__all__ = ["Bridge"]

LOOP_CONTROL = b"/dev/loop-control"
DEV_RENAME, DEV_SUSPEND = 5, 6


class Bridge:
    """One device-mapper in the view of the programs under one filter."""

    def __init__(self, loop: Loop, host: Host, door: Door | None = None) -> None:
        """`door` is what control nodes lead to, if not the host itself."""
        self.loop = loop
        self.host = host
        self.opens = Opens(host.mapper)
        self.devices = Devices(host.mapper, host.registry, self.opens.sweep)
        self.space = Namespace(self.devices, self._private)
        self._root = os.fsencode(tempfile.mkdtemp(prefix="dm"))
        self.paths = Paths(self.space, self._root + b"/shadow")
        self.files: Files = Files(self)
        self.changes: Changes = Changes(self)
        host.mapper.call_soon = loop.call_soon_threadsafe
        self.control = ControlNodes(loop, door or host, host.mapper.events, self._observe, self._locate)
        self.loops = Loops(self.devices, self._empty_file, self.opens.device_of)
        self._supervisors: set[Supervisor] = set()
        self._handlers = {
            number: (name, self._handler(rule, name)) for number, (name, rule) in rules_by_number().items()
        }
        host.mapper.on_remove.append(self._removed)

    def close(self) -> None:
        for supervisor in tuple(self._supervisors):
            supervisor.close()
        self.control.close()
        self.opens.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def supervise(self, listener: int) -> None:
        """Answer what comes from a filter's listener until the last process under it is gone. Closes `listener`."""
        supervisor = Supervisor(self.loop, self._handlers, Listener(listener), self._supervisors.discard)
        self._supervisors.add(supervisor)

    def _handler(self, rule: SyscallRule, name: str) -> Handler:
        room = self if rule.room == "bridge" else getattr(self, rule.room)
        handler: Handler = getattr(room, rule.method or name)
        return handler

    @cached_property
    def block_ioctls(self) -> BlockIoctls:
        """Only programs that open block devices need them, and their table takes long to import."""
        from .blockioctl import BlockIoctls

        return BlockIoctls(self.loop, self.devices)

    @cached_property
    def _keys(self) -> Keys:
        """Few programs add keys."""
        from .keys import Keys

        return Keys(self.host.mapper)

    # -- handlers that belong to no room ----------------------------------------------------------------

    def ioctl(self, call: Call) -> int | Outcome:
        if call.args[1] >> 8 & 0xFF == DM_TYPE:
            self.opens.sweep()
            return self.control.ioctl(call)
        link = call.caller.link(f"fd/{call.fd(0)}")
        if self.paths.unshadow(link) == LOOP_CONTROL:
            return self.loops.control(call)
        device = self.opens.device_of(call.caller, call.fd(0), link)
        if device is None:
            return CONTINUE
        if call.args[1] >> 8 & 0xFF == LOOP_TYPE:
            return self.loops.ioctl(call, device)
        return self.block_ioctls.answer(call, device)

    def forget(self, call: Call) -> Outcome:
        call.supervisor.forget(call.caller.tid)
        return CONTINUE

    def add_key(self, call: Call) -> Outcome:
        return self._keys.add_key(call)

    def keyctl(self, call: Call) -> Outcome:
        return self._keys.keyctl(call)

    def nothing(self, call: Call) -> int:
        return 0

    # -- what the handlers share ------------------------------------------------------------------------

    def open_device(self, call: Call, node: Special, place: Place, flags: int) -> int | Outcome:
        """Open a device node."""
        if node.dev == LOOP_CONTROL_DEV and node.kind == stat.S_IFCHR:
            return self.files.give(call, os.open(self._shadow_file(LOOP_CONTROL, b""), os.O_RDWR), flags)
        if node.kind == stat.S_IFCHR:
            return self.control.open(call, cloexec=bool(flags & os.O_CLOEXEC))
        device = self.devices.by_dev(node.dev)
        return -errno.ENXIO if device is None else self.opens.open(call, device, flags)

    def node_of_fd(self, caller: Caller, fd: int) -> tuple[bytes, Dir | File | Link | Special] | None:
        """Path and node of a descriptor that we handed over; None for any other."""
        link = caller.link(f"fd/{fd}")
        removed: Special | None = None  # what an open node whose name is gone still is
        if self.control.is_node(link):
            path, removed = b"/dev/mapper/control", CONTROL
        elif device := self.opens.device_of(caller, fd, link):
            path, removed = os.fsencode(device.path), Special(stat.S_IFBLK, device.dev)
        elif (shadowed := self.paths.unshadow(link)) is not None:
            path = shadowed
        else:
            return None
        node = self.space.find(path)
        if not isinstance(node, Dir | File | Link | Special):
            node = removed
        return (path, node) if node is not None else None

    def shadow(self, path: bytes, node: Node) -> bytes:
        """A real directory, or file with the present content, in the place of a node."""
        real = self.paths.shadow + path
        if isinstance(node, File):
            return self._shadow_file(path, node.content())
        os.makedirs(real, exist_ok=True)
        return real

    def _shadow_file(self, path: bytes, content: bytes) -> bytes:
        real = self.paths.shadow + path
        os.makedirs(os.path.dirname(real), exist_ok=True)
        with suppress(FileNotFoundError):  # open descriptors keep the old one; a rename over it would wait for the disk
            os.unlink(real)
        with open(real, "wb") as file:
            file.write(content)
        return real

    def _empty_file(self) -> str:
        return os.fsdecode(self._shadow_file(b"/dev/loop", b""))

    def _locate(self, caller: Caller, name: str) -> str:
        """What a path in a table means to the caller: a block device of the namespace, or a file of the kernel's."""
        try:
            place = self.paths.lookup(caller, AT_FDCWD, os.fsencode(name), follow=True)
        except OSError:
            return name
        if place is None:
            return name
        if isinstance(place.node, Special) and place.node.kind == stat.S_IFBLK:
            major, minor = place.node.dev
            return f"{major}:{minor}"
        return os.fsdecode(place.real)

    def _private(self, name: bytes) -> bytes:
        real = os.path.join(self._root, b"private", name)
        os.makedirs(real, exist_ok=True)
        return real

    def _observe(self, command: int, request: bytes, reply: bytes) -> None:
        """Learn from a resume or rename what is udev's to make."""
        if command in (DEV_SUSPEND, DEV_RENAME) and len(reply) >= 48:
            minor = huge_decode(unpack_from("<Q", reply, 40)[0])[1]
            self.devices.udev_flags[minor] = unpack_from("<I", request, 32)[0] >> 16
            if device := self.host.mapper.devices.get(minor):
                self._show_links(device)

    def _removed(self, device: DmDev) -> None:
        self.devices.udev_flags.pop(device.minor, None)
        self._show_links(device)

    def _show_links(self, device: DmDev) -> None:
        """Links that a client took away are there again."""
        for path in self.devices.links_of(device):
            if self.space.made.get(b"/dev/" + path) is ABSENT:
                del self.space.made[b"/dev/" + path]
