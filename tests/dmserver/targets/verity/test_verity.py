from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.constructors import replay
from support.targets import Bench, pattern, read, start, status, write

from dmserver.io.bio import Op
from dmserver.model.dm_target import StatusType
from dmserver.model.keyring import Keyring
from dmserver.targets.verity.verity import Verity

BLOCK = 4096


def tree(data: bytes, salt: bytes, *, block: int = BLOCK, algorithm: str = "sha256", old: bool = False) -> Any:
    """(hash blocks, top first; root digest) by the format's rules."""
    size = hashlib.new(algorithm).digest_size
    fan = 1 << (block // size).bit_length() - 1
    slot = size if old else block // fan

    def digest(one: bytes) -> bytes:
        return hashlib.new(algorithm, one + salt if old else salt + one).digest()

    levels: list[list[bytes]] = []
    blocks = [data[at : at + block] for at in range(0, len(data), block)]
    while len(blocks) > 1:
        digests = [digest(one).ljust(slot, b"\0") for one in blocks]
        blocks = [b"".join(digests[at : at + fan]).ljust(block, b"\0") for at in range(0, len(digests), fan)]
        levels.insert(0, blocks)
    return b"".join(one for level in levels for one in level), digest(blocks[0])


def scene(bench: Bench, options: str = "", *, blocks: int = 300) -> Any:
    data = pattern(1, 0, blocks * 8)
    hashes, root = tree(data, b"\xaa")
    write(bench.disks[0], 0, data)
    write(bench.disks[1], 8, hashes)
    params = f"1 1:0 1:1 4096 4096 {blocks} 1 sha256 {root.hex()} aa {options}"
    return bench.load("v", (Verity, blocks * 8, params), read_only=True)


def corrupt(bench: Bench, disk: int, sector: int) -> None:
    data = bytearray(read(bench.disks[disk], sector))
    data[7] ^= 1
    write(bench.disks[disk], sector, bytes(data))


def test_recorded_constructors() -> None:
    assert replay(Bench(), Verity, "t_verity_etc") == 15


ROOT = "0" * 64


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (f"2 1:0 1:1 4096 4096 8 0 sha256 {ROOT} -", "Invalid version"),
        (f"1 1:0 1:1 4096 256 8 0 sha256 {ROOT} -", "Invalid hash device block size"),
        (f"1 1:0 1:1 8192 4096 8 0 sha256 {ROOT} -", "Invalid data device block size"),
        (f"1 1:0 1:1 4096 4096 x 0 sha256 {ROOT} -", "Invalid data blocks"),
        (f"1 1:0 1:1 4096 4096 8 x sha256 {ROOT} -", "Invalid hash start"),
        (f"1 1:0 1:1 4096 4096 8 0 sha256 {ROOT} aab", "Invalid salt"),
        (f"1 1:0 1:1 4096 4096 8 0 sha256 {ROOT} - 9", "Invalid number of feature args"),
        (f"1 1:0 1:1 4096 4096 8 0 sha256 {ROOT} - 1 bogus", "Unrecognized verity feature request"),
        (
            f"1 1:0 1:1 4096 4096 8 0 sha256 {ROOT} - 2 ignore_corruption panic_on_corruption",
            "Conflicting error handling parameters",
        ),
    ],
)
def test_refusals(params: str, message: str) -> None:
    assert Bench().refusal(Verity, 64, params, read_only=True) == (errno.EINVAL, message)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("1 root_hash_sig_key_desc", (errno.EINVAL, "DM Verity Sig Verification Signature key not specified")),
        ("2 root_hash_sig_key_desc lost", (errno.ENOKEY, "DM Verity Sig Verification Invalid key specified")),
        ("2 root_hash_sig_key_desc signed", (errno.ENOKEY, "Root hash verification failed")),
        ("3 root_hash_sig_key_desc signed bogus", (errno.EINVAL, "Unrecognized verity feature request")),
    ],
)
def test_nobody_trusts_a_signature(options: str, expected: tuple[int, str]) -> None:
    bench = Bench()
    bench.mapper.shared[Keyring] = Keyring({("user", "signed"): b"pkcs7", ("logon", "lost"): b"pkcs7"})
    params = f"1 1:0 1:1 4096 4096 8 0 sha256 {ROOT} - {options}"
    assert bench.refusal(Verity, 64, params, read_only=True) == expected


def test_too_many_blocks_to_check_only_once() -> None:
    params = f"1 1:0 1:1 4096 4096 {1 << 31} 0 sha256 {ROOT} - 1 check_at_most_once"
    expected = (errno.E2BIG, "device too large to use check_at_most_once")
    assert Bench().refusal(Verity, 64, params, read_only=True) == expected


def test_the_number_of_options_is_checked_before_devices() -> None:
    refusal = Bench().refusal(Verity, 64, f"2 77:7 1:1 4096 4096 8 0 sha256 {ROOT} - 15", read_only=True)
    assert refusal == (errno.EINVAL, "Invalid number of feature args")


@pytest.mark.parametrize("name", ["shake_128", "SHA256", "blake2b"])
def test_hashes_go_by_the_kernels_names(name: str) -> None:
    refusal = Bench().refusal(Verity, 64, f"1 1:0 1:1 4096 4096 8 0 {name} {ROOT} -", read_only=True)
    assert refusal == (errno.ENOENT, "Cannot initialize hash function")


def test_good_data_are_read() -> None:
    bench = Bench()
    device = scene(bench)
    assert read(device, 0, 2400) == pattern(1, 0, 2400)
    assert status(device) == "V"
    assert device.limits.logical_block_size == BLOCK


def test_hash_blocks_are_read_once() -> None:
    bench = Bench()
    device = scene(bench)
    bench.disks[1].log.clear()
    read(device, 0, 2400)
    read(device, 0, 2400)
    assert bench.disks[1].log == [(Op.READ, 8, 8), (Op.READ, 16, 8), (Op.READ, 24, 8), (Op.READ, 32, 8)]


def test_hash_blocks_are_read_again_after_a_suspension() -> None:
    bench = Bench()
    device = scene(bench)
    read(device, 0, 8)
    bench.suspend(device)
    write(bench.disks[1], 8, bytes(32 * 512))
    bench.resume(device)
    with pytest.raises(OSError, match="5"):
        read(device, 0, 8)


def test_a_corrupted_data_block() -> None:
    bench = Bench()
    device = scene(bench)
    sent: list[dict[str, str]] = []
    bench.mapper.events.on_uevent(lambda event: sent.append(event.env))
    corrupt(bench, 0, 9 * 8 + 3)
    assert read(device, 0, 72) == pattern(1, 0, 72)
    with pytest.raises(OSError, match="5"):
        read(device, 64, 64)
    assert status(device) == "C"
    assert bench.mapper.events.lines[-1] == "device-mapper: verity: 1:0: data block 9 is corrupted"
    assert sent[0]["DM_VERITY_ERR_BLOCK_NR"] == "0,9"


def test_a_corrupted_hash_block() -> None:
    bench = Bench()
    device = scene(bench)
    corrupt(bench, 1, 16)
    with pytest.raises(OSError, match="5"):
        read(device, 0, 8)
    assert bench.mapper.events.lines[-1] == "device-mapper: verity: 1:0: metadata block 2 is corrupted"
    assert read(device, 128 * 8, 8) == pattern(1, 128 * 8, 8)


def test_ignore_corruption() -> None:
    bench = Bench()
    device = scene(bench, "1 ignore_corruption")
    corrupt(bench, 0, 8)
    corrupt(bench, 1, 16)
    assert read(device, 8, 8)[:8] != pattern(1, 8)[:8]
    assert status(device) == "C"


def test_check_at_most_once() -> None:
    bench = Bench()
    device = scene(bench, "1 check_at_most_once")
    read(device, 8, 8)
    corrupt(bench, 0, 8)
    read(device, 8, 8)
    assert status(device) == "V"


def test_ignore_zero_blocks() -> None:
    bench = Bench()
    zero = hashlib.sha256(bytes(BLOCK)).hexdigest()
    write(bench.disks[0], 0, pattern(1, 0, 8))
    device = bench.load(
        "v", (Verity, 8, f"1 1:0 1:1 4096 4096 1 0 sha256 {zero} - 1 ignore_zero_blocks"), read_only=True
    )
    assert read(device, 0, 8) == bytes(BLOCK)


def test_errors_stop_being_logged() -> None:
    bench = Bench()
    device = scene(bench)
    corrupt(bench, 0, 8)
    for _ in range(105):
        assert start(device, Op.READ, 8, bytes(BLOCK)) == [errno.EIO]
    lines = [line for line in bench.mapper.events.lines if "corrupted" in line]
    assert len(lines) == 100
    assert bench.mapper.events.lines[-1] == "device-mapper: verity: 1:0: reached maximum errors"


def test_an_unreadable_hash_device() -> None:
    bench = Bench()
    device = scene(bench)
    bench.disks[1].fail = lambda bio: True
    with pytest.raises(OSError, match="5"):
        read(device, 0, 8)
    assert status(device) == "V"


def test_bios_of_half_a_block() -> None:
    bench = Bench()
    device = scene(bench)
    with pytest.raises(OSError, match="5"):
        read(device, 4, 8)
    assert bench.mapper.events.lines[-1] == "device-mapper: verity: unaligned io"


@pytest.mark.skipif(shutil.which("veritysetup") is None, reason="veritysetup is not installed")
@pytest.mark.parametrize(
    ("version", "size", "algorithm", "blocks"),
    [(1, 4096, "sha256", 300), (0, 1024, "sha1", 100), (1, 512, "sha512", 40)],
)
def test_a_tree_made_by_veritysetup(tmp_path: Path, version: int, size: int, algorithm: str, blocks: int) -> None:
    data = pattern(3, 0, blocks * size // 512)
    (tmp_path / "data").write_bytes(data)
    command = ["veritysetup", "format", f"--format={version}", "--no-superblock", f"--data-block-size={size}"]
    command += [f"--hash-block-size={size}", f"--hash={algorithm}", "--salt=abcdef", f"--data-blocks={blocks}"]
    out = subprocess.run([*command, tmp_path / "data", tmp_path / "hash"], capture_output=True, text=True, check=True)
    root = next(line.split()[-1] for line in out.stdout.splitlines() if line.startswith("Root hash"))
    hashes = (tmp_path / "hash").read_bytes()
    assert tree(data, b"\xab\xcd\xef", block=size, algorithm=algorithm, old=not version) == (
        hashes,
        bytes.fromhex(root),
    )
    bench = Bench()
    write(bench.disks[0], 0, data)
    write(bench.disks[1], 0, hashes)
    params = f"{version} 1:0 1:1 {size} {size} {blocks} 0 {algorithm} {root} abcdef"
    device = bench.load("v", (Verity, len(data) // 512, params), read_only=True)
    assert read(device, 0, len(data) // 512) == data
    assert status(device) == "V"
    assert status(device, StatusType.TABLE) == params


def test_measured_by_ima() -> None:
    device = scene(Bench(), "1 ignore_corruption")
    root = tree(pattern(1, 0, 2400), b"\xaa")[1].hex()
    assert device.live.targets[0].ima_status() == (
        "target_name=verity,target_version=1.9.0,hash_failed=V,verity_version=1,data_device_name=1:0,"
        f"hash_device_name=1:1,verity_algorithm=sha256,root_digest={root},salt=aa,ignore_zero_blocks=n,"
        "check_at_most_once=n,verity_mode=ignore_corruption;"
    )
