"""The pytest plugin, used by a test suite of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmserver.client import Client
from dmserver.testing import PrivateServer

SUITE = """
import os
import subprocess
import sys

import pytest


def test_linear(dm_run, dm, tmp_path):
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    dm_run("dmsetup", "create", "vol", "--table", "0 2048 linear disk.img 0", cwd=tmp_path)
    assert [name for name, minor in dm.names()] == ["vol"]


@pytest.mark.parametrize("number", range(3))
def test_each_has_its_own(dm, dm_run, dmserver, number):
    assert dm.names() == []
    assert len(os.fsencode(dmserver.socket)) < 30
    dm.create("same")
    assert dm_run("dmsetup", "ls").stdout == "same\\t(253:0)\\n"


def test_a_failure_is_raised(dm_run):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        dm_run("dmsetup", "remove", "nothing")
    assert "No such device" in caught.value.stderr


def test_a_failure_tells_what_was_said_and_logged(dm_run):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        dm_run("dmsetup", "create", "vol", "--table", "0 8 linear")
    (note,) = caught.value.__notes__
    assert "reload ioctl on vol" in note
    assert "linear: Invalid argument count" in note
"""

dmsetup = pytest.mark.skipif(shutil.which("dmsetup", path="/usr/sbin:/sbin") is None, reason="no dmsetup")


def suite(tmp_path: Path, *options: str) -> str:
    (tmp_path / "test_it.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    return done.stdout + done.stderr


@dmsetup
def test_a_users_suite(tmp_path: Path) -> None:
    assert "6 passed" in suite(tmp_path)


@dmsetup
def test_in_parallel(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    assert "6 passed" in suite(tmp_path, "-n", "2")


def test_nothing_heavy_is_imported_for_the_plugin() -> None:
    code = "import dmserver.testing, sys; print({'construct', 'ctypes', 'dmproto', 'dmserver.host'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_programs_that_cannot_be_started(dmserver: PrivateServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        dmserver.run("no-such-program")
    (tmp_path / "garbage").write_text("\0")
    (tmp_path / "garbage").chmod(0o755)
    assert dmserver.run(tmp_path / "garbage", check=False).returncode == 126


def test_input_environment_and_timeout(dmserver: PrivateServer) -> None:
    assert dmserver.run("sh", "-c", "cat; echo $WORD", input="in ", env={"WORD": "out"}).stdout == "in out\n"
    with pytest.raises(subprocess.TimeoutExpired):
        dmserver.run("sleep", "60", timeout=0.1)


def test_the_server_goes_away(tmp_path: Path) -> None:
    with PrivateServer() as server:
        path = server.socket
        with Client(path) as client:
            client.create("a")
    assert not Path(path).exists()
    with pytest.raises(ZeroDivisionError), PrivateServer() as server:
        server.call(lambda: 1 // 0)
