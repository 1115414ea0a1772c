"""specs/fidelity.md says what the replay says."""

from __future__ import annotations

from support.linux_fidelity import FIDELITY, render


def test_the_page_is_what_the_replay_gives() -> None:
    assert FIDELITY.read_text() == render(), "run: make fidelity"
