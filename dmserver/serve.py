"""`dmserver serve`: a device-mapper on a socket, and what a service manager expects of it (sd_listen_fds(3),
sd_notify(3))."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, ClassVar, get_args

from dmproto.output import reason

from .bridge.join import Doorway, bridge_path
from .client import SOCKET_DEFAULT, default_socket
from .host import Host, Personality
from .loop import Loop
from .server import Policy, Server
from .store import Store, lock

if TYPE_CHECKING:
    from .bridge.bridge import Bridge

__all__ = ["add_arguments", "add_host_arguments", "listen", "main", "make_host"]

#: sys/dev/dm's limit of a request, in bytes; ours elsewhere.
NETBSD_LIMIT, LIMIT = 131072, 64 << 20

_FIRST_FD = 3

_log = logging.getLogger("dmserver")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    uid = _number(0, 0xFFFFFFFE)
    parser.add_argument("--socket", metavar="PATH", help=f"where to listen (default: {SOCKET_DEFAULT})")
    parser.add_argument("--state", metavar="FILE", help="keep devices and tables in FILE")
    add_host_arguments(parser)
    parser.add_argument("--nbd", metavar="PATH", help="export the devices over NBD at a Unix socket or tcp:HOST:PORT")
    parser.add_argument(
        "--mount", metavar="DIR", help="show the devices as files mapper/NAME in DIR, a directory (extra: fuse)"
    )
    parser.add_argument(
        "--allow-uid", metavar="UID", type=uid, action="append", default=[], help="let this user in, besides one's own"
    )
    parser.add_argument(
        "--allow-read-uid", metavar="UID", type=uid, action="append", default=[], help="let this user look, not touch"
    )
    parser.add_argument(
        "--limit",
        metavar="BYTES",
        type=_number(1, 1 << 30),
        help=f"refuse property lists of so many bytes (default: {LIMIT}; {NETBSD_LIMIT} under netbsd)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log every request")


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
    """What makes a host: for every program that has one."""
    parser.add_argument(
        "--pdev",
        metavar="DEVICE=BACKING[,dev=MAJ:MIN][,ro]",
        action="append",
        default=[],
        help="a device that tables may name; BACKING is a file, a block device, or ram:SIZE",
    )
    parser.add_argument(
        "--personality", choices=get_args(Personality), default="auto", help="whose rules hold (default: auto)"
    )
    parser.add_argument(
        "--major", type=_number(1, 0xFFF), help="device-mapper's block major (default: 253; 169 under netbsd)"
    )


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number from {least} to {most}")
        return int(text)

    return number


def make_host(options: argparse.Namespace) -> Host:
    """The host of `add_host_arguments`. ValueError or OSError tells of a bad --pdev."""
    host = Host(options.personality, major=options.major)
    for pdev in options.pdev:
        host.add_pdev(pdev)
    return host


def listen(path: str, *, everyone: bool) -> socket.socket:
    """Listen at `path`; the socket that a dead server left there is removed. OSError(EADDRINUSE) when one is alive.

    `everyone`: any user may connect, to be judged by the server's policy; else the file's mode keeps others out.
    """
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o111 if everyone else 0o177)
    try:
        try:
            listener.bind(path)
        except OSError as failure:
            if failure.errno != errno.EADDRINUSE:
                # Python gives no number to a path that is too long
                raise OSError(failure.errno or errno.ENAMETOOLONG, failure.strerror or str(failure), path) from None
            if not _dead(path):
                raise OSError(errno.EADDRINUSE, "in use by another server, or no socket", path) from None
            os.unlink(path)
            listener.bind(path)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.setblocking(False)
    return listener


def _dead(path: str) -> bool:
    """A socket that nobody listens on."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # one that is too busy to listen is alive
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False


def inherited() -> socket.socket | None:
    """The socket that the service manager listens on for us, if it does."""
    count = os.environ.get("LISTEN_FDS", "0")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or count == "0":
        return None
    if count != "1":
        raise ValueError(f"LISTEN_FDS: expected one socket, got {count!r}")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    os.set_inheritable(_FIRST_FD, False)
    listener = socket.socket(fileno=_FIRST_FD)
    if listener.family != socket.AF_UNIX:
        listener.close()
        raise ValueError("LISTEN_FDS: expected a Unix socket: only there is a peer known")
    listener.setblocking(False)
    return listener


def notify(state: str) -> None:
    """Tell the service manager, if there is one."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            try:
                manager.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
            except OSError as failure:
                _log.warning("NOTIFY_SOCKET %s: %s", path, failure.strerror)


class _Lines(logging.Formatter):
    """One line a message: control characters, of a client's names say, are written as escapes."""

    _ESCAPES: ClassVar = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).translate(self._ESCAPES)


def main(options: argparse.Namespace) -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if options.verbose:
        logging.getLogger("dmserver").setLevel(logging.DEBUG)
    try:
        return _serve(options)
    except (OSError, ValueError, LookupError, ImportError) as failure:
        print(f"dmserver serve: {reason(failure)}", file=sys.stderr)
        return 1


def _serve(options: argparse.Namespace) -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor for each client, and no select(2)
    with ExitStack() as stack:
        path, listener = _listener(options, stack)
        loop = Loop()
        stack.callback(loop.close)
        host = make_host(options)
        stack.callback(host.close)
        store = Store(options.state, host) if options.state else None
        if store is not None:
            stack.callback(os.close, lock(options.state))
            store.restore()
            stack.callback(store.save)
        host.mapper.events.on_log(logging.getLogger("dmserver.kernel").info)
        policy = Policy(admins={0, os.geteuid(), *options.allow_uid}, readers=set(options.allow_read_uid))
        server = Server(
            host,
            loop,
            listener,
            policy,
            limit=options.limit or (NETBSD_LIMIT if host.personality == "netbsd" else LIMIT),
            binary_limit=LIMIT,
            before_replies=store.save_changes if store is not None else None,
        )
        stack.callback(server.close)
        _open_doors(options, host, stack)
        _open_doorway(path, options, loop, host, policy, stack)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(number, loop.stop)
        print(f"ready: {path}", flush=True)
        notify("READY=1")
        loop.run()
        notify("STOPPING=1")
    return 0


def _listener(options: argparse.Namespace, stack: ExitStack) -> tuple[str, socket.socket]:
    """The socket to serve, and its path: the service manager's, or our own, which is gone afterwards."""
    listener = inherited()
    if listener is not None:
        stack.callback(listener.close)
        return listener.getsockname(), listener
    path: str = options.socket or default_socket()
    return path, _own(path, stack, everyone=bool(options.allow_uid or options.allow_read_uid))


def _own(path: str, stack: ExitStack, *, everyone: bool) -> socket.socket:
    """Listen at `path`; afterwards it is gone, unless somebody else's socket has taken its place."""
    listener = listen(path, everyone=everyone)
    made = os.stat(path)

    @stack.callback
    def remove() -> None:
        with suppress(FileNotFoundError):
            if os.path.samestat(made, os.lstat(path)):
                os.unlink(path)

    stack.callback(listener.close)
    return listener


def _open_doors(options: argparse.Namespace, host: Host, stack: ExitStack) -> None:
    """The doors for data."""
    if options.nbd:
        from .io.nbd import NbdServer

        nbd = NbdServer(host.mapper)
        _log.info("NBD exports at %s", nbd.start(options.nbd))
        stack.callback(nbd.close)
    if options.mount:
        from .io.fusefs import FuseMount

        mount = FuseMount(host.mapper, options.mount)
        mount.start()
        stack.callback(mount.close)


def _open_doorway(
    path: str, options: argparse.Namespace, loop: Loop, host: Host, policy: Policy, stack: ExitStack
) -> None:
    """The door for programs that `dmserver run --socket` starts; the bridge is made when the first one comes."""
    bridges: list[Bridge] = []

    def supervise(listener: int) -> None:
        if not bridges:
            from .bridge.bridge import Bridge

            bridges.append(Bridge(loop, host))
        bridges[0].supervise(listener)

    @stack.callback
    def close() -> None:
        for bridge in bridges:
            bridge.close()

    listener = _own(bridge_path(path), stack, everyone=bool(options.allow_uid))
    stack.callback(Doorway(loop, listener, supervise, policy.admins.__contains__).close)
