"""A reader that has had enough ends the output, not the tool in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dmproto.output import print_lines

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
