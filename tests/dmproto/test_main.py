"""The `dmproto` tool, run in this process on real files."""

from __future__ import annotations

import io
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.linux_vectors import VECTORS, ioctls

from dmproto import linux
from dmproto.__main__ import main
from dmproto.commands import BY_NAME
from dmproto.records import Header, Message, TargetSpec

LOAD = BY_NAME["TABLE_LOAD"]
BUFFER = linux.build(
    Message(
        command=LOAD,
        header=Header(name="x", target_count=1),
        payload=(TargetSpec(start=0, length=8, type="zero"),),
    )
)


@pytest.fixture
def buffer(tmp_path: Path) -> str:
    path = tmp_path / "request.bin"
    path.write_bytes(BUFFER)
    return str(path)


def run(capsysbinary: pytest.CaptureFixture[bytes], *arguments: str) -> tuple[int, bytes, str]:
    status = main(list(arguments))
    out, err = capsysbinary.readouterr()
    return status, out, err.decode()


@pytest.mark.parametrize("form", ["plist", "json"])
def test_there_and_back(form: str, buffer: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    status, text, err = run(capsysbinary, "convert", "--to", form, "--command", "reload", buffer)
    assert (status, err) == (0, "")
    (tmp_path / "text").write_bytes(text)
    status, data, _ = run(capsysbinary, "convert", "--to", "binary", str(tmp_path / "text"))
    assert (status, data) == (0, BUFFER)


def test_every_accepted_message_of_a_recording_survives_as_plist(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    steps = [s for s in ioctls(VECTORS / "table_load.jsonl") if s["errno"] == "0" and s["cmd"] == "TABLE_LOAD"]
    for step in steps:
        (tmp_path / "bin").write_bytes(step["request"])
        _, text, _ = run(capsysbinary, "convert", "--to", "plist", "--command", "DM_TABLE_LOAD", str(tmp_path / "bin"))
        (tmp_path / "plist").write_bytes(text)
        _, data, _ = run(capsysbinary, "convert", "--to", "binary", str(tmp_path / "plist"))
        assert data == step["request"], step["label"]


def test_standard_input_and_strict(
    buffer: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    odd = bytearray(BUFFER)
    odd[310] = 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(odd)))
    status, out, err = run(capsysbinary, "convert", "--to", "plist", "--command", "reload", "--strict")
    assert (status, out) == (1, b"")
    assert err.startswith("dmproto: standard input: ")


def test_decode_as_text_and_as_json(buffer: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    status, out, _ = run(capsysbinary, "decode", "--command", "DM_TABLE_LOAD", buffer)
    assert status == 0
    assert b"sectors 0 to 8: zero" in out
    status, out, _ = run(capsysbinary, "decode", "--json", "--command", "reload", buffer)
    assert json.loads(out)["data"] == [{"start": 0, "length": 8, "type": "zero", "params": ""}]


@pytest.mark.parametrize("form", ["plist", "json", "draft", "binary"])
def test_decode_reads_every_form(
    form: str, buffer: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    _, text, _ = run(capsysbinary, "convert", "--to", form, "--command", "reload", buffer)
    (tmp_path / "text").write_bytes(text)
    status, out, err = run(capsysbinary, "decode", "--json", "--command", "reload", str(tmp_path / "text"))
    assert (status, err) == (0, "")
    said = json.loads(out)
    assert (said["command"], said["name"], said["data"][0]["type"]) == ("DM_TABLE_LOAD", "x", "zero")


@pytest.mark.parametrize("name", ["t_crypt", "crypt_plain", "crypt_verity", "t_verity_etc"])
def test_no_recorded_key_is_printed(name: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    keys = set()
    for step in ioctls(VECTORS / f"{name}.jsonl"):
        if step["cmd"] == "TABLE_LOAD" and step["errno"] == "0":
            for target in linux.parse(step["request"], LOAD).payload or ():
                words = target.params.split() if isinstance(target, TargetSpec) and target.type == "crypt" else []
                keys |= {word for word in words[1:2] if len(word) >= 16 and word[0] != ":"}
    path = str(VECTORS / f"{name}.jsonl")
    for options in ([], ["--json"]):
        _, out, err = run(capsysbinary, "decode", *options, path)
        assert not [key for key in keys if key in out.decode() + err]
    if keys:
        _, out, _ = run(capsysbinary, "decode", "--show-secrets", path)
        assert all(key in out.decode() for key in keys)


def test_errors_quote_no_secret(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "bad"
    path.write_bytes(b'{"command":"message","flags":0,"cmd_data":"key set 00112233"}\n')
    status, _, err = run(capsysbinary, "decode", str(path))
    assert status == 1
    assert "cmd_data" in err
    assert "00112233" not in err


def test_errors_are_fit_for_a_terminal(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "file\x1b]0;name"
    path.write_bytes(b'{"command":"a\xff\\u001b[2J\xc3\xa9\\n"}')
    _, _, err = run(capsysbinary, "convert", "--to", "plist", str(path))
    assert err.startswith(rf'dmproto: {tmp_path}/file\x1b]0;name: line 1: command: unknown command "a\xff\x1b[2Jé\n", ')
    assert err.count("\n") == 1


def test_refused_calls_of_a_recording_are_reported_but_no_failure(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    status, _, err = run(capsysbinary, "decode", str(VECTORS / "table_load.jsonl"))
    assert status == 0
    assert "the recorded call failed: EINVAL" in err


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (BUFFER, [], "a binary message does not tell its command: give one with --command"),
        (BUFFER[:400], ["--command", "reload"], "data_size: 16384 bytes, but only 400 are there at offset 12"),
        (b"<plist><dict><key>command</key></dict></plist>", [], "offset"),
        (b"", [], "nothing there"),
        (b"04 00 zz", ["--command", "reload"], "or the bytes of a buffer, found b'04 00 zz' at offset 0"),
        (b'{"command":7}', [], "command"),
    ],
)
@pytest.mark.parametrize("verb", [["decode"], ["convert", "--to", "plist"]], ids=["decode", "convert"])
def test_bad_messages_name_file_and_place(
    content: bytes,
    arguments: list[str],
    words: str,
    verb: list[str],
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    status, out, err = run(capsysbinary, *verb, *arguments, str(path))
    assert (status, out) == (1, b"")
    assert err.startswith(f"dmproto: {path}")
    assert words in err


def test_a_missing_file(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(capsysbinary, "decode", "/no/such") == (1, b"", "dmproto: /no/such: No such file or directory\n")


def test_decode_goes_on_behind_a_bad_message(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "three"
    path.write_bytes(b'{"command":"names"}\n{"command":7}\n{"command":"targets"}\n')
    status, out, err = run(capsysbinary, "decode", "--json", str(path))
    assert status == 1
    assert [json.loads(line)["verb"] for line in out.splitlines()] == ["names", "targets"]
    assert "line 2" in err


@pytest.mark.parametrize(
    "arguments", [[], ["convert"], ["decode", "--command", "nonsense"], ["--print-completion", "nonsense"]]
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: dmproto" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["convert", "--help"], ["decode", "--help"]])
def test_help_shows_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert arguments == ["--help"] or "examples:" in capsys.readouterr().out


def test_completion(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", "bash"])
    assert caught.value.code == 0
    script = capsys.readouterr().out
    assert "_decode_pos_0_COMPGEN=_shtab_compgen_files" in script


def test_completion_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", "bash"])
    assert caught.value.code == 1
    assert "dmproto[completion]" in capsys.readouterr().err


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = itertools.count()
    monkeypatch.setattr("dmproto.__main__.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    path = VECTORS / "t_zero_error.jsonl"
    assert main(["decode", str(path)]) == 0
    assert f"\rdmproto: {path}: 1 messages in 1 s" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    tool = subprocess.Popen(
        [sys.executable, "-m", "dmproto", "decode", str(VECTORS / "t_linear.jsonl")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert tool.stdout is not None
    assert tool.stderr is not None
    tool.stdout.readline()
    tool.stdout.close()
    with tool.stderr:
        assert b"Traceback" not in tool.stderr.read()
    tool.wait()


def closed(*arguments: str, shell: str, data: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run the tool with the streams as a shell redirects them."""
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "dmproto", *arguments]
    done = subprocess.run(command, input=data, capture_output=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ("<&-", "standard input: Bad file descriptor"),
        (">&-", "standard output: Bad file descriptor"),
        (">/dev/full", "standard output: No space left on device"),
    ],
)
@pytest.mark.parametrize("verb", [["decode"], ["convert", "--to", "json"]], ids=["decode", "convert"])
def test_streams_that_do_not_work(verb: list[str], shell: str, said: str) -> None:
    data = b'{"command":"names"}'
    assert closed(*verb, shell=shell, data=data) == (1, b"", f"dmproto: {said}\n".encode())


def test_errors_that_nobody_wants_to_hear(buffer: str) -> None:
    assert closed("convert", "--to", "binary", buffer, "/no/such", shell="2>&-") == (1, b"", b"")
    assert closed("convert", "--to", "binary", "--command", "reload", buffer, shell="2>&- <&-") == (0, BUFFER, b"")


def test_several_files_and_standard_input_twice(buffer: str) -> None:
    status, out, err = closed(
        "convert", "--to", "binary", "--command", "reload", buffer, "-", "-", shell="", data=BUFFER
    )
    assert (status, out) == (1, BUFFER * 2)
    assert err.startswith(b"dmproto: standard input: nothing there")


def test_a_directory(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(capsysbinary, "decode", str(tmp_path)) == (1, b"", f"dmproto: {tmp_path}: Is a directory\n")


def test_an_interrupt(buffer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmproto.translate.convert", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert main(["convert", "--to", "plist", "--command", "reload", buffer]) == 130
