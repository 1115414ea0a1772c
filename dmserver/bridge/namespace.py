"""The namespace: what stands at a path in the client's view, and what is the kernel's own business.

`PATHS` is the table of path rules; specs/bridge.md shows it. A path is canonical here: absolute in the client's root,
without links on the way. What clients make under /dev (nodes, links, directories) is kept in `made`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

from dmproto.wire import Dev
from dmserver.io.blockdev import BlockDevice

from .devices import Devices, kernel_name, sysfs_path
from .nodes import ABSENT, Absent, Dir, File, Link, Node, Owner, Private, Special
from .sysfs import bdi_directory, block_directory

if TYPE_CHECKING:
    from dmserver.model.dm_dev import DmDev

__all__ = ["CONTROL", "CONTROL_DEV", "LOOP_CONTROL_DEV", "PATHS", "Namespace", "PathRule"]

CONTROL_DEV, LOOP_CONTROL_DEV = (10, 236), (10, 237)
DISK_GROUP = 6

#: Modules of a cache's policies: here they are in the module of the target.
POLICIES = {"dm-cache-smq": "dm-cache"}

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
            **dict.fromkeys(_natives(space).values(), ABSENT),
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
    return found or (ABSENT if _is_hidden(space, name) else None)


# -- /sys ---------------------------------------------------------------------------------------------------

_BLOCK = "devices/virtual/block/"


def _links(target: str, *, partitions: bool) -> Callable[[Namespace, bytes], Dir]:
    """A directory of links to every block device; the names of mapped devices are all ours."""

    def directory(space: Namespace, name: bytes) -> Dir:
        def entries() -> Mapping[bytes, Node]:
            devices = space.devices if partitions else space.devices.wholes()
            return {
                **_hidden_names(space),
                **{kernel_name(d).encode(): Link(f"{target}{sysfs_path(d)}".encode()) for d in devices},
            }

        return Dir(entries, overlay=True)

    return directory


@lru_cache(maxsize=1)
def _kernels(major: int, numbers: frozenset[Dev]) -> dict[bytes, bytes]:
    """The kernel's own devices of a major, and those of some numbers: their names by MAJ:MIN."""
    directory, taken = b"/sys/dev/block/", {b"%d:%d" % number for number in numbers}
    try:
        hidden = [n for n in os.listdir(directory) if n in taken or n.startswith(b"%d:" % major)]
        return {number: os.path.basename(os.readlink(directory + number)) for number in hidden}
    except OSError:
        return {}


def _natives(space: Namespace) -> dict[bytes, bytes]:
    """The kernel's own devices that have our numbers, and that nobody sees here: their names by MAJ:MIN."""
    major = space.devices.major
    return _kernels(major, frozenset(device.dev for device in space.devices if device.dev[0] != major))


def _hidden_names(space: Namespace) -> dict[bytes, Node]:
    """The kernel's own mapped devices, and its devices of our numbers."""
    try:
        mapped = [name for name in os.listdir(b"/sys/block") if name.startswith(b"dm-")]
    except OSError:
        mapped = []
    return dict.fromkeys([*mapped, *_natives(space).values()], ABSENT)


def _is_hidden(space: Namespace, name: bytes) -> bool:
    return name.startswith(b"dm-") or name in _natives(space).values()


def _numbers(target: str) -> Callable[[Namespace, bytes], Dir]:
    """A directory of MAJ:MIN for every block device."""

    def directory(space: Namespace, name: bytes) -> Dir:
        def entries() -> Mapping[bytes, Node]:
            return {
                **dict.fromkeys(_natives(space), ABSENT),
                **{b"%d:%d" % d.dev: Link(f"{target}{sysfs_path(d)}".encode()) for d in space.devices},
            }

        return Dir(entries, overlay=True)

    return directory


def _number(space: Namespace, name: bytes) -> Node | None:
    device = _device_of_number(space, name)
    if device is not None:
        return Link(f"../../{_BLOCK}{sysfs_path(device)}".encode())
    return ABSENT if name.startswith(b"%d:" % space.devices.major) else None


def _device_of_number(space: Namespace, name: bytes) -> BlockDevice | None:
    major, _, minor = name.partition(b":")
    if not (major.isdigit() and minor.isdigit()):
        return None
    found = space.devices.by_dev((int(major), int(minor)))
    return found if found is not None and any(found is device for device in space.devices) else None


def _device_of_name(space: Namespace, name: bytes) -> BlockDevice | None:
    wanted = name.decode("utf-8", "surrogateescape")
    return next((device for device in space.devices if kernel_name(device) == wanted), None)


def _name(target: str, *, partitions: bool) -> Callable[[Namespace, bytes], Node | None]:
    def link(space: Namespace, name: bytes) -> Node | None:
        device = _device_of_name(space, name)
        if device and (partitions or device.whole is device):
            return Link(f"{target}{sysfs_path(device)}".encode())
        return ABSENT if device or _is_hidden(space, name) else None

    return link


def _block_dir(space: Namespace, name: bytes) -> Node | None:
    device = _device_of_name(space, name)
    if device is not None and device.whole is device:
        return block_directory(device, space.devices)
    return ABSENT if device or _is_hidden(space, name) else None


def _block_dirs(space: Namespace, name: bytes) -> Dir:
    def entries() -> Mapping[bytes, Node]:
        found = _hidden_names(space)
        for device in space.devices.wholes():
            found[kernel_name(device).encode()] = block_directory(device, space.devices)
        return found

    return Dir(entries, overlay=True)


def _bdi_dir(space: Namespace, name: bytes) -> Node | None:
    device = _device_of_number(space, name)
    return bdi_directory(device) if device else None


def _module(space: Namespace, name: bytes) -> Dir | None:
    """LVM looks here before it runs modprobe, and wants the type in LIST_VERSIONS afterwards."""
    module = os.fsdecode(name).replace("_", "-")
    module = POLICIES.get(module, module)
    return Dir(dict) if module.startswith("dm-") and space.devices.registry.modprobe(module) else None


def _modprobe_d(space: Namespace, name: bytes) -> Dir:
    """modprobe(8) runs the command that is there for a module, and that looks into /sys/module."""

    def configuration() -> bytes:
        modules = sorted({**space.devices.registry.modules(), **POLICIES}.items())
        return "".join(f"install {name} test -d /sys/module/{m.replace('-', '_')}\n" for name, m in modules).encode()

    return Dir(lambda: {b"dmserver.conf": File(configuration)}, overlay=True)


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
        hidden = _hidden_names(space)
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
    PathRule(3, "/sys/dev/block/*", "link to the device's directory", _number),
    PathRule(3, "/sys/devices/virtual/block/*", "directory of a block device, as a kernel shows it", _block_dir),
    PathRule(3, "/sys/devices/virtual/bdi/*", "directory with read_ahead_kb", _bdi_dir),
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
    PathRule(7, "/sys/module/*", "directory of a target type's module, which is loaded by the look", _module),
    PathRule(7, "/run/modprobe.d", "the kernel's directory with a file for these modules", _modprobe_d),
    PathRule(8, "/sys/block", "the kernel's directory, mapped devices ours", _links(f"../{_BLOCK}", partitions=False)),
    PathRule(8, "/sys/block/*", "link to the device's directory", _name(f"../{_BLOCK}", partitions=False)),
    PathRule(8, "/sys/class/block", "likewise, with partitions", _links(f"../../{_BLOCK}", partitions=True)),
    PathRule(8, "/sys/class/block/*", "likewise", _name(f"../../{_BLOCK}", partitions=True)),
    PathRule(8, "/sys/dev/block", "likewise, by number", _numbers(f"../../{_BLOCK}")),
    PathRule(8, "/sys/devices/virtual/block", "the kernel's directory, mapped devices ours", _block_dirs),
)

_EXACT = {rule.path.encode(): rule for rule in PATHS if "*" not in rule.path}
_CHILDREN = {rule.path[:-2].encode(): rule for rule in PATHS if rule.path.endswith("/*")}
_TOPS = {rule.path.split("/")[1].encode() for rule in PATHS}
