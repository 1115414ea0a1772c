"""The namespace: what stands at a path in the client's view, and what is the kernel's own business.

`PATHS` is the table of path rules; specs/bridge.md shows it. What the rules of /sys give is in `sysfs_paths`.

A path is canonical here: absolute in the client's root, without links on the way. What clients make under /dev (nodes,
links, directories) is kept in `made`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from dmserver.io.blockdev import BlockDevice

from .devices import Devices, kernel_name
from .nodes import ABSENT, Absent, Dir, File, Link, Node, Owner, Private, Special
from .sysfs_paths import (
    bdi_dir,
    block_dir,
    block_dirs,
    hidden_names,
    is_hidden,
    link_by_name,
    link_by_number,
    links_by_name,
    links_by_number,
    modprobe_d,
    module_dir,
    natives,
)

if TYPE_CHECKING:
    from dmserver.model.dm_dev import DmDev

__all__ = ["CONTROL", "CONTROL_DEV", "LOOP_CONTROL_DEV", "PATHS", "Namespace", "PathRule"]

CONTROL_DEV, LOOP_CONTROL_DEV = (10, 236), (10, 237)
DISK_GROUP = 6

#: Directories under /dev that stay the kernel's.
NATIVE_DEV = (b"/dev/shm", b"/dev/pts", b"/dev/mqueue", b"/dev/hugepages", b"/dev/fd")
_IN_NATIVE_DEV = tuple(directory + b"/" for directory in NATIVE_DEV)


class PathRule(NamedTuple):
    """One row. `answer` tells what is there; `node` makes it, from the namespace and what `*` stood for."""

    rung: int
    path: str
    answer: str
    node: Callable[[Namespace, bytes], Node | None]


class Namespace:
    """The rules applied to `devices`. `private(name)` gives the path of a directory of this run."""

    def __init__(self, devices: Devices, private: Callable[[bytes], bytes]) -> None:
        self.devices = devices
        self.private = private
        self.made: dict[bytes, Node] = {}

    def find(self, path: bytes) -> Node | None:
        """The node at a canonical path; None where the kernel decides."""
        if (made := self.made.get(path)) is not None:
            return made
        if path.startswith(_IN_NATIVE_DEV):
            return None
        _, top, *names = path.split(b"/")
        if top not in _TOPS:
            return self._disk(path) or self._holding(path)
        parent, name = os.path.split(path)
        if rule := _EXACT.get(path):
            return rule.node(self, name)
        if rule := _CHILDREN.get(parent):
            node = rule.node(self, name)
            return node or ABSENT if rule.path.startswith("/dev/mapper") else node
        return self._inside(path) if names else None

    def entries(self, path: bytes, directory: Dir) -> dict[bytes, Node]:
        """What the rules and the clients put into a directory; ABSENT hides what the kernel has there."""
        return {**directory.entries(), **self._made_in(path)}

    def may_make(self, path: bytes) -> bool:
        """A client's mkdir, symlink, mknod at `path` is kept here, not carried out."""
        return path.startswith(b"/dev/") and not path.startswith(NATIVE_DEV)

    def made_below(self, path: bytes) -> list[bytes]:
        """What clients made in a directory and its directories."""
        return [made for made in self.made if made.startswith(path + b"/")]

    def is_empty(self, path: bytes) -> bool:
        return not any(not isinstance(node, Absent) for node in self._made_in(path).values())

    def _made_in(self, path: bytes) -> dict[bytes, Node]:
        prefix = path + b"/"
        start = len(prefix)
        return {p[start:]: n for p, n in self.made.items() if p.startswith(prefix) and b"/" not in p[start:]}

    def _disk(self, path: bytes) -> Node | None:
        """The node of a disk or of a partition."""
        for disk in self.devices.disks():
            if path.startswith(os.fsencode(disk.path)):
                for device in (disk, *self.devices.partitions.of(disk)):
                    if os.fsencode(device.path) == path:
                        return _block(device)
        return None

    def _holding(self, path: bytes) -> Node | None:
        """A directory of the kernel's in which clients made something of ours."""
        return Dir(dict, overlay=True) if self.made and self._made_in(path) else None

    def _inside(self, path: bytes) -> Node | None:
        """The node below the deepest directory that a rule knows."""
        parent, name = os.path.split(path)
        if parent == b"/":
            return None
        above = self.find(parent)
        if isinstance(above, Private):
            return Private(above.path + b"/" + name)
        if isinstance(above, Absent):
            return ABSENT
        if isinstance(above, Dir):
            found = above.entries().get(name)
            return found if found is not None or above.overlay else ABSENT
        return None


def _block(device: BlockDevice) -> Special:
    return Special(stat.S_IFBLK, device.dev)


# -- /dev ---------------------------------------------------------------------------------------------------


def _dev(space: Namespace, name: bytes) -> Dir:
    def entries() -> Mapping[bytes, Node]:
        return {
            **dict.fromkeys(natives(space).values(), ABSENT),
            **_devices_below(space, b"/dev/"),
            **_linked(space),
            b"mapper": _mapper(space, b"mapper"),
            b"loop-control": LOOP_CONTROL,
        }

    return Dir(entries, overlay=True)


def _devices_below(space: Namespace, directory: bytes) -> dict[bytes, Node]:
    nodes: dict[bytes, Node] = {}
    for device in space.devices:
        path = os.fsencode(device.path)
        if path.startswith(directory):
            name, deeper, _ = path[len(directory) :].partition(b"/")
            below = directory + name + b"/"
            nodes[name] = Dir(partial(_devices_below, space, below), overlay=True) if deeper else _block(device)
    return nodes


def _disks_in(space: Namespace, directory: bytes) -> Dir | None:
    """A directory of disks."""
    below = directory + b"/"
    if any(os.fsencode(disk.path).startswith(below) for disk in space.devices.disks()):
        return Dir(partial(_devices_below, space, below), overlay=True)
    return None


def _mapper(space: Namespace, name: bytes) -> Dir:
    def entries() -> Mapping[bytes, Node]:
        return {**_Links(space.devices, name), b"control": CONTROL}

    return Dir(entries)


CONTROL = Special(stat.S_IFCHR, CONTROL_DEV)
LOOP_CONTROL = Special(stat.S_IFCHR, LOOP_CONTROL_DEV, Owner(0o660, 0, DISK_GROUP))


class _Links(Mapping[bytes, "Node"]):
    """The links of udev's in a directory of /dev. None but the one that is asked for is made."""

    def __init__(self, devices: Devices, directory: bytes) -> None:
        self._devices = devices
        self._directory = directory

    def __getitem__(self, name: bytes) -> Node:
        if device := self._devices.linked(self._directory, name):
            return _link(device)
        raise KeyError(name)

    def __iter__(self) -> Iterator[bytes]:
        return (path.partition(b"/")[2] for path, _ in self._devices.links(self._directory))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _link(device: DmDev) -> Link:
    return Link(b"../dm-%d" % device.minor)


def _linked(space: Namespace) -> dict[bytes, Node]:
    """The directories of /dev in which udev has links: volume groups, and mapper."""
    names = {path.partition(b"/")[0] for path, _ in space.devices.links()}
    return {name: Dir(partial(_Links, space.devices, name), overlay=True) for name in names}


def _group(space: Namespace, name: bytes) -> Dir | None:
    """The directory of a volume group."""
    if any(space.devices.links(name)):
        return Dir(partial(_Links, space.devices, name), overlay=True)
    return None


def _control(space: Namespace, name: bytes) -> Node:
    return CONTROL


def _loop_control(space: Namespace, name: bytes) -> Node:
    return LOOP_CONTROL


def _mapper_node(space: Namespace, name: bytes) -> Node:
    device = space.devices.linked(b"mapper", name)
    return _link(device) if device else ABSENT


def _dev_node(space: Namespace, name: bytes) -> Node | None:
    if name.startswith(b"dm-"):
        minor = name[3:]
        device = space.devices.by_dev((space.devices.major, int(minor))) if minor.isdigit() else None
        return _block(device) if device else ABSENT
    path = b"/dev/" + name
    found = space._disk(path) or _group(space, name) or _disks_in(space, path)
    return found or (ABSENT if is_hidden(space, name) else None)


# -- /proc --------------------------------------------------------------------------------------------------


def _proc_devices(space: Namespace, name: bytes) -> File:
    return File(lambda: b"".join(_device_lines(space)))


def _device_lines(space: Namespace) -> Iterator[bytes]:
    """/proc/devices with device-mapper in it, under its major alone, and every block major that a disk uses."""
    majors = {space.devices.major: b"device-mapper"}
    for disk in space.devices.disks():
        majors.setdefault(disk.dev[0], {1: b"ramdisk", 7: b"loop", 8: b"sd"}.get(disk.dev[0], b"blkext"))
    block = False
    native: dict[int, bytes] = {}
    with open("/proc/devices", "rb") as lines:
        for line in lines:
            if block and (words := line.split()):
                if words[1] != b"device-mapper":
                    native[int(words[0])] = words[1]
            else:
                block = block or line.startswith(b"Block")
                yield line
    for major, name in sorted((native | majors).items()):
        yield b"%3d %s\n" % (major, name)


def _proc_misc(space: Namespace, name: bytes) -> File:
    def content() -> bytes:
        with open("/proc/misc", "rb") as lines:
            others = [line for line in lines if not line.endswith(b" device-mapper\n")]
        return b"%3d device-mapper\n" % CONTROL_DEV[1] + b"".join(others)

    return File(content)


def _proc_partitions(space: Namespace, name: bytes) -> File:
    """The kernel's, with our devices in the place of those that are hidden (`show_partition`)."""

    def content() -> bytes:
        hidden = hidden_names(space)
        with open("/proc/partitions", "rb") as lines:
            others = [line for line in lines if line.split()[3:4] != [] and line.split()[3] not in hidden]
        head, *others = others
        ours = [
            b"%4d  %7d %10d %s\n" % (*device.dev, device.size // 2, kernel_name(device).encode())
            for device in space.devices
            if device.size
        ]
        return b"".join([head, b"\n", *others, *ours])

    return File(content)


def _absent(space: Namespace, name: bytes) -> Node:
    return ABSENT


def _private(space: Namespace, name: bytes) -> Node:
    return Private(space.private(name))


def _private_file(space: Namespace, name: bytes) -> Node:
    return Private(space.private(b"run") + b"/" + name)


PATHS: tuple[PathRule, ...] = (
    PathRule(1, "/dev/mapper/control", "character device 10:236; an open gives a control node", _control),
    PathRule(1, "/dev/mapper", "directory of the control node, of what clients made, and of udev's links", _mapper),
    PathRule(
        1, "/dev/mapper/*", "link to ../dm-N when a table is live and libdevmapper left the node to udev", _mapper_node
    ),
    PathRule(1, "/proc/devices", "the kernel's, with device-mapper and the majors of all disks", _proc_devices),
    PathRule(1, "/proc/misc", "the kernel's, with 236 device-mapper", _proc_misc),
    PathRule(8, "/proc/partitions", "the kernel's, with these block devices", _proc_partitions),
    PathRule(1, "/run/udev/control", "absent: no udev is waited for", _absent),
    PathRule(2, "/dev/loop-control", "character device 10:237, for loop devices of the bridge's own", _loop_control),
    PathRule(
        2,
        "/dev/*",
        "block devices: dm-N, those of --pdev, loop devices that clients asked for, partitions; directories of links",
        _dev_node,
    ),
    PathRule(3, "/sys/dev/block/*", "link to the device's directory", link_by_number),
    PathRule(3, "/sys/devices/virtual/block/*", "directory of a block device, as a kernel shows it", block_dir),
    PathRule(3, "/sys/devices/virtual/bdi/*", "directory with read_ahead_kb", bdi_dir),
    PathRule(4, "/run/cryptsetup", "a private directory", _private),
    PathRule(5, "/dev", "the kernel's directory with all virtual nodes in it", _dev),
    PathRule(5, "/run/lock/lvm", "a private directory", _private),
    PathRule(5, "/run/lvm", "a private directory", _private),
    PathRule(5, "/etc/lvm/archive", "a private directory: volume groups of a run are none of the machine's", _private),
    PathRule(5, "/etc/lvm/backup", "likewise", _private),
    PathRule(5, "/etc/lvm/devices", "likewise", _private),
    PathRule(5, "/run/dmeventd-client", "a private file", _private_file),
    PathRule(5, "/run/dmeventd-server", "a private file", _private_file),
    PathRule(5, "/run/dmeventd.pid", "a private file", _private_file),
    PathRule(7, "/sys/module/*", "directory of a target type's module, which is loaded by the look", module_dir),
    PathRule(7, "/run/modprobe.d", "the kernel's directory with a file for these modules", modprobe_d),
    PathRule(8, "/sys/block", "the kernel's directory, mapped devices ours", links_by_name("../", partitions=False)),
    PathRule(8, "/sys/block/*", "link to the device's directory", link_by_name("../", partitions=False)),
    PathRule(8, "/sys/class/block", "likewise, with partitions", links_by_name("../../", partitions=True)),
    PathRule(8, "/sys/class/block/*", "likewise", link_by_name("../../", partitions=True)),
    PathRule(8, "/sys/dev/block", "likewise, by number", links_by_number),
    PathRule(8, "/sys/devices/virtual/block", "the kernel's directory, mapped devices ours", block_dirs),
)

_EXACT = {rule.path.encode(): rule for rule in PATHS if "*" not in rule.path}
_CHILDREN = {rule.path[:-2].encode(): rule for rule in PATHS if rule.path.endswith("/*")}
_TOPS = {rule.path.split("/")[1].encode() for rule in PATHS}
