"""The child's side of a start: enter the filter, send the listener home, become the program.

`python -m dmserver.bridge.launch FD PROGRAM ARG...` does so in a process of its own; FD is a socket whose other end
gets the listener, or the reason why there is none.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

from .rules import filter_program
from .seccomp import install_filter

__all__ = ["enter", "receive_listener"]


def enter(
    link: socket.socket,
    path: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    last: Callable[[], object] = lambda: None,
) -> None:
    """Does not return. `last` is called just before the program starts."""
    try:
        try:
            listener = install_filter(filter_program())
        except OSError as error:
            link.sendall(f"{error.errno} {error.strerror}".encode())
            os._exit(125)
        socket.send_fds(link, [b"listener"], [listener])
        os.close(listener)
        link.close()
        last()
        try:
            os.execve(path, list(argv), env)
        except OSError as error:
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
            os._exit(126)
    finally:
        os._exit(125)


def receive_listener(link: socket.socket) -> int:
    """The descriptor that `enter` sent to our end. OSError with the reason when there is none."""
    message, fds, _, _ = socket.recv_fds(link, 4096, 1)
    if fds:
        os.set_inheritable(fds[0], False)
        return fds[0]
    number, _, reason = message.decode().partition(" ")
    raise OSError(int(number or 0), reason or "the program could not be started")


if __name__ == "__main__":
    enter(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[2:], os.environ)
