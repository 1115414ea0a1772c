"""The NBD server: mapped devices as exports, on a Unix socket or TCP.

One thread for each connection, so that a client that is slow, dead or makes no sense concerns its own thread only. A
connection past its negotiation is one open of its device.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import threading
from functools import partial
from typing import TYPE_CHECKING

from .nbd_options import Garbage, Negotiation
from .nbd_serve import Transmission

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..model.dm_dev import DmDev
    from ..model.mapper import Mapper

__all__ = ["NbdServer"]

_BACKLOG = 512
_log = logging.getLogger(__name__)


class NbdServer:
    """Serves the devices of `mapper`. `start` and `close` belong to one thread."""

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper
        self.address = ""
        self._listener: socket.socket | None = None
        self._path: str | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        #: How to make each thread end.
        self._threads: dict[threading.Thread, Callable[[], None]] = {}
        self._spare = -1

    def start(self, address: str) -> str:
        """Listen on `tcp:HOST:PORT` or the path of a Unix socket; returns the address with the port that was given.
        ValueError for a malformed address, OSError when it cannot be used. A dead server's socket is replaced."""
        if address.startswith("tcp:"):
            host, _, port = address[4:].rpartition(":")
            if not host or not port.isdecimal() or int(port) > 0xFFFF:
                raise ValueError(f"NBD address {address!r}: expected a path or tcp:HOST:PORT")
            self._listener = socket.create_server((host.strip("[]"), int(port)), backlog=_BACKLOG, family=_family(host))
            self.address = f"tcp:{host}:{self._listener.getsockname()[1]}"
        else:
            self._listener = _listen_unix(address)
            self.address = self._path = address
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        acceptor = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)
        self._threads[acceptor] = partial(_shut, self._listener)
        acceptor.start()
        return self.address

    def close(self) -> None:
        """End all connections and stop listening."""
        with self._lock:
            self._closed.set()
            threads = dict(self._threads)
        for end in threads.values():
            end()
        for thread in threads:
            thread.join()
        if self._listener is not None:
            self._listener.close()
            os.close(self._spare)
        if self._path is not None:
            os.unlink(self._path)

    # -- exports, for the negotiation -------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of the devices with a live table."""
        return sorted(dev.name for dev in tuple(self.mapper.devices.values()) if dev.name and dev.live)

    def open(self, name: str) -> DmDev:
        """Open the device of this name; OSError when there is none, or it has no live table."""
        dev = self.mapper.by_name(name)
        if dev is None:
            raise OSError(errno.ENOENT, f"no device is called {name!r}")
        if dev.live is None:
            raise OSError(errno.ENXIO, f"device {name!r} has no live table")
        dev.open()
        return dev

    # -- connections ------------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closed.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as failure:
                if failure.errno in (errno.EMFILE, errno.ENFILE):
                    self._turn_away()
                continue
            thread = threading.Thread(target=self._connection, args=(sock,), name="nbd", daemon=True)
            with self._lock:
                if self._closed.is_set():
                    sock.close()
                    return
                self._threads[thread] = partial(_shut, sock)
            try:
                thread.start()
            except RuntimeError as failure:
                _log.warning("NBD: a connection was turned away: %s", failure)
                self._forget(thread, sock)

    def _turn_away(self) -> None:
        """No descriptor is left for a connection: use the spare one to close it."""
        assert self._listener is not None
        os.close(self._spare)
        try:
            self._listener.accept()[0].close()
        except OSError:
            pass
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        _log.warning("NBD: a connection was turned away: no more file descriptors")

    def _connection(self, sock: socket.socket) -> None:
        negotiation = Negotiation(sock, self)
        try:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            bdev = negotiation.run()
            if bdev is not None:
                self._transmit(sock, bdev, negotiation)
        except (EOFError, ConnectionError):
            pass
        except (Garbage, OSError) as failure:
            _log.info("NBD: a connection ended: %s", failure)
        except Exception:
            _log.exception("NBD: a connection failed")
        finally:
            if negotiation.chosen is not None:
                negotiation.chosen.close()
            self._forget(threading.current_thread(), sock)

    def _transmit(self, sock: socket.socket, bdev: DmDev, negotiation: Negotiation) -> None:
        transmission = Transmission(
            sock, bdev, structured=negotiation.structured, allocation=negotiation.allocation is not None
        )
        negotiation.chosen = None
        with self._lock:
            self._threads[threading.current_thread()] = transmission.interrupt
        try:
            if not self._closed.is_set():
                transmission.run()
        finally:
            transmission.interrupt()
            transmission.close(bdev.close)

    def _forget(self, thread: threading.Thread, sock: socket.socket) -> None:
        with self._lock:
            self._threads.pop(thread, None)
        sock.close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _shut(sock: socket.socket) -> None:
    """Wake whoever waits for the socket."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _listen_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead_socket(path)
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
    except OSError as failure:
        listener.close()
        raise OSError(failure.errno, failure.strerror or str(failure), path) from None
    return listener


def _remove_dead_socket(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
