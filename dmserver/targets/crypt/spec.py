"""How tables of crypt name a cipher."""

from __future__ import annotations

import re
from typing import NamedTuple

from ...model.dm_target import parse_u32

__all__ = ["Spec", "parse_spec"]

#: Keys of loop-AES.
LMK_KEYS = 64


class Spec(NamedTuple):
    """As many ciphers as `keys`, called `api` by the crypto API, and how their IVs are made. `hmac`: which MAC the
    cipher has, if it is composed of two."""

    keys: int
    api: str
    iv_mode: str | None
    hmac: str = ""


def parse_spec(text: str, *, aead: bool) -> Spec:
    """Of `capi:API[-IV[:OPTIONS]]` or `CIPHER[:KEYCOUNT]-MODE-IV[:OPTIONS]`. ValueError has the kernel's words."""
    if text.startswith("capi:"):
        return _parse_capi(text.removeprefix("capi:"), aead=aead)
    if "(" in text or aead:
        raise ValueError("Bad cipher specification")
    return _parse_legacy(text)


def _parse_capi(text: str, *, aead: bool) -> Spec:
    text, options = _cut_last(text, ":")
    api, iv_mode = _cut_last(text, "-")
    hmac = re.match(r"authenc\(([^,]*),", api) if aead else None
    if aead and iv_mode == "lmk":
        raise ValueError("AEAD transforms not supported for LMK")
    return Spec(
        LMK_KEYS if iv_mode == "lmk" else 1,
        _with_essiv(api, iv_mode, options),
        iv_mode,
        hmac[1] if hmac else "",
    )


def _parse_legacy(text: str) -> Spec:
    words, rest = _cut(text, "-")
    cipher, keys = _cut(words, ":")
    mode, rest = _cut(rest, "-")
    iv_mode, options = _cut(rest, ":")
    try:
        count = 1 if keys is None else parse_u32(keys)
    except ValueError:
        count = 0
    if not count or count & count - 1:
        raise ValueError("Bad cipher key count specification")
    if mode is None or (mode == "plain" and iv_mode is None):
        mode, iv_mode = "cbc", "plain"
    if mode != "ecb" and iv_mode is None:
        raise ValueError("IV mechanism required")
    return Spec(count, _with_essiv(f"{mode}({cipher})", iv_mode, options), iv_mode)


def _with_essiv(api: str, iv_mode: str | None, options: str | None) -> str:
    if iv_mode != "essiv":
        return api
    if options is None:
        raise ValueError("Digest algorithm missing for ESSIV mode")
    return f"essiv({api},{options})"


def _cut(text: str | None, at: str) -> tuple[str | None, str | None]:
    """What is before and behind the first `at`; None for what is not there at all (`strsep`)."""
    if text is None:
        return None, None
    first, found, rest = text.partition(at)
    return first, rest if found else None


def _cut_last(text: str, at: str) -> tuple[str, str | None]:
    """Likewise, at the last one (`strrchr`)."""
    first, found, rest = text.rpartition(at)
    return (first, rest) if found else (text, None)
