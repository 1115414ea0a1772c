"""Recordings of runs: what `dmproto decode` and a replay read, without secrets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.linux_vectors import VECTORS, expand, ioctls

from dmproto.commands import BY_NAME
from dmserver.bridge.record import elide, redact
from dmserver.control.session import Session
from dmserver.host import Host

KEY = "33edb1c3746c802e8e12876b4a0ab6d2dbeaf56af9e4d90e51fa649e67230256"
SCRIPT = f"""dmsetup create z --table '0 8 zero'; dmsetup info z; dmsetup remove nothing
dmsetup create c --table '0 8 crypt aes-xts-plain64 {KEY} 0 /dev/ram0 0' && dmsetup table --showkeys c"""


def record(tmp_path: Path, *options: str) -> list[dict[str, str]]:
    output = tmp_path / "run.jsonl"
    command = [sys.executable, "-m", "dmserver", "record", "-o", str(output), *options, "--pdev", "/dev/ram0=ram:1M"]
    done = subprocess.run([*command, "--", "sh", "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert KEY in done.stdout
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.skipif(shutil.which("dmsetup", path="/usr/sbin:/sbin") is None, reason="no dmsetup")
def test_a_recording_replays_and_decodes(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    steps = record(tmp_path, "--secrets")
    host = Host()
    host.add_pdev("/dev/ram0=ram:1M")
    for step in steps:
        answers: list[bytes] = []
        request = expand(step["request"])
        host.ioctl(Session(), BY_NAME[step["cmd"]].ioctl, request, lambda result, written: answers.append(written))  # noqa: B023  # called before the next turn
        assert answers == [expand(step["written"])]
    host.close()
    assert [step["errno"] for step in steps if step["cmd"] == "DEV_REMOVE"] == ["ENXIO"]
    command = [sys.executable, "-m", "dmproto", "decode", str(tmp_path / "run.jsonl")]
    decoded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "sectors 0 to 8: crypt" in decoded


@pytest.mark.skipif(shutil.which("dmsetup", path="/usr/sbin:/sbin") is None, reason="no dmsetup")
def test_keys_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    record(tmp_path)
    assert KEY.encode().hex() not in (tmp_path / "run.jsonl").read_text()


def test_redaction_changes_no_length_and_nothing_else() -> None:
    changed = 0
    for path in sorted(VECTORS.glob("*.jsonl")):
        for step in ioctls(path):
            command = BY_NAME.get(step["cmd"])
            if command is None or "types" in path.name:
                continue
            for data, reply in ((step["request"], False), (step["written"], True)):
                hidden = redact(data, command, reply=reply)
                assert len(hidden) == len(data)
                changed += hidden != data
    assert changed


@given(st.binary(max_size=100), st.integers(0, 100), st.integers(0, 255))
def test_elided_text_is_the_same(head: bytes, count: int, byte: int) -> None:
    data = head + bytes([byte]) * count
    assert expand(elide(data)) == data
