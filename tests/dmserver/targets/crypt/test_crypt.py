from __future__ import annotations

import builtins
import errno
import shutil
import subprocess
from typing import Any

import pytest
from support.constructors import replay
from support.targets import Bench, discard, flush, pattern, read, status, write

from dmserver.io.bio import Op
from dmserver.model.dm_target import StatusType, Target, TargetError
from dmserver.model.keyring import Keyring
from dmserver.targets.crypt.crypt import Crypt

ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers", reason="extra `crypt` is not installed")

KEY = bytes(range(32)).hex()
OTHER = bytes(range(1, 33)).hex()


def target(device: Any) -> Target:
    return device.live.targets[0]


def test_recorded_constructors() -> None:
    assert replay(Bench(), Crypt, "t_crypt") == 46


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("aes-cbc-plain :32:bogus:x 0 1:0 0", (errno.EINVAL, "Error decoding and setting key")),
        ("aes-cbc-plain :x:logon:x 0 1:0 0", (errno.EINVAL, "Cannot parse key size")),
        ("aes-cbc-plain :4294967295:logon:x 0 1:0 0", (errno.EINVAL, "Cannot parse key size")),
        ("aes-cbc-plain :2147483647:logon:x 0 1:0 0", (errno.ENOMEM, "Cannot allocate encryption context")),
        (
            f"capi:gcm(aes)-lmk {KEY} 0 1:0 0 1 integrity:16:aead",
            (errno.EINVAL, "AEAD transforms not supported for LMK"),
        ),
        (f"aes-cbc-plain {KEY} 0 1:0 0 1 integrity:16k:x", (errno.EINVAL, "Unknown integrity profile")),
        (f"aes-cbc {KEY} 0 1:0 0", (errno.EINVAL, "IV mechanism required")),
        ("aes-cbc-plain :32:9logon:x 0 1:0 0", (errno.EINVAL, "Error decoding and setting key")),
        (f"aes- {KEY} 0 1:0 0", (errno.EINVAL, "IV mechanism required")),
        (f"aes--plain {KEY} 0 1:0 0", (errno.ENOENT, "Error allocating crypto tfm")),
        (f"aes-cbc- {KEY} 0 1:0 0", (errno.EINVAL, "Invalid IV mode")),
        (f"aes-cbc-essiv: {KEY} 0 1:0 0", (errno.ENOENT, "Error allocating crypto tfm")),
        (f"aes-cbc-essiv {KEY} 0 1:0 0", (errno.EINVAL, "Digest algorithm missing for ESSIV mode")),
        (f"capi:cbc(aes)-essiv {KEY} 0 1:0 0", (errno.EINVAL, "Digest algorithm missing for ESSIV mode")),
        (f"aes:3-cbc-plain {KEY} 0 1:0 0", (errno.EINVAL, "Bad cipher key count specification")),
        (f"cbc(aes)-plain {KEY} 0 1:0 0", (errno.EINVAL, "Bad cipher specification")),
        (f"aes-cbc-plain {KEY} 4 1:0 0 1 sector_size:4096", (errno.EINVAL, "Invalid iv_offset sector")),
        (f"aes-cbc-plain {KEY} 0 1:0 0 9", (errno.EINVAL, "Invalid number of feature args")),
        (f"aes-cbc-plain {KEY} 0 1:0 0 1 integrity:0:none", (errno.EINVAL, "Invalid integrity arguments")),
        (f"aes-cbc-plain {KEY} 0 1:0 0 1 integrity:16:x", (errno.EINVAL, "Unknown integrity profile")),
        (f"capi:aegis128-plain64 {KEY} 0 1:0 0 1 integrity:16:aead", (errno.ENOENT, "Error allocating crypto tfm")),
        (f"capi:gcm(aes)-plain64 {KEY} 0 1:0 0 1 integrity:16:none", (errno.ENOENT, "Error allocating crypto tfm")),
        (
            f"capi:gcm(aes)-plain64 {KEY} 0 1:0 0 1 integrity:16:aead",
            (errno.EINVAL, "Integrity profile not supported."),
        ),
        (f"aes-gcm-plain64 {KEY} 0 1:0 0 1 integrity:16:aead", (errno.EINVAL, "Bad cipher specification")),
        (
            f"capi:authenc(hmac(md9),cbc(aes))-plain64 {KEY} 0 1:0 0 1 integrity:16:aead",
            (errno.ENOMEM, "Invalid AEAD cipher spec"),
        ),
        (
            f"capi:authenc(hmac(sha256),cbc(aes))-plain64 {KEY[2:]} 0 1:0 0 1 integrity:32:aead",
            (errno.EINVAL, "Error decoding and setting key"),
        ),
        (f"capi:gcm(aes)-eboiv {KEY} 0 1:0 0 1 integrity:16:aead", (errno.EINVAL, "Error creating IV")),
        (f"aes-cbc-tcw {KEY} 0 1:0 0", (errno.EINVAL, "Error decoding and setting key")),
        (f"aes-cbc-tcw {KEY[:32]} 0 1:0 0", (errno.EINVAL, "Error decoding and setting key")),
        (f"aes-cbc-tcw {KEY}{KEY} 0 1:0 0 1 sector_size:1024", (errno.EINVAL, "Error creating IV")),
        (f"aes:2-cbc-lmk {KEY} 0 1:0 0 1 sector_size:1024", (errno.EINVAL, "Error creating IV")),
        (f"aes-cbc-elephant {KEY}{KEY}00000000 0 1:0 0", (errno.EINVAL, "Unknown error")),
        (f"aes-cbc-elephant {KEY[2:]} 0 1:0 0", (errno.EINVAL, "Error initialising IV")),
        (f"aes-ctr-elephant {KEY} 0 1:0 0", (errno.EINVAL, "Error creating IV")),
        (f"aes-cbc-random {KEY} 0 1:0 0", (errno.EINVAL, "Integrity profile not supported.")),
        (f"aes-cbc-essiv:sha512 {KEY} 0 1:0 0", (errno.EINVAL, "Error allocating crypto tfm")),
        (f"aes-ecb-essiv:sha256 {KEY} 0 1:0 0", (errno.EINVAL, "Error allocating crypto tfm")),
        (f"aes-cbc-essiv:bogus {KEY} 0 1:0 0", (errno.ENOENT, "Error allocating crypto tfm")),
        (f"aes-cbc-essiv:sha1 {KEY} 0 1:0 0", (errno.EINVAL, "Error decoding and setting key")),
        (f"aes-ctr-eboiv {KEY} 0 1:0 0", (errno.EINVAL, "Error creating IV")),
        ("cipher_null-ecb 00 0 1:0 0", (errno.EINVAL, "Error decoding and setting key")),
    ],
)
def test_refusals(params: str, expected: tuple[int, str]) -> None:
    assert Bench().refusal(Crypt, 64, params) == expected


def test_a_key_of_the_keyring_is_told_by_its_name() -> None:
    bench = Bench()
    bench.mapper.shared[Keyring] = Keyring({("logon", "x:y"): bytes(32)})
    device = bench.load("c", (Crypt, 64, "aes-cbc-plain :032:logon:x:y 0 1:0 0"))
    assert status(device, StatusType.TABLE) == "aes-cbc-plain :32:logon:x:y 0 1:0 0"
    refusal = bench.refusal(Crypt, 64, r"aes-cbc-plain :32:logon:x\ y 0 1:0 0")
    assert refusal == (errno.EINVAL, "Error decoding and setting key")
    line = "trusted_key: device-mapper: crypt: whitespace chars not allowed in key string"
    assert line in bench.mapper.events.lines


def test_without_cryptography_there_is_no_cipher(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def lacking(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", lacking)
    refusal = Bench().refusal(Crypt, 64, f"aes-cbc-plain {KEY} 0 1:0 0")
    assert refusal == (errno.ENOENT, "Error allocating crypto tfm")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    ("cipher", "name", "key", "iv"),
    [
        ("aes-cbc-plain64", "aes-256-cbc", KEY, lambda sector: sector.to_bytes(16, "little")),
        ("aes-cbc-plain64be", "aes-256-cbc", KEY, lambda sector: sector.to_bytes(16, "big")),
        ("aes-cbc-benbi", "aes-256-cbc", KEY, lambda sector: (sector * 32 + 1).to_bytes(16, "big")),
        ("aes-cbc-null", "aes-256-cbc", KEY, lambda sector: bytes(16)),
        ("aes-ctr-plain64", "aes-256-ctr", KEY, lambda sector: sector.to_bytes(16, "little")),
    ],
)
def test_ciphertext_is_openssls(cipher: str, name: str, key: str, iv: Any) -> None:
    bench = Bench()
    device = bench.load("c", (Crypt, 64, f"{cipher} {key} 1000 1:0 8"))
    write(device, 5, pattern(1, 5, 3))
    for sector in (5, 6, 7):
        command = ["openssl", "enc", f"-{name}", "-K", key, "-iv", iv(sector + 1000).hex(), "-nopad"]
        expected = subprocess.run(command, input=pattern(1, sector), capture_output=True, check=True).stdout
        assert read(bench.disks[0], 8 + sector) == expected
    assert read(device, 4, 5)[512:2048] == pattern(1, 5, 3)


def test_eboiv_encrypts_the_offset_in_bytes() -> None:
    bench = Bench()
    device = bench.load("c", (Crypt, 64, f"aes-cbc-eboiv {KEY} 8 1:0 0 1 sector_size:4096"))
    write(device, 8, pattern(1, 0, 16))
    assert read(device, 16, 8) == pattern(1, 8, 8)
    aes = ciphers.algorithms.AES(bytes.fromhex(KEY))
    for sector in (8, 16):
        offset = ((sector + 8) * 4096).to_bytes(16, "little")
        iv = ciphers.Cipher(aes, ciphers.modes.ECB()).encryptor().update(offset)
        cbc = ciphers.Cipher(aes, ciphers.modes.CBC(iv)).encryptor()
        assert read(bench.disks[0], sector, 8) == cbc.update(pattern(1, sector - 8, 8))


@pytest.mark.parametrize(
    "cipher", ["aes-xts-eboiv", "aes-xts-plain64", "aes-cbc-essiv:sha256", "aes:2-cbc-plain", "aes-ecb"]
)
@pytest.mark.parametrize("options", ["", "1 sector_size:4096", "2 sector_size:2048 iv_large_sectors"])
def test_what_is_written_is_read(cipher: str, options: str) -> None:
    bench = Bench()
    device = bench.load("c", (Crypt, 64, f"{cipher} {KEY} 8 1:0 8 {options}"))
    write(device, 16, pattern(1, 0, 16))
    assert read(device, 16, 16) == pattern(1, 0, 16)
    assert read(device, 24, 8) == pattern(1, 8, 8)
    assert read(bench.disks[0], 24, 16) != pattern(1, 0, 16)


def test_large_sectors_must_be_whole() -> None:
    bench = Bench()
    device = bench.load("c", (Crypt, 64, f"aes-xts-plain64 {KEY} 0 1:0 0 1 sector_size:4096"))
    for sector, count in ((1, 8), (8, 4)):
        with pytest.raises(OSError, match="5"):
            read(device, sector, count)
    assert device.limits.logical_block_size == 4096


def test_flushes_and_discards_pass() -> None:
    bench = Bench()
    bench.disks[0].limits.discard = True
    device = bench.load("c", (Crypt, 64, f"aes-xts-plain64 {KEY} 0 1:0 8 1 allow_discards"))
    flush(device)
    discard(device, 8, 8)
    assert bench.disks[0].log == [(Op.FLUSH, 0, 0), (Op.DISCARD, 16, 8)]


def test_a_failed_read_is_not_decrypted() -> None:
    bench = Bench()
    device = bench.load("c", (Crypt, 64, f"aes-xts-plain64 {KEY} 0 1:0 8"))
    bench.disks[0].fail = lambda bio: True
    with pytest.raises(OSError, match="5"):
        read(device, 0)


def test_the_key_changes_while_suspended() -> None:
    bench = Bench()
    device = bench.load("c", (Crypt, 64, f"aes-cbc-plain {KEY} 0 1:0 0"))
    for words in (["key", "wipe"], ["key", "set", OTHER], ["bogus"], ["key"]):
        with pytest.raises(TargetError) as refusal:
            target(device).message(words)
        assert refusal.value.errno == errno.EINVAL
    assert list(bench.mapper.events.lines) == [
        "trusted_key: device-mapper: crypt: not suspended during key manipulation.",
        "trusted_key: device-mapper: crypt: not suspended during key manipulation.",
        "trusted_key: device-mapper: crypt: unrecognised message received.",
        "trusted_key: device-mapper: crypt: unrecognised message received.",
    ]
    bench.suspend(device)
    target(device).message(["KEY", "Wipe"])
    assert status(device, StatusType.TABLE) == f"aes-cbc-plain {'0' * 64} 0 1:0 0"
    with pytest.raises(TargetError) as refusal:
        bench.resume(device)
    assert refusal.value.errno == errno.EAGAIN
    with pytest.raises(TargetError):
        target(device).message(["key", "set", "00"])
    target(device).message(["key", "set", OTHER])
    bench.resume(device)
    assert status(device, StatusType.TABLE) == f"aes-cbc-plain {OTHER} 0 1:0 0"


def test_the_iv_mode_has_the_new_key_too() -> None:
    bench = Bench()
    device = bench.load("c", (Crypt, 64, f"aes-cbc-elephant {KEY} 0 1:0 0"))
    write(device, 0, pattern(1))
    before = read(bench.disks[0], 0)
    bench.suspend(device)
    with pytest.raises(TargetError) as refusal:
        target(device).message(["key", "set", KEY[2:]])
    assert refusal.value.errno == errno.EINVAL
    target(device).message(["key", "set", KEY[:32] + OTHER[:32]])
    bench.resume(device)
    assert read(device, 0) != pattern(1)
    write(device, 0, pattern(1))
    assert read(bench.disks[0], 0) != before
    assert read(device, 0) == pattern(1)


def test_measured_by_ima() -> None:
    bench = Bench()
    device = bench.load("c", (Crypt, 64, f"aes-xts-plain64 {KEY} 0 1:0 0 2 allow_discards sector_size:4096"))
    assert target(device).ima_status() == (
        "target_name=crypt,target_version=1.24.0,allow_discards=y,same_cpu_crypt=n,submit_from_crypt_cpus=n,"
        "no_read_workqueue=n,no_write_workqueue=n,iv_large_sectors=n,sector_size=4096,cipher_string=aes-xts-plain64,"
        "key_size=32,key_parts=1,key_extra_size=0,key_mac_size=0;"
    )
