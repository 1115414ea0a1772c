"""The command table: every device-mapper command, in both systems' words.

Linux: `_IOWR(0xfd, number, struct dm_ioctl)` and `lookup_ioctl()` of drivers/md/dm-ioctl.c. NetBSD: the
`command` string of the dictionary, `cmd_fn[]` of sys/dev/dm/device-mapper.c; the verbs that only NetBSD's
libdevmapper has (remove_all, waitevent, message, setgeometry) are unknown to its driver. The newest two verbs
are libdevmapper's names of the tasks. `since` is the version that libdevmapper puts into the request.
"""

from __future__ import annotations

from enum import Enum, Flag, auto
from typing import NamedTuple

__all__ = ["BY_NAME", "BY_NUMBER", "BY_VERB", "COMMANDS", "DM_IOCTL", "Command", "CommandFlag", "Payload", "command"]

#: The ioctl type byte of every device-mapper command.
DM_IOCTL = 0xFD


class Payload(Enum):
    """What follows the header, from `data_start` on."""

    NONE = "none"
    NAME_LIST = "struct dm_name_list chain"
    TARGET_SPECS = "struct dm_target_spec chain, each with its parameter string"
    TARGET_DEPS = "struct dm_target_deps"
    TARGET_VERSIONS = "struct dm_target_versions chain"
    TARGET_MSG = "struct dm_target_msg"
    TEXT = "NUL-terminated string"


class CommandFlag(Flag):
    """Facts of `_ioctls[]` in drivers/md/dm-ioctl.c and of `cmd_fn[]` in sys/dev/dm/device-mapper.c."""

    NONE = 0
    NO_PARAMS = auto()  #: Linux IOCTL_FLAGS_NO_PARAMS: only the first 305 bytes are copied in
    GLOBAL_EVENT = auto()  #: Linux IOCTL_FLAGS_ISSUE_GLOBAL_EVENT: bumps the global event number on success
    HEADER_ONLY = auto()  #: Linux writes back nothing but the version
    NETBSD = auto()  #: NetBSD's driver knows the verbs
    ANYONE = auto()  #: NetBSD lets an unprivileged caller do it


class Command(NamedTuple):
    """One row. `verbs[0]` is the verb that a translated request gets when flags do not decide."""

    name: str
    number: int
    verbs: tuple[str, ...]
    takes: Payload = Payload.NONE
    gives: Payload = Payload.NONE
    since: tuple[int, int, int] = (4, 0, 0)
    flags: CommandFlag = CommandFlag.NONE

    @property
    def ioctl(self) -> int:
        """The ioctl number on LP64, `_IOWR(0xfd, number, struct dm_ioctl)` with 312 bytes."""
        return 0xC0000000 | 312 << 16 | DM_IOCTL << 8 | self.number


_F, _P = CommandFlag, Payload

# fmt: off
COMMANDS: tuple[Command, ...] = (
    Command(name="VERSION", number=0, verbs=("version",), flags=_F.NO_PARAMS | _F.HEADER_ONLY | _F.NETBSD | _F.ANYONE),
    Command(name="REMOVE_ALL", number=1, verbs=("remove_all",), flags=_F.NO_PARAMS | _F.GLOBAL_EVENT | _F.HEADER_ONLY),
    Command(name="LIST_DEVICES", number=2, verbs=("names",), gives=_P.NAME_LIST, flags=_F.NETBSD | _F.ANYONE),
    Command(name="DEV_CREATE", number=3, verbs=("create",), flags=_F.NO_PARAMS | _F.GLOBAL_EVENT | _F.NETBSD),
    Command(name="DEV_REMOVE", number=4, verbs=("remove",), flags=_F.NO_PARAMS | _F.GLOBAL_EVENT | _F.NETBSD),
    Command(name="DEV_RENAME", number=5, verbs=("rename",), takes=_P.TEXT, flags=_F.GLOBAL_EVENT | _F.NETBSD),
    Command(name="DEV_SUSPEND", number=6, verbs=("resume", "suspend"), flags=_F.NO_PARAMS | _F.NETBSD),
    Command(name="DEV_STATUS", number=7, verbs=("info", "mknodes"), flags=_F.NO_PARAMS | _F.NETBSD | _F.ANYONE),
    Command(name="DEV_WAIT", number=8, verbs=("waitevent",), gives=_P.TARGET_SPECS),
    Command(name="TABLE_LOAD", number=9, verbs=("reload",), takes=_P.TARGET_SPECS, flags=_F.NETBSD),
    Command(name="TABLE_CLEAR", number=10, verbs=("clear",), flags=_F.NO_PARAMS | _F.NETBSD),
    Command(name="TABLE_DEPS", number=11, verbs=("deps",), gives=_P.TARGET_DEPS, flags=_F.NETBSD | _F.ANYONE),
    Command(name="TABLE_STATUS", number=12, verbs=("status", "table"), gives=_P.TARGET_SPECS, flags=_F.NETBSD | _F.ANYONE),
    Command(name="LIST_VERSIONS", number=13, verbs=("targets",), gives=_P.TARGET_VERSIONS, since=(4, 1, 0), flags=_F.NETBSD | _F.ANYONE),
    Command(name="TARGET_MSG", number=14, verbs=("message",), takes=_P.TARGET_MSG, gives=_P.TEXT, since=(4, 2, 0)),
    Command(name="DEV_SET_GEOMETRY", number=15, verbs=("setgeometry",), takes=_P.TEXT, since=(4, 6, 0), flags=_F.HEADER_ONLY),
    Command(name="DEV_ARM_POLL", number=16, verbs=("armpoll",), since=(4, 36, 0), flags=_F.NO_PARAMS),
    Command(name="GET_TARGET_VERSION", number=17, verbs=("target-version",), gives=_P.TARGET_VERSIONS, since=(4, 41, 0)),
    Command(name="MPATH_PROBE_PATHS", number=18, verbs=("mpath-probe-paths",), since=(4, 50, 0), flags=_F.NO_PARAMS),
)
# fmt: on

BY_NUMBER: dict[int, Command] = {c.number: c for c in COMMANDS}
BY_NAME: dict[str, Command] = {c.name: c for c in COMMANDS}
BY_VERB: dict[str, Command] = {verb: c for c in COMMANDS for verb in c.verbs}


def command(word: str) -> Command:
    """The row for a name in either system's words: `DM_TABLE_LOAD`, `table_load`, `reload`.

    Raises KeyError with the known words when there is none.
    """
    key = word.removeprefix("DM_").removesuffix("_CMD").upper()
    if found := BY_NAME.get(key) or BY_VERB.get(word):
        return found
    raise KeyError(f"no command {word!r}; known: {', '.join(sorted(BY_NAME))}; {', '.join(sorted(BY_VERB))}")
