"""What a program leaves behind under `dmserver run --keep`: its device-mapper, served at a socket."""

from __future__ import annotations

import os
import signal
import sys
import tempfile

from dmserver.host import Host
from dmserver.loop import Loop
from dmserver.serve import LIMIT, listen
from dmserver.server import Policy, Server

__all__ = ["serve"]


def serve(loop: Loop, host: Host) -> None:
    """Serve the host at a socket of its own until SIGINT or SIGTERM."""
    with tempfile.TemporaryDirectory(prefix="dm") as directory:
        path = os.path.join(directory, "s")
        with listen(path, everyone=False) as listener:
            policy = Policy(admins={0, os.geteuid()})
            server = Server(host, loop, listener, policy, limit=LIMIT, binary_limit=LIMIT)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.on_signal(number, loop.stop)
            print(f"dmserver run: the device-mapper stays at {path}", file=sys.stderr, flush=True)
            loop.run()
            server.close()
