"""The directory of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmserver.bridge import scratch


def test_it_is_made_where_temporary_files_go_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    one, other = scratch.make(), scratch.make()
    assert one != other
    assert os.path.dirname(one) == os.fsencode(tmp_path)
    assert os.stat(one).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("unusable", ["", "/nowhere/at/all"])
def test_a_tmpdir_that_cannot_be_used_is_passed_over(unusable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", unusable)
    path = scratch.make()
    os.rmdir(path)
    assert os.path.dirname(path) == b"/tmp"


def test_removal_takes_all_that_is_in_it_and_follows_no_link(tmp_path: Path) -> None:
    kept, directory = tmp_path / "kept", tmp_path / "run"
    (directory / "a" / "b").mkdir(parents=True)
    kept.mkdir()
    (kept / "file").touch()
    (directory / "a" / "file").touch()
    (directory / "a" / "b" / "link").symlink_to(kept)
    (directory / "dangling").symlink_to("nowhere")
    scratch.remove(os.fsencode(directory))
    assert not directory.exists()
    assert (kept / "file").exists()


def test_what_is_gone_already_is_no_failure(tmp_path: Path) -> None:
    scratch.remove(os.fsencode(tmp_path / "nothing"))
