"""A synchronous client of the socket: dictionaries in and out, and buffers for those who speak binary.

with Client() as dm:
    dm.create("vol1")
    dm.reload("vol1", [(0, 2048, "linear", "/dev/ram0 0")])
    dm.resume("vol1")
    print(dm.table("vol1"))
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from dmproto import proplib
from dmproto.flags import DmFlag
from dmproto.proplib import Unsigned
from dmproto.stream import CLOSED, NEED_DATA, BinaryReply, PlistMessage, ReplyStream, binary_request

__all__ = ["SOCKET_DEFAULT", "VERSION", "Client", "CommandError", "TableLine", "default_socket"]

#: The protocol version that libdm sends.
VERSION = (4, 0, 0)

#: What `default_socket` does, for help texts.
SOCKET_DEFAULT = "$DM_SOCKET, else dmserver.sock in $XDG_RUNTIME_DIR or, for root, /run"

#: start, length (sectors), type, parameters
TableLine = tuple[int, int, str, str]


def default_socket() -> str:
    """`$DM_SOCKET`, else `$XDG_RUNTIME_DIR/dmserver.sock`, else (root) `/run/dmserver.sock`. LookupError when there is
    no such place."""
    if path := os.environ.get("DM_SOCKET"):
        return path
    if directory := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(directory, "dmserver.sock")
    if os.geteuid() == 0:
        return "/run/dmserver.sock"
    raise LookupError("where is the server? name its socket in $DM_SOCKET, or set $XDG_RUNTIME_DIR")


class CommandError(OSError):
    """A command failed. `errno` is what it meant, `strerror` the server's sentence; `request` and `reply` are the whole
    dictionaries, as evidence."""

    def __init__(self, request: dict[str, Any], reply: dict[str, Any]) -> None:
        number = int(reply["errno"])
        super().__init__(number, str(reply.get("error") or os.strerror(number)))
        self.request = request
        self.reply = reply


class Client:
    """One connection, which to the server is one open control node. Not for several threads at once.

    `path` defaults to `default_socket()`. OSError when the server is not there; ConnectionError when it goes away.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path or default_socket()
        self._socket = socket.socket(socket.AF_UNIX)
        self._stream = ReplyStream(plist_limit=1 << 62, binary_limit=1 << 62)
        try:
            self._socket.connect(self.path)
        except OSError as failure:
            self._socket.close()
            number, text = failure.errno or errno.ENAMETOOLONG, failure.strerror or str(failure)
            raise OSError(number, text, self.path) from None  # Python gives no number to a path that is too long

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- messages ---------------------------------------------------------------------------------------

    def command(self, verb: str, **keys: Any) -> dict[str, Any]:
        """Send `command` = `verb` with further keys; returns the reply. CommandError when the command failed."""
        request = {"command": verb, "version": [Unsigned(number) for number in VERSION], **keys}
        reply = proplib.loads(self.exchange(proplib.dumps(request)))
        if not isinstance(reply, dict):
            raise ConnectionError(f"expected a dictionary in reply to {verb}, got {type(reply).__name__}")
        if "errno" in reply:
            raise CommandError(request, reply)
        return reply

    def exchange(self, text: bytes) -> bytes:
        """Send a property list as it stands; returns the text of the reply."""
        self._socket.sendall(text)
        match self._receive():
            case PlistMessage(reply):
                return reply
            case other:
                raise ConnectionError(f"expected a property list in reply, got {other}")

    def ioctl(self, number: int, buffer: bytes) -> tuple[int, bytes]:
        """Send a binary request, `number` being the whole ioctl number; returns 0 or -errno, and the whole buffer as
        the kernel would leave it."""
        self._socket.sendall(binary_request(number, buffer))
        match self._receive():
            case BinaryReply(result, written):
                return result, written + buffer[len(written) :]
            case other:
                raise ConnectionError(f"expected a frame DMIO in reply, got {other}")

    def _receive(self) -> object:
        while (event := self._stream.next_event()) is NEED_DATA:
            self._stream.receive_data(self._socket.recv(1 << 18))
        if event is CLOSED:
            raise ConnectionError(f"{self.path}: the server closed the connection")
        return event

    # -- commands ---------------------------------------------------------------------------------------

    def version(self) -> tuple[int, int, int]:
        """The driver's version."""
        major, minor, patch = self.command("version")["version"][:3]
        return major, minor, patch

    def targets(self) -> list[tuple[str, tuple[int, int, int]]]:
        """The target types: (name, version)."""
        return [(entry["name"], tuple(entry["ver"])) for entry in self.command("targets")["cmd_data"]]

    def names(self) -> list[tuple[str, int]]:
        """All devices: (name, minor)."""
        return [(entry["name"], int(entry["dev"])) for entry in self.command("names").get("cmd_data", ())]

    def create(self, name: str, uuid: str = "", *, read_only: bool = False) -> int:
        """A new device; returns its minor."""
        keys: dict[str, Any] = {"uuid": uuid} if uuid else {}
        if read_only:
            keys["flags"] = Unsigned(DmFlag.READONLY)
        return int(self.command("create", name=name, **keys).get("minor", 0))

    def remove(self, name: str) -> None:
        self.command("remove", name=name)

    def remove_all(self) -> None:
        """Remove every device that is not open."""
        self.command("remove_all")

    def rename(self, name: str, new: str) -> None:
        self.command("rename", name=name, cmd_data=[new])

    def info(self, name: str) -> dict[str, Any]:
        """`minor`, `uuid`, `flags`, `open_count`, `target_count` ..., as the driver tells them."""
        return self.command("info", name=name)

    def reload(self, name: str, table: Iterable[TableLine], *, read_only: bool = False) -> None:
        """Load a table into the inactive slot."""
        keys: dict[str, Any] = {"flags": Unsigned(DmFlag.READONLY)} if read_only else {}
        entries = [
            {"start": Unsigned(start), "length": Unsigned(length), "type": kind, "params": params}
            for start, length, kind, params in table
        ]
        self.command("reload", name=name, cmd_data=entries, **keys)

    def clear(self, name: str) -> None:
        """Empty the inactive slot."""
        self.command("clear", name=name)

    def suspend(self, name: str) -> None:
        """Returns once no I/O is under way."""
        self.command("suspend", name=name, flags=Unsigned(DmFlag.SUSPEND))

    def resume(self, name: str) -> None:
        """The inactive table, if there is one, becomes the live one; I/O goes on."""
        self.command("resume", name=name)

    def table(self, name: str, *, inactive: bool = False) -> list[TableLine]:
        """The live table, or the inactive one."""
        return self._lines("table", name, DmFlag.STATUS_TABLE | (DmFlag.QUERY_INACTIVE if inactive else 0))

    def status(self, name: str) -> list[TableLine]:
        """What the targets of the live table have to say."""
        return self._lines("status", name, 0)

    def _lines(self, verb: str, name: str, flags: int) -> list[TableLine]:
        entries = self.command(verb, name=name, flags=Unsigned(flags)).get("cmd_data", ())
        return [(int(e["start"]), int(e["length"]), e["type"], e.get("params", "")) for e in entries]

    def deps(self, name: str) -> list[int]:
        """The packed numbers of the devices that the live table uses (`records.netbsd_decode`)."""
        return [int(number) for number in self.command("deps", name=name).get("cmd_data", ())]

    def message(self, name: str, message: str, sector: int = 0) -> str:
        """Tell the target at `sector` something; returns its answer."""
        data = [{"sector": Unsigned(sector), "message": message}]
        (answer,) = self.command("message", name=name, cmd_data=data).get("cmd_data") or [""]
        return answer if isinstance(answer, str) else ""

    def waitevent(self, name: str, event_nr: int = 0) -> int:
        """Wait until the device's event number is not `event_nr`; returns it."""
        return int(self.command("waitevent", name=name, event_nr=Unsigned(event_nr)).get("event_nr", 0))

    def setgeometry(self, name: str, cylinders: int, heads: int, sectors: int, start: int) -> None:
        self.command("setgeometry", name=name, cmd_data=[f"{cylinders} {heads} {sectors} {start}"])

    def pdevs(self) -> list[dict[str, Any]]:
        """The physical devices in use, newest first: path, dev ("MAJ:MIN"), ref_cnt, size (sectors)."""
        return list(self.command("pdevs")["cmd_data"])

    def log(self) -> list[str]:
        """What the kernel would have logged."""
        return list(self.command("log")["cmd_data"])
