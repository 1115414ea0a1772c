"""What `dmserver doctor` finds agrees with what works."""

from __future__ import annotations

import json
import subprocess
import sys

from dmserver.bridge.doctor import CHECKS, NEEDED


def doctor(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dmserver", "doctor", *options], capture_output=True, text=True)


def test_the_verdict_is_what_a_run_does() -> None:
    works = subprocess.run([sys.executable, "-m", "dmserver", "run", "--", "true"], capture_output=True)
    assert (doctor().returncode == 0) is (works.returncode == 0)


def test_every_finding_as_json_and_as_text() -> None:
    findings = [json.loads(line) for line in doctor("--json").stdout.splitlines()]
    assert len(findings) == len(CHECKS)
    assert {finding["what"] for finding in findings} >= NEEDED
    text = doctor().stdout
    assert all(f"{finding['what']}: {finding['found']}" in text and finding["follows"] in text for finding in findings)
    fuse = next(finding for finding in findings if finding["what"] == "FUSE")
    reads = "dmsetup create z --table '0 8 zero' && head -c 512 /dev/mapper/z"
    done = subprocess.run([sys.executable, "-m", "dmserver", "run", "--", "sh", "-c", reads], capture_output=True)
    assert (done.stdout == bytes(512)) is fuse["ok"]
    ciphers = next(finding for finding in findings if finding["what"] == "ciphers")
    encrypts = f"dmsetup create c --table '0 2 crypt aes-xts-plain64 {bytes(range(64)).hex()} 0 {__file__} 0'"
    done = subprocess.run([sys.executable, "-m", "dmserver", "run", "--", "sh", "-c", encrypts], capture_output=True)
    assert (done.returncode == 0) is ciphers["ok"]
