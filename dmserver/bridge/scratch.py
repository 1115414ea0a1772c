"""A directory for what must be real files while a program runs. tempfile and shutil do the same and much more; a short
run would wait longer for their import than for anything else."""

from __future__ import annotations

import os

__all__ = ["make", "remove"]


def make() -> bytes:
    """A new directory under $TMPDIR that nobody else can enter; its path. OSError."""
    wanted = os.environb.get(b"TMPDIR", b"")
    path = os.path.join(wanted if os.access(wanted, os.W_OK) else b"/tmp", b"dm" + os.urandom(8).hex().encode())
    os.mkdir(path, 0o700)
    return path


def remove(path: bytes) -> None:
    """The directory and all that is in it, as far as that can be done; links are not followed."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(path)
    except OSError:
        pass
