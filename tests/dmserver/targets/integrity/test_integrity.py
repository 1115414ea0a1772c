from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.targets import Bench, FaultyDisk, discard, flush, pattern, read, status, write

from dmserver.io.bio import Bio, Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import StatusType, TargetFeature
from dmserver.targets.integrity.integrity import Integrity

SIZE = 8192
CRC = "internal_hash:crc32c"
KEYED = "internal_hash:hmac(sha256):00ff"
LAYOUTS = [
    f"1 {CRC}",
    f"1 {KEYED}",
    f"3 {CRC} fix_padding interleave_sectors:64",
    "2 internal_hash:sha256 block_size:4096",
    f"2 {CRC} meta_device:1:2",
    f"4 {KEYED} fix_hmac journal_mac:hmac(sha256):aa meta_device:1:2",
    f"3 {CRC} journal_crypt:ctr(aes):{'5a' * 32} journal_mac:sha256",
    f"2 {CRC} journal_crypt:cbc(aes):{'5a' * 32}",
]


def load(bench: Bench, params: str) -> DmDev:
    return bench.load("i", (Integrity, SIZE, params))


def target(device: DmDev) -> Integrity:
    assert device.live is not None
    (found,) = device.live.targets
    assert isinstance(found, Integrity)
    return found


def flip(disk: FaultyDisk, sector: int) -> None:
    data = bytearray(read(disk, sector))
    data[7] ^= 1
    write(disk, sector, bytes(data))


def log(bench: Bench) -> list[str]:
    return [line.removeprefix("device-mapper: integrity: ") for line in bench.mapper.events.lines]


@pytest.mark.parametrize(
    ("params", "refusal"),
    [
        ("1:0 0 -", (errno.EINVAL, "Invalid argument count")),
        ("1:0 x - J 0", (errno.EINVAL, "Invalid starting offset")),
        ("1:0 0 0 J 0", (errno.EINVAL, "Invalid tag size")),
        ("1:0 0 4 J", (errno.EINVAL, "Invalid argument count")),
        ("1:0 0 4 X 0", (errno.EINVAL, "Invalid mode (expecting J, B, D, R)")),
        ("1:0 0 4 B 1 allow_discards", (errno.EINVAL, "Bitmap mode can be only used with internal hash")),
        (f"1:0 8999 - B 1 {CRC}", (errno.EINVAL, "Not enough provided sectors for requested mapping size")),
        ("1:0 0 - J 1 internal_hash:", (errno.ENOENT, "Invalid internal hash")),
        ("1:0 0 - J 1 internal_hash:crc32c:", (errno.EINVAL, "Error setting internal hash key")),
        ("1:0 0 425 J 0", (errno.EINVAL, "Too big tag size")),
        ("1:0 0 4 J 2 x", (errno.EINVAL, "Invalid number of feature args")),
        ("1:0 0 4 J 1 journal_watermark:101", (errno.EINVAL, "Invalid argument")),
        ("1:0 0 4 J 1 block_size:1000", (errno.EINVAL, "Invalid block_size argument")),
        ("1:0 0 4 J 1 meta_device:77:7", (errno.ENXIO, "Device lookup failed")),
        ("1:0 0 - J 1 internal_hash:crc32c:0", (errno.EINVAL, "Invalid internal_hash argument")),
        ("1:0 0 - J 1 internal_hash:sha256:00", (errno.ENOSYS, "Error setting internal hash key")),
        ("1:0 0 - J 1 internal_hash:hmac(sha256)", (errno.ENOKEY, "Error setting internal hash key")),
        ("1:0 0 4 J 1 journal_mac:bogus", (errno.ENOENT, "Invalid journal mac")),
        ("1:0 0 4 J 1 journal_crypt:ctr(no):00", (errno.ENOENT, "Invalid journal cipher")),
        ("1:0 0 4 J 1 journal_crypt:essiv(ecb(aes),sha256)", (errno.EINVAL, "Invalid journal cipher")),
        ("1:0 0 4 J 1 journal_crypt:ctr(aes):00", (errno.EINVAL, "Error setting encryption key")),
        ("1:0 0 4 J 1 journal_crypt:ctr(aes)", (errno.ENOKEY, "Unable to encrypt journal")),
        ("1:0 0 4 J 1 journal_crypt:cbc(aes)", (errno.ENOKEY, "Unable to generate iv")),
        ("1:0 0 4 J 1 allow_discards", (errno.EINVAL, "Discard can be only used with internal hash")),
        ("1:0 0 4 J 1 recalculate", (errno.EINVAL, "Recalculate can only be specified with internal_hash")),
        (f"1:0 16380 - J 1 {CRC}", (errno.EIO, "Error reading superblock")),
        (f"1:0 16300 - J 1 {CRC}", (errno.EINVAL, "Could not initialize superblock")),
        (f"1:0 8999 - J 1 {CRC}", (errno.EINVAL, "Not enough provided sectors for requested mapping size")),
    ],
)  # fmt: skip
def test_refusals(params: str, refusal: tuple[int, str]) -> None:
    assert Bench().refusal(Integrity, SIZE, params) == refusal


def test_no_other_target_is_beside_it() -> None:
    assert TargetFeature.SINGLETON in Integrity.features


def test_what_the_superblock_says_must_agree() -> None:
    bench = Bench()
    write(bench.disks[1], 3, pattern(1))
    assert bench.refusal(Integrity, 8, f"1:1 0 - J 1 {CRC}")[1] == "The device is not initialized"
    bench.remove(load(bench, f"1:0 0 - J 1 {CRC}"))
    for params, message in (
        ("1:0 0 - J 1 internal_hash:sha256", "Tag size doesn't match the information in superblock"),
        (f"1:0 0 - J 2 {CRC} block_size:4096", "Block size doesn't match the information in superblock"),
        (f"1:0 0 - J 2 {CRC} journal_mac:sha256", "Journal mac mismatch"),
    ):
        assert bench.refusal(Integrity, 8, params) == (errno.EINVAL, message)


def test_hmac_guards_recalculation_and_the_superblock() -> None:
    bench = Bench()
    bench.remove(load(bench, f"1:0 0 - J 3 {KEYED} fix_hmac journal_mac:hmac(sha256):aa"))
    other_key = f"1:0 0 - J 2 {KEYED} journal_mac:hmac(sha256):bb"
    assert bench.refusal(Integrity, 8, other_key) == (errno.EILSEQ, "Error reading superblock")
    assert log(bench)[-1] == "Error on superblock mac: -84"
    assert bench.refusal(Integrity, 8, f"1:1 0 - J 2 {KEYED} recalculate")[0] == errno.EOPNOTSUPP


@pytest.mark.parametrize("mode", "JBD")
@pytest.mark.parametrize("options", LAYOUTS)
def test_what_is_written_stays_and_a_flipped_bit_is_found(options: str, mode: str) -> None:
    bench = Bench()
    params = f"1:0 0 - {mode} {options}"
    device = load(bench, params)
    image = bytearray(pattern(1, 0, 512))
    write(device, 0, bytes(image))
    image[16 * 512 : 56 * 512] = pattern(2, 16, 40)
    write(device, 16, pattern(2, 16, 40), fua=True)
    write(device, 8000, pattern(3, 8000, 8))
    assert read(device, 0, 512) == image
    bench.remove(device)
    device = load(bench, params)
    assert (read(device, 0, 512), read(device, 8000, 8)) == (image, pattern(3, 8000, 8))
    assert status(device).startswith("0 ")
    flip(bench.disks[0], target(device).layout.data_sector(16))
    with pytest.raises(OSError, match="read") as failure:
        read(device, 8, 16)
    assert failure.value.errno == errno.EILSEQ
    assert status(device).startswith("1 ")
    told = 0x17 if "block_size" in options else 0x10
    assert log(bench)[-1] == f"dm-0: Checksum failed at sector {told:#x}"
    assert read(device, 24, 8) == image[24 * 512 : 32 * 512]


def test_table_line() -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 - D 4 meta_device:1:2 block_size:4096 allow_discards {KEYED}")
    words = status(device, StatusType.TABLE)
    assert words == (
        f"1:0 0 32 D 7 meta_device:1:2 block_size:4096 allow_discards journal_sectors:264 interleave_sectors:1 "
        f"buffer_sectors:128 {KEYED}"
    )


def test_a_journal_that_was_not_applied_is_replayed() -> None:
    """The journal is written, then the disk fails: it is as if the machine had."""
    for mode in "JD":
        bench = Bench()
        device = load(bench, f"1:0 0 - J 1 {CRC}")
        write(device, 40, pattern(1, 40, 100))
        begin = target(device).layout.initial_sectors
        bench.disks[0].fail = lambda bio, begin=begin: bio.op is Op.WRITE and bio.sector >= begin
        with pytest.raises(OSError, match="flush"):
            flush(device)
        assert log(bench)[-1] == "Error on copying from journal: -5"
        with pytest.raises(OSError, match="read"):
            read(device, 0)
        bench.disks[0].fail = lambda bio: False
        bench.remove(device)
        device = load(bench, f"1:0 0 - {mode} 1 {CRC}")
        assert read(device, 40, 100) == pattern(1, 40, 100)


@pytest.mark.parametrize("survived", range(0, 16, 3))
def test_a_crash_at_any_write_leaves_every_block_whole(survived: int) -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 - J 1 {CRC}")
    write(device, 0, pattern(1, 0, 300), fua=True)
    bench.disks[0].crash_after(survived)
    flushed = 0
    for seed in (2, 3):
        try:
            write(device, 0, pattern(seed, 0, 300), fua=True)
            flushed = seed
        except OSError:
            break
    bench.remove(device)
    bench.disks[0].fail = lambda bio: False
    device = load(bench, f"1:0 0 - J 1 {CRC}")
    found = read(device, 0, 300)
    for sector in range(300):
        versions = [pattern(seed, sector) for seed in range(max(flushed, 1), 4)]
        assert found[sector * 512 : (sector + 1) * 512] in versions


def test_an_old_journal_does_not_undo_what_was_written_without_one() -> None:
    bench = Bench()
    for mode, seed in (("J", 1), ("D", 2), ("J", 3), ("J", 4)):
        device = load(bench, f"1:0 0 - {mode} 1 {CRC}")
        if seed > 1:
            assert read(device, 8, 8) == pattern(seed - 1, 8, 8)
        write(device, 8, pattern(seed, 8, 8))
        bench.remove(device)


def test_a_torn_commit_is_not_replayed() -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 - J 1 {CRC}")
    write(device, 8, pattern(1, 8, 8), fua=True)
    last = target(device).layout.initial_sectors - 1
    old = read(bench.disks[0], last)
    write(device, 8, pattern(2, 8, 8), fua=True)
    bench.remove(device)
    write(bench.disks[0], last, old)
    device = load(bench, f"1:0 0 - J 1 {CRC}")
    assert read(device, 8, 8) == pattern(2, 8, 8)
    bench.remove(device)
    write(bench.disks[0], last, bytes(512))
    device = load(bench, f"1:0 0 - J 1 {CRC}")
    assert log(bench)[-1] == "Error on journal commit id: -5"
    with pytest.raises(OSError, match="read"):
        read(device, 8)


def test_commits_come_with_time_and_at_the_watermark() -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 - J 3 {CRC} commit_time:2000 journal_watermark:10")
    write(device, 8, pattern(1, 8, 8))
    assert len(target(device).io.pending) == 8
    bench.work.advance(2)
    assert not target(device).io.pending
    write(device, 8, pattern(1, 8, 100))
    assert len(target(device).io.pending) == 100 % 17
    assert read(device, 8, 100) == pattern(1, 8, 100)


def test_a_suspension_commits() -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 - J 1 {CRC}")
    write(device, 8, pattern(1, 8, 8))
    bench.disks[0].slow = True
    suspended = bench.suspend(device)
    assert not suspended
    assert len(bench.disks[0].held) == 1
    bench.disks[0].finish()
    bench.work.run()
    assert suspended
    bench.resume(device)
    assert read(device, 8, 8) == pattern(1, 8, 8)


def test_without_a_hash_tags_are_left_alone() -> None:
    bench = Bench()
    for mode in "DJ":
        device = load(bench, f"1:0 0 16 {mode} 0")
        write(device, 8, pattern(1, 8, 8))
        flush(device)
        flip(bench.disks[0], target(device).layout.data_sector(8))
        assert read(device, 8, 8)[512:] == pattern(1, 9, 7)
        bench.remove(device)


def test_alignment_and_reading_only() -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 - D 2 {CRC} block_size:4096")
    with pytest.raises(OSError, match="read"):
        read(device, 4, 8)
    assert log(bench)[-1] == "Bio not aligned on 8 sectors: 0x4, 0x8"
    write(device, 8, pattern(1, 8, 8))
    bench.remove(device)
    device = load(bench, f"1:0 0 - R 2 {CRC} block_size:4096")
    assert read(device, 8, 8) == pattern(1, 8, 8)
    with pytest.raises(OSError, match="write"):
        write(device, 8, pattern(1, 8, 8))


def test_recalculation_makes_tags_for_what_is_there() -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 - D 1 {CRC}")
    write(bench.disks[0], target(device).layout.data_sector(0), pattern(1, 0, 64))
    bench.remove(device)
    device = load(bench, f"1:0 0 - D 2 {CRC} recalculate")
    assert status(device) == "0 15944 0"
    assert read(device, 0, 64) == pattern(1, 0, 64)
    bench.work.run()
    assert status(device) == "0 15944 15944"
    assert " recalculate " in status(device, StatusType.TABLE)
    bench.remove(device)
    device = load(bench, f"1:0 0 - D 1 {CRC}")
    assert status(device) == "0 15944 15944"
    assert read(device, 0, 64) == pattern(1, 0, 64)


def test_each_resume_resets_the_recalculation() -> None:
    bench = Bench()
    bench.remove(load(bench, f"1:0 0 - D 1 {KEYED}"))
    device = load(bench, f"1:0 0 - D 3 {KEYED} reset_recalculate legacy_recalculate")
    bench.work.run()
    assert status(device) == "0 14240 14240"
    bench.suspend(device)
    assert status(device) == "0 14240 14240"
    device.resume()
    assert status(device) == "0 14240 0"
    bench.work.run()
    bench.remove(device)
    refusal = errno.EOPNOTSUPP, "Recalculating with HMAC is disabled for security reasons - if you really need it, use"
    code, message = bench.refusal(Integrity, SIZE, f"1:1 0 - D 2 {KEYED} reset_recalculate")
    assert (code, message[: len(refusal[1])]) == refusal
    bench.remove(load(bench, f"1:0 0 - D 2 {KEYED} reset_recalculate"))


def test_what_is_discarded_has_no_tag_to_match() -> None:
    bench = Bench()
    bench.disks[0].limits.discard = True
    device = load(bench, f"1:0 0 - D 2 {CRC} allow_discards")
    write(device, 0, pattern(1, 0, 16))
    discard(device, 8, 8)
    flip(bench.disks[0], target(device).layout.data_sector(9))
    read(device, 0, 16)
    bench.remove(device)
    device = load(bench, f"1:0 0 - D 1 {CRC}")
    assert read(device, 0, 8) == pattern(1, 0, 8)
    with pytest.raises(OSError, match="read"):
        read(device, 8, 8)


@pytest.mark.skipif(not shutil.which("integritysetup"), reason="needs integritysetup (cryptsetup-bin)")
@pytest.mark.parametrize("options", ["", "-I sha256 -s 4096", "--integrity-no-journal", "-B"])
def test_integritysetup(tmp_path: Path, options: str) -> None:
    """Under the bridge: format, open, write, close, open, and a flipped byte."""
    (tmp_path / "disk").write_bytes(bytes(8 << 20))
    (tmp_path / "data").write_bytes(pattern(1, 0, 800))
    hashing = options if options.startswith("-I") else ""
    opening = hashing.split(" -s")[0] or options
    script = f"""set -e
integritysetup format -q {hashing} /dev/loop20
integritysetup open {opening} /dev/loop20 v
dd if=data of=/dev/mapper/v bs=4096 conv=fsync status=none
integritysetup close v
integritysetup open {opening} /dev/loop20 v
cmp -n 409600 /dev/mapper/v data
integritysetup status v | grep failures
integritysetup close v
{sys.executable} - <<X
disk = bytearray(open("disk", "rb").read())
disk[disk.index(open("data", "rb").read()[4096:8192]) + 9] ^= 1
open("disk", "wb").write(disk)
X
integritysetup open {opening} /dev/loop20 v
dd if=/dev/mapper/v of=/dev/null bs=4096 count=1 iflag=direct status=none
dd if=/dev/mapper/v of=/dev/null bs=4096 skip=1 count=1 iflag=direct status=none 2>&1 || echo failed
integritysetup status v | grep failures
integritysetup close v
"""
    command = [sys.executable, "-m", "dmserver", "run", "--pdev", f"/dev/loop20={tmp_path}/disk,dev=7:20", "--"]
    done = subprocess.run(
        [*command, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0] == "failures: 0", done
    assert lines[1] == "dd: error reading '/dev/mapper/v': Invalid or incomplete multibyte or wide character"
    assert lines[2:] == ["failed", "failures: 1"]


def submit_with_tags(device: DmDev, bio: Bio, tags: bytes) -> int:
    bio.tags = memoryview(bytearray(tags))
    ended: list[Bio] = []
    bio.done = ended.append
    device.submit_bio(bio)
    (done,) = ended
    return done.error


@pytest.mark.parametrize("mode", ["J", "D"])
def test_tags_that_others_make(mode: str) -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 4 {mode} 2 interleave_sectors:64 fix_padding")
    assert device.limits.integrity == (4, 512)
    data = memoryview(bytearray(pattern(1, 60, 8)))
    assert submit_with_tags(device, Bio(Op.WRITE, 60, 8, data), bytes(range(32))) == 0
    for settled in (False, True):
        if settled:
            flush(device)
        bio = Bio(Op.READ, 62, 4, memoryview(bytearray(2048)))
        assert submit_with_tags(device, bio, bytes(16)) == 0
        assert bio.tags == bytes(range(8, 24))
        assert bio.data == pattern(1, 62, 4)


def test_tags_that_do_not_fit() -> None:
    bench = Bench()
    device = load(bench, "1:0 0 4 J 0")
    assert submit_with_tags(device, Bio(Op.READ, 0, 2, memoryview(bytearray(1024))), bytes(7)) == errno.EIO
    other = bench.load("other", (Integrity, SIZE, f"1:1 0 - J 1 {CRC}"))
    assert other.limits.integrity is None
    assert submit_with_tags(other, Bio(Op.READ, 0, 2, memoryview(bytearray(1024))), bytes(8)) == errno.EIO
    assert log(bench)[-2:] == [
        "Invalid integrity data size 7, expected 8",
        "Unexpected integrity data when using internal hash",
    ]
