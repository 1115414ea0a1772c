"""A reader that has had enough ends the output, not the tool in a traceback; errors are told in words."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dmproto.output import print_lines, reason

PROGRAM = "import sys; from dmproto.output import print_lines; sys.exit(print_lines(map(str, range(10**6))))"


def test_all_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_lines(["a", "b"])
    assert capsys.readouterr().out == "a\nb\n"


def test_a_reader_may_have_had_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a b"), "/a b: No such file or directory"),
        (OSError(16, "supervised already"), "supervised already"),
        (OSError("no number"), "no number"),
        (ValueError("size '1x'"), "size '1x'"),
    ],
)
def test_why_something_failed(error: Exception, words: str) -> None:
    assert reason(error) == words
