"""dmproto.parameters: the grammars against every table and status line that was recorded, and what is redacted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.linux_vectors import FILES, ioctls

from dmproto import linux, parameters
from dmproto.commands import BY_NAME
from dmproto.flags import DmFlag
from dmproto.parameters import REDACTED, STATUS, TABLE
from dmproto.records import TargetSpec

#: Constructors that take arguments which they do not look at.
LAX = {"error", "log-writes"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_grammars_account_for_every_accepted_line(path: Path) -> None:
    for step in ioctls(path):
        if step["errno"] != "0" or step["cmd"] not in ("TABLE_LOAD", "TABLE_STATUS", "DEV_WAIT"):
            continue
        reply = step["cmd"] != "TABLE_LOAD"
        message = linux.parse(step["written" if reply else "request"], BY_NAME[step["cmd"]], reply=reply)
        table = not reply or bool(message.header.flags & DmFlag.STATUS_TABLE)
        for target in message.payload or ():
            assert isinstance(target, TargetSpec)
            if target.params.startswith("target_name="):
                continue  # DM_IMA_MEASUREMENT_FLAG
            fields = parameters.parse(target.type, target.params, table=table)
            if fields is None:
                assert not target.params
                continue
            assert "lacks" not in fields
            assert "more" not in fields or target.type in LAX


@pytest.mark.parametrize(
    ("kind", "params", "fields"),
    [
        ("linear", "8:0 384", {"device": "8:0", "offset": "384"}),
        ("linear", "8:0", {"device": "8:0", "lacks": "offset"}),
        ("linear", "8:0 1 2", {"device": "8:0", "offset": "1", "more": ["2"]}),
        ("zero", "", {}),
        (
            "striped",
            "2 8 a 0 b 1",
            {"chunk_size": "8", "stripes": [{"device": "a", "offset": "0"}, {"device": "b", "offset": "1"}]},
        ),
        ("striped", "x 8 a 0", {"chunk_size": "8", "lacks": "a number of stripes, not x", "more": ["a", "0"]}),
        (
            "flakey",
            "1:0 0 1 2 1 drop_writes",
            {"device": "1:0", "offset": "0", "up_interval": "1", "down_interval": "2", "features": ["drop_writes"]},
        ),
        ("delay", r"a\ b 0 1", {"device": "a b", "offset": "0", "delay": "1"}),
    ],
)
def test_fields(kind: str, params: str, fields: dict[str, Any]) -> None:
    assert parameters.parse(kind, params) == fields


def test_groups_within_groups() -> None:
    fields = parameters.parse("multipath", "0 0 1 1 round-robin 0 2 1 1:0 1000 1:1 10")
    assert fields is not None
    assert fields["groups"] == [
        {"selector": "round-robin", "paths": [{"device": "1:0", "args": ["1000"]}, {"device": "1:1", "args": ["10"]}]}
    ]


def test_a_huge_count_ends_where_the_words_end() -> None:
    fields = parameters.parse("striped", "999999999 8 1:0 0")
    assert fields == {"chunk_size": "8", "stripes": [{"device": "1:0", "offset": "0"}, {}], "lacks": "device"}


def test_unknown_types_have_no_grammar() -> None:
    assert parameters.parse("no-such-target", "a b") is None


@pytest.mark.parametrize(
    ("kind", "params", "redacted"),
    [
        ("crypt", "aes-xts-plain64 00ff 0 1:0 0", f"aes-xts-plain64 {REDACTED} 0 1:0 0"),
        ("crypt", "  aes\t00ff", f"  aes\t{REDACTED}"),
        ("crypt", r"a\ b c\ d 0", rf"a\ b {REDACTED} 0"),
        ("crypt", "aes - 0 1:0 0", "aes - 0 1:0 0"),
        ("crypt", "aes :64:logon:cryptsetup:x 0 1:0 0", "aes :64:logon:cryptsetup:x 0 1:0 0"),
        (
            "integrity",
            "1:0 0 - J 1 internal_hash:hmac(sha256):00ff",
            f"1:0 0 - J 1 internal_hash:hmac(sha256):{REDACTED}",
        ),
        (
            "integrity",
            "1:0 0 - J 2 journal_crypt:ctr(aes):aa journal_mac:hmac(md5):bb",
            f"1:0 0 - J 2 journal_crypt:ctr(aes):{REDACTED} journal_mac:hmac(md5):{REDACTED}",
        ),
        ("integrity", "1:0 0 - J 1 internal_hash:crc32c", "1:0 0 - J 1 internal_hash:crc32c"),
        ("linear", "aes 00ff", "aes 00ff"),
    ],
)
def test_keys_are_redacted(kind: str, params: str, redacted: str) -> None:
    assert parameters.redact(kind, params) == redacted


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), min_size=1, max_size=6))
def test_the_second_word_of_crypt_never_stays(words: list[str]) -> None:
    redacted = parameters.split(parameters.redact("crypt", " ".join(["cipher", "S3CRET", *words])))
    assert redacted == ["cipher", REDACTED, *words]


@pytest.mark.parametrize(
    ("message", "redacted"),
    [
        ("key set 00ff", f"key set {REDACTED}"),
        (" KEY  Set\t00 ff", f" KEY  Set\t{REDACTED}"),
        ("k\\ey s\\et 00ff", f"k\\ey s\\et {REDACTED}"),
        ("key\\ set 00ff", "key\\ set 00ff"),
        ("key wipe", "key wipe"),
        ("keyset x", "keyset x"),
    ],
)
def test_key_messages(message: str, redacted: str) -> None:
    assert parameters.redact_message(message) == redacted


@given(st.sampled_from(sorted(TABLE)), st.text(st.sampled_from("01a :-\\ "), max_size=60), st.booleans())
def test_no_line_breaks_the_parser(kind: str, params: str, table: bool) -> None:
    fields = parameters.parse(kind, params, table=table)
    assert fields is None or not any(name.endswith("#") for name in fields)


def test_status_grammars_are_of_known_targets() -> None:
    assert set(STATUS) <= set(TABLE)
