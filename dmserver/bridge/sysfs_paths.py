"""The path rules of /sys: where the block devices of a client stand there, and the modules of target types.

The kernel's own devices that have the numbers of these are hidden, and so are all its mapped devices.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from dmproto.wire import Dev
from dmserver.io.blockdev import BlockDevice

from .devices import kernel_name, sysfs_path
from .nodes import ABSENT, Dir, File, Link, Node
from .sysfs import bdi_directory, block_directory

if TYPE_CHECKING:
    from .namespace import Namespace

__all__ = [
    "bdi_dir",
    "block_dir",
    "block_dirs",
    "hidden_names",
    "is_hidden",
    "link_by_name",
    "link_by_number",
    "links_by_name",
    "links_by_number",
    "modprobe_d",
    "module_dir",
    "natives",
]

#: Block devices, from /sys.
_BLOCK = "devices/virtual/block/"

#: Modules of a cache's policies: here they are in the module of the target.
POLICIES = {"dm-cache-smq": "dm-cache"}


# -- what is hidden -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _kernels(major: int, numbers: frozenset[Dev]) -> dict[bytes, bytes]:
    """The kernel's own devices of a major, and those of some numbers: their names by MAJ:MIN."""
    directory, taken = b"/sys/dev/block/", {b"%d:%d" % number for number in numbers}
    try:
        hidden = [n for n in os.listdir(directory) if n in taken or n.startswith(b"%d:" % major)]
        return {number: os.path.basename(os.readlink(directory + number)) for number in hidden}
    except OSError:
        return {}


def natives(space: Namespace) -> dict[bytes, bytes]:
    """The kernel's own devices that have our numbers, and that nobody sees here: their names by MAJ:MIN."""
    major = space.devices.major
    return _kernels(major, frozenset(device.dev for device in space.devices if device.dev[0] != major))


def hidden_names(space: Namespace) -> dict[bytes, Node]:
    """The kernel's own mapped devices, and its devices of our numbers."""
    try:
        mapped = [name for name in os.listdir(b"/sys/block") if name.startswith(b"dm-")]
    except OSError:
        mapped = []
    return dict.fromkeys([*mapped, *natives(space).values()], ABSENT)


def is_hidden(space: Namespace, name: bytes) -> bool:
    """A block device of the kernel's with this name is not to be seen."""
    return name.startswith(b"dm-") or name in natives(space).values()


# -- links --------------------------------------------------------------------------------------------------


def links_by_name(up: str, *, partitions: bool) -> Callable[[Namespace, bytes], Dir]:
    """A directory of links to every block device, `up` from it being /sys; the names of mapped devices are all ours."""

    def directory(space: Namespace, name: bytes) -> Dir:
        def entries() -> Mapping[bytes, Node]:
            devices = space.devices if partitions else space.devices.wholes()
            return {
                **hidden_names(space),
                **{kernel_name(d).encode(): Link(f"{up}{_BLOCK}{sysfs_path(d)}".encode()) for d in devices},
            }

        return Dir(entries, overlay=True)

    return directory


def links_by_number(space: Namespace, name: bytes) -> Dir:
    """A directory of MAJ:MIN for every block device."""

    def entries() -> Mapping[bytes, Node]:
        return {
            **dict.fromkeys(natives(space), ABSENT),
            **{b"%d:%d" % device.dev: _link_from_number(device) for device in space.devices},
        }

    return Dir(entries, overlay=True)


def link_by_number(space: Namespace, name: bytes) -> Node | None:
    device = _device_of_number(space, name)
    if device is not None:
        return _link_from_number(device)
    return ABSENT if name.startswith(b"%d:" % space.devices.major) else None


def _link_from_number(device: BlockDevice) -> Link:
    return Link(f"../../{_BLOCK}{sysfs_path(device)}".encode())


def link_by_name(up: str, *, partitions: bool) -> Callable[[Namespace, bytes], Node | None]:
    """One link of `links_by_name`."""

    def link(space: Namespace, name: bytes) -> Node | None:
        device = _device_of_name(space, name)
        if device and (partitions or device.whole is device):
            return Link(f"{up}{_BLOCK}{sysfs_path(device)}".encode())
        return ABSENT if device or is_hidden(space, name) else None

    return link


def _device_of_number(space: Namespace, name: bytes) -> BlockDevice | None:
    major, _, minor = name.partition(b":")
    if not (major.isdigit() and minor.isdigit()):
        return None
    found = space.devices.by_dev((int(major), int(minor)))
    return found if found is not None and any(found is device for device in space.devices) else None


def _device_of_name(space: Namespace, name: bytes) -> BlockDevice | None:
    wanted = name.decode("utf-8", "surrogateescape")
    return next((device for device in space.devices if kernel_name(device) == wanted), None)


# -- directories --------------------------------------------------------------------------------------------


def block_dir(space: Namespace, name: bytes) -> Node | None:
    device = _device_of_name(space, name)
    if device is not None and device.whole is device:
        return block_directory(device, space.devices)
    return ABSENT if device or is_hidden(space, name) else None


def block_dirs(space: Namespace, name: bytes) -> Dir:
    def entries() -> Mapping[bytes, Node]:
        found = hidden_names(space)
        for device in space.devices.wholes():
            found[kernel_name(device).encode()] = block_directory(device, space.devices)
        return found

    return Dir(entries, overlay=True)


def bdi_dir(space: Namespace, name: bytes) -> Node | None:
    device = _device_of_number(space, name)
    return bdi_directory(device) if device else None


# -- modules ------------------------------------------------------------------------------------------------


def module_dir(space: Namespace, name: bytes) -> Dir | None:
    """LVM looks here before it runs modprobe, and wants the type in LIST_VERSIONS afterwards."""
    module = os.fsdecode(name).replace("_", "-")
    module = POLICIES.get(module, module)
    return Dir(dict) if module.startswith("dm-") and space.devices.registry.modprobe(module) else None


def modprobe_d(space: Namespace, name: bytes) -> Dir:
    """modprobe(8) runs the command that is there for a module, and that looks into /sys/module."""

    def configuration() -> bytes:
        modules = sorted({**space.devices.registry.modules(), **POLICIES}.items())
        return "".join(f"install {name} test -d /sys/module/{m.replace('-', '_')}\n" for name, m in modules).encode()

    return Dir(lambda: {b"dmserver.conf": File(configuration)}, overlay=True)
