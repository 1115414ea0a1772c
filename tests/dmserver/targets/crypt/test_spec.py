from __future__ import annotations

import pytest

from dmserver.targets.crypt.spec import Spec, parse_spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("aes", Spec(1, "cbc(aes)", "plain")),
        ("aes-plain", Spec(1, "cbc(aes)", "plain")),
        ("aes-ecb", Spec(1, "ecb(aes)", None)),
        ("aes:64-cbc-lmk", Spec(64, "cbc(aes)", "lmk")),
        ("aes-xts-plain64", Spec(1, "xts(aes)", "plain64")),
        ("aes-cbc-essiv:sha256", Spec(1, "essiv(cbc(aes),sha256)", "essiv")),
        ("capi:xts(aes)-plain64", Spec(1, "xts(aes)", "plain64")),
        ("capi:cbc(aes)-essiv:sha3-256", Spec(1, "essiv(cbc(aes),sha3-256)", "essiv")),
        ("capi:cbc(aes)-lmk", Spec(64, "cbc(aes)", "lmk")),
    ],
)
def test_ciphers(text: str, spec: Spec) -> None:
    assert parse_spec(text, aead=False) == spec


def test_the_hash_of_what_authenticates() -> None:
    name = "authenc(hmac(sha256),cbc(aes))"
    assert parse_spec(f"capi:{name}-plain64", aead=True) == Spec(1, name, "plain64", "hmac(sha256)")
    assert parse_spec("capi:gcm(aes)-random", aead=True).hmac == ""
