"""NetBSD's rules: every recording of the 2025 driver replays identically."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import netbsd_replay
from support.netbsd_replay import NetbsdReplay, Step

from dmserver.host import Host

#: Control steps about data, which are for the data path to replay.
DATA = ("read", "write", "media", "wedgeinfo", "diskinfo", "sync")

SCENARIOS = list(netbsd_replay.scenarios())


@pytest.fixture
def replay() -> Iterator[NetbsdReplay]:
    host = Host("netbsd")
    yield NetbsdReplay(host)
    host.close()


@pytest.mark.parametrize(
    ("file", "scenario", "steps"), SCENARIOS, ids=[f"{file}-{scenario[:50]}" for file, scenario, _ in SCENARIOS]
)
def test_a_recording_replays_identically(replay: NetbsdReplay, file: str, scenario: str, steps: list[Step]) -> None:
    for step in steps:
        if (file, scenario, step["step"]) in netbsd_replay.SKIPPED:
            continue
        if control := step.get("control"):
            if not control.startswith(DATA):
                assert replay.control(control) == netbsd_replay.seen(step.get("out")), step["label"]
            continue
        failure, text = replay.request(netbsd_replay.request_text(step))
        assert failure == netbsd_replay.reply_errno(step), step["label"]
        if "crash" not in step:
            assert text == netbsd_replay.reply_text(step), step["label"]
