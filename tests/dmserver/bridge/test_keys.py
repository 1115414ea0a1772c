"""Keys of the kernel's keyring in tables: while they are there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytest.importorskip("cryptography")

#: keyctl(2) has no wrapper in the C library. `take` is what is done to the key; a table names it before and after.
SCRIPT = """
import ctypes, platform, subprocess, sys
number = {"x86_64": 248, "aarch64": 217}[platform.machine()]
call = ctypes.CDLL(None, use_errno=True).syscall
call.restype = ctypes.c_long
add = lambda ring: call(number, b"logon", b"test:key", bytes(32), ctypes.c_size_t(32), ring)
key = add(-2)
if key < 0:
    sys.exit(77)
def load(name):
    table = "0 8 crypt aes-xts-plain64 :32:logon:test:key 0 zero.img 0"
    return subprocess.run(["dmsetup", "create", name, "--table", table], capture_output=True).returncode
print(load("before"))
take = sys.argv[1]
if take == "link":
    call(number + 2, 8, key, -1)
call(number + 2, *{"unlink": (9, key, -2), "link": (9, key, -2), "revoke": (3, key), "other": (6, key, None, 0)}[take])
print(load("after"))
"""


@pytest.mark.parametrize(("take", "expected"), [("unlink", "1"), ("revoke", "1"), ("link", "0"), ("other", "0")])
def test_a_key_that_is_gone_is_not_found(
    dm_run: Run, tmp_path_factory: pytest.TempPathFactory, take: str, expected: str
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "zero.img").write_bytes(bytes(4096))
    done = dm_run(sys.executable, "-c", SCRIPT, take, cwd=folder, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel keeps no keys")
    assert done.stdout.split() == ["0", expected], done.stderr
