"""The `dmserver` program: its subcommands."""

from __future__ import annotations

from importlib import import_module

import pytest

from dmserver.__main__ import COMMANDS, main


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = import_module(COMMANDS[name][0])
    assert callable(module.add_arguments)
    assert callable(module.main)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"dmserver {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["frobnicate"],
        ["serve", "--frobnicate"],
        ["serve", "--personality", "hurd"],
        ["serve", "--allow-uid", "root"],
        *(["serve", option, text] for option in ("--major", "--limit") for text in ("0", "-5", "4294967296", "x")),
    ],
)
def test_a_wrong_use_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage: dmserver" in capsys.readouterr().err


def test_completion_knows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("serve", "doctor", "--allow-read-uid", "--keep"))
