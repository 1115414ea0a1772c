"""Recorded sessions of real programs, under the bridge: as root and as an ordinary user."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.bridge_replay import EXCLUDED, SESSIONS, Outcome, replay

TESTS = Path(__file__).parents[2]
NOBODY = "65534"
PROGRAMS = {
    "crypt": ["cryptsetup", "veritysetup"],
    "lvm": ["lvm"],
    "misc": ["kpartx", "sfdisk", "mkfs.ext4", "lvm", "cryptsetup"],
    "dmsetup": ["dmsetup"],
}
CHECK = "import dmserver.testing, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
INTERPRETERS = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3")


def as_nobody(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run Python as an ordinary user; root's own interpreter may be out of his reach."""
    for interpreter in INTERPRETERS:
        if nobody_may_run(interpreter):
            return _drop(interpreter, *argv)
    pytest.skip("no interpreter that an ordinary user may run, with the packages")


@functools.cache
def nobody_may_run(interpreter: str) -> bool:
    return _drop(interpreter, "-c", CHECK).returncode == 0


def _drop(*argv: str) -> subprocess.CompletedProcess[str]:
    drop = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *packages]), "HOME": "/tmp"}
    return subprocess.run([*drop, *argv], env=env, cwd="/tmp", capture_output=True, text=True, check=False)


def compare(file: str, outcomes: list[Outcome]) -> None:
    different = [str(outcome) for outcome in outcomes if outcome.differences and not outcome.excluded]
    assert not different, "\n".join(different)
    stale = [outcome.line for outcome in outcomes if outcome.excluded and not outcome.differences]
    assert len(outcomes) > 20, file
    assert len(stale) < len(outcomes) // 4, f"excluded though equal: {stale}"


@pytest.fixture(params=SESSIONS)
def file(request: pytest.FixtureRequest) -> str:
    for program in PROGRAMS[request.param.split("_")[0]]:
        if shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            pytest.skip(f"{program} is not installed")
    return str(request.param)


@pytest.mark.skipif(os.geteuid() != 0, reason="the recordings were made by root")
def test_as_root(file: str) -> None:
    compare(file, list(replay(file)))


def test_as_an_ordinary_user(file: str) -> None:
    if file.startswith("misc"):
        pytest.skip("the misc sessions look at mounts, and at what root may do")
    if os.geteuid() != 0:
        compare(file, list(replay(file)))
        return
    done = as_nobody("-m", "support.bridge_replay", file)
    assert not done.returncode, done.stderr
    compare(file, [Outcome(**json.loads(line)) for line in done.stdout.splitlines()])


def test_every_exclusion_names_a_session() -> None:
    assert {file for file, _, _ in EXCLUDED} <= set(SESSIONS)
