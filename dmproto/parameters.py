"""What stands in a target's parameter string: a grammar for each target type, and which words are secret.

`TABLE` holds the grammars of table lines (what a constructor takes), `STATUS` those of status lines, both from
Documentation/admin-guide/device-mapper/*.rst and the targets' ctr and status functions. Notation:

    name            one word                    name*count#         as many words as the field `count#` says
    [ ... ]         may be absent               name:(a b)*count#   as many groups of words
    name...         all further words

A field whose name ends in `#` is a count; it is not told apart from what it counts.
"""

from __future__ import annotations

import re
from collections import ChainMap, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

__all__ = ["REDACTED", "SECRET_TYPES", "STATUS", "TABLE", "parse", "redact", "redact_message", "split"]

REDACTED = "(redacted)"

#: Target types whose parameters can hold a key.
SECRET_TYPES = frozenset({"crypt", "integrity"})

_FEATURES = "[features# features*features#]"

TABLE: dict[str, str] = {
    "linear": "device offset",
    "striped": "stripes# chunk_size stripes:(device offset)*stripes#",
    "zero": "",
    "error": "",
    "mirror": "log log_args# log_args*log_args# legs# legs:(device offset)*legs# " + _FEATURES,
    "snapshot": "origin cow persistent chunk_size " + _FEATURES,
    "snapshot-merge": "origin cow persistent chunk_size " + _FEATURES,
    "snapshot-origin": "origin",
    "delay": "device offset delay [write_device write_offset write_delay [flush_device flush_offset flush_delay]]",
    "flakey": "device offset up_interval down_interval " + _FEATURES,
    "crypt": "cipher key iv_offset device offset " + _FEATURES,
    "thin-pool": "metadata_device data_device block_size low_water_mark " + _FEATURES,
    "thin": "pool device_id [external_origin]",
    "cache": "metadata_device cache_device origin block_size features# features*features# "
    "policy policy_args# policy_args*policy_args#",
    "era": "metadata_device origin block_size",
    "clone": "metadata_device destination source region_size [features# features*features# [core# core*core#]]",
    "raid": "raid_type raid_params# raid_params*raid_params# devices# devices:(metadata_device data_device)*devices#",
    "multipath": "features# features*features# handler# handler*handler# groups# first_group "
    "groups:(selector selector_args# selector_args*selector_args# "
    "paths# path_args# paths:(device args*path_args#)*paths#)*groups#",
    "verity": "version data_device hash_device data_block_size hash_block_size data_blocks hash_start "
    "algorithm root_digest salt " + _FEATURES,
    "integrity": "device offset tag_size mode " + _FEATURES,
    "writecache": "kind origin cache_device block_size " + _FEATURES,
    "switch": "paths# region_size optional# optional*optional# paths:(device offset)*paths#",
    "unstriped": "stripes chunk_size stripe device offset",
    "log-writes": "device log_device",
    "dust": "device offset block_size",
    "ebs": "device offset emulated_sectors [underlying_sectors]",
    "zoned": "devices...",
}

STATUS: dict[str, str] = {
    "striped": "devices# devices*devices# groups health",
    "mirror": "devices# devices*devices# in_sync health# health*health# log# log*log#",
    "snapshot": "usage [metadata_sectors]",
    "snapshot-merge": "usage [metadata_sectors]",
    "delay": "reads writes flushes",
    "thin-pool": "transaction_id metadata_usage data_usage held_root mode discard_passdown no_space needs_check "
    "metadata_low_water",
    "thin": "mapped_sectors [highest_mapped_sector]",
    "cache": "metadata_block_size metadata_usage block_size usage read_hits read_misses write_hits write_misses "
    "demotions promotions dirty features# features*features# core# core*core# "
    "policy policy_args# policy_args*policy_args# mode needs_check",
    "era": "metadata_block_size metadata_usage current_era held_root",
    "raid": "raid_type devices health sync_ratio sync_action mismatches [data_offset journal]",
    "verity": "state",
    "integrity": "mismatches data_sectors [recalculated]",
    "writecache": "errors blocks free_blocks writeback_blocks [counters...]",
    "log-writes": "logged_entries highest_sector",
}

#: Optional arguments of integrity that hold `:algorithm:key` (dm-integrity.c).
_KEYED = re.compile(r"((?:internal_hash|journal_crypt|journal_mac):[^:\s]*:)(\S+)")
_TWO_WORDS = re.compile(r"(\s*(?:\\.|[^\s\\])+\s+(?:\\.|[^\s\\])+\s+)(.*)", re.DOTALL)


def split(params: str) -> list[str]:
    """The words of a parameter string: blanks separate, a backslash quotes (dm_split_args() of dm-table.c)."""
    words = re.findall(r"(?:\\.|[^\s\\]|\\$)+", params, re.DOTALL)
    return [re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL) for word in words]


def redact(kind: str, params: str) -> str:
    """A table line without the keys of crypt and integrity. `:64:logon:NAME` only names a key, and stays."""
    if kind == "crypt":
        return re.sub(r"^(\s*(?:\\.|[^\s\\])+\s+)(?![-:](?:\s|\d|$))((?:\\.|[^\s\\])+)", rf"\1{REDACTED}", params)
    return _KEYED.sub(rf"\1{REDACTED}", params) if kind == "integrity" else params


def redact_message(message: str) -> str:
    """A target message without the key of `key set KEY`."""
    match = _TWO_WORDS.fullmatch(message)
    return f"{match[1]}{REDACTED}" if match and split(match[1].lower()) == ["key", "set"] else message


def parse(kind: str, params: str, *, table: bool = True) -> dict[str, Any] | None:
    """The fields of a table line (or status line) by their names; None for a type without a grammar.

    Words that the grammar does not account for are under `more`; `lacks` names the field where words ran out.
    """
    grammar = (TABLE if table else STATUS).get(kind)
    if grammar is None:
        return None
    words = deque(split(params))
    fields: dict[str, Any] = {}
    try:
        _match(_compiled(grammar), words, ChainMap(fields))
    except _LacksError as lack:
        fields["lacks"] = str(lack)
    if words:
        fields["more"] = list(words)
    return cast(dict[str, Any], _told(fields))


class _LacksError(Exception):
    """Fewer words than the grammar asks for."""


@dataclass(frozen=True, slots=True)
class _Element:
    """One element of a grammar: a word, or what is repeated, optional or all the rest."""

    name: str = ""
    count: str = ""  #: field with the number of repetitions
    inner: tuple[_Element, ...] = ()
    optional: bool = False
    rest: bool = False


@cache
def _compiled(grammar: str) -> tuple[_Element, ...]:
    return _elements(iter(re.findall(r"\)\*[\w#]+|[\w#]+:\(|[\[\]]|[^\s()\[\]]+", grammar)))[0]


def _elements(tokens: Iterator[str]) -> tuple[tuple[_Element, ...], str]:
    """The elements up to a closing bracket, and that bracket."""
    found: list[_Element] = []
    for token in tokens:
        if token == "[":
            found.append(_Element(inner=_elements(tokens)[0], optional=True))
        elif token.endswith(":("):
            inner, closing = _elements(tokens)
            found.append(_Element(name=token[:-2], count=closing[2:], inner=inner))
        elif token[0] in ")]":
            return tuple(found), token
        elif token.endswith("..."):
            found.append(_Element(name=token[:-3], rest=True))
        else:
            name, _, count = token.partition("*")
            found.append(_Element(name=name, count=count))
    return tuple(found), ""


def _match(elements: tuple[_Element, ...], words: deque[str], fields: ChainMap[str, Any]) -> None:
    for element in elements:
        if element.optional:
            if words:
                _match(element.inner, words, fields)
        elif element.rest:
            fields[element.name] = list(words)
            words.clear()
        elif element.inner:
            groups: list[dict[str, Any]] = []
            fields[element.name] = groups
            for _ in range(_count(fields, element.count)):
                groups.append({})
                _match(element.inner, words, fields.new_child(groups[-1]))
        elif element.count:
            fields[element.name] = taken = []
            for _ in range(_count(fields, element.count)):
                taken.append(_word(words, element.name))
        else:
            fields[element.name] = _word(words, element.name)


def _word(words: deque[str], name: str) -> str:
    if not words:
        raise _LacksError(name)
    return words.popleft()


def _count(fields: ChainMap[str, Any], name: str) -> int:
    word = fields[name]
    if not word.isdecimal() or len(word) > 9:
        raise _LacksError(f"a number of {name.rstrip('#')}, not {word}")
    return int(word)


def _told(value: Any) -> Any:
    """A value without the counts in it, and without lists of nothing."""
    if isinstance(value, dict):
        return {name: _told(item) for name, item in value.items() if not name.endswith("#") and item != []}
    return [_told(item) for item in value] if isinstance(value, list) else value
