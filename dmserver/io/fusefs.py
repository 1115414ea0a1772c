"""Mapped devices as files, by FUSE: DIR/dm-N, and DIR/mapper/NAME, the same file by its name.

Spoken straight with /dev/fuse; fusermount3 mounts for an ordinary user. Rules:

1. One thread reads requests. Data requests become bios and are answered whenever those end, in any thread, so that a
   suspended device keeps nothing else waiting.
2. A read or write that is not made of whole logical blocks covers them: it reads first, as a buffer cache would.
3. As on a block device reads end at its end, writes past it are ENOSPC, and truncation does nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from struct import unpack_from

from dmproto.records import SECTOR_SIZE

from ..model.dm_dev import DmDev
from ..model.mapper import Mapper
from . import fuse_proto as proto
from .bio import Bio, Op
from .fuse_proto import Opcode
from .zeroout import issue_zeroout

__all__ = ["FuseMount"]

ROOT, MAPPER, FIRST_DEVICE = 1, 2, 16
MS_NOSUID, MS_NODEV, MNT_DETACH = 2, 4, 2
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
BUFFER = proto.MAX_IO + 4096

Reply = Callable[[int, bytes], None]


class FuseMount:
    """The devices of `mapper` at `directory`, which must exist. `opened` and `released` are told of each open file, in
    the mount's thread; OSError of `opened` refuses it. OSError when FUSE is not to be had."""

    def __init__(
        self,
        mapper: Mapper,
        directory: str,
        *,
        opened: Callable[[DmDev], None] = lambda device: None,
        released: Callable[[DmDev], None] = lambda device: None,
    ) -> None:
        self.mapper = mapper
        self.directory = directory
        self._opened = opened
        self._released = released
        self._handles: dict[int, DmDev] = {}
        self._next_handle = 1
        self._fd = _mount(directory)
        self._answers: dict[int, Callable[[int, int, bytes, Reply], None]] = {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._getattr,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.READDIR: self._readdir,
            Opcode.OPENDIR: lambda unique, node, data, reply: reply(0, proto.OPEN_OUT.pack(0, 0, 0)),
            **dict.fromkeys((Opcode.FLUSH, Opcode.RELEASEDIR, Opcode.FSYNCDIR, Opcode.DESTROY), self._nothing),
        }
        self._thread = threading.Thread(target=self._serve, name="dm-fuse", daemon=True)
        self._thread.start()

    def detach(self) -> int:
        """Take the mount out of sight: it lives on behind the directory descriptor that is returned, and is gone with
        it and the files opened through it, whatever becomes of this process."""
        fd = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _unmount(self.directory)
        return fd

    def close(self) -> None:
        """Unmount. A file that is still open stays usable while this process lives."""
        _unmount(self.directory)

    # -- requests ---------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, BUFFER)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                os.close(self._fd)  # ENODEV: unmounted
                return
            _, opcode, unique, node, *_ = proto.IN_HEADER.unpack_from(request)
            if opcode in proto.SILENT:
                continue
            reply = self._replier(unique)
            answer = self._answers.get(opcode)
            if answer is None:
                reply(errno.ENOSYS, b"")
                continue
            try:
                answer(unique, node, request[proto.IN_HEADER.size :], reply)
            except OSError as error:
                reply(error.errno or errno.EIO, b"")

    def _replier(self, unique: int) -> Reply:
        def reply(error: int, data: bytes) -> None:
            header = proto.OUT_HEADER.pack(proto.OUT_HEADER.size + (0 if error else len(data)), -error, unique)
            try:
                os.writev(self._fd, [header] if error or not data else [header, data])
            except OSError:
                pass  # the caller was interrupted, or the mount is gone

        return reply

    def _nothing(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        reply(0, b"")

    def _init(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        _, _, read_ahead, flags = proto.INIT_IN.unpack_from(data)
        pages = proto.MAX_IO // 4096
        out = (*proto.VERSION, read_ahead, flags & proto.INIT_FLAGS, 64, 48, proto.MAX_IO, 1, pages)
        reply(0, proto.INIT_OUT.pack(*out))

    # -- names and attributes ---------------------------------------------------------------------------

    def _device(self, node: int) -> DmDev:
        device = self.mapper.devices.get(node - FIRST_DEVICE)
        if device is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return device

    def _names(self, node: int) -> dict[bytes, int]:
        """What is in a directory: node by name."""
        devices = [device for device in tuple(self.mapper.devices.values()) if device.has_disk]
        if node == MAPPER:
            return {os.fsencode(d.name): FIRST_DEVICE + d.minor for d in devices if d.name}
        return {b"mapper": MAPPER, **{b"dm-%d" % d.minor: FIRST_DEVICE + d.minor for d in devices}}

    def _lookup(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        found = self._names(node).get(data.split(b"\0")[0])
        if found is None:
            reply(errno.ENOENT, b"")
        else:
            reply(0, proto.ENTRY_OUT.pack(found, 0, 0, 0, 0, 0) + self._attr(found))

    def _getattr(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        reply(0, proto.ATTR_OUT.pack(0, 0, 0) + self._attr(node))

    def _attr(self, node: int) -> bytes:
        size, mode = 0, stat.S_IFDIR | 0o755
        if node >= FIRST_DEVICE:
            size, mode = self._device(node).bytes, stat.S_IFREG | 0o660
        times = (0,) * 6
        ids = (os.geteuid(), os.getegid())
        return proto.ATTR.pack(node, size, size // SECTOR_SIZE, *times, mode, 1, *ids, 0, 4096, 0)

    def _readdir(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        _, offset, size, *_ = proto.READ_IN.unpack_from(data)
        entries = [(b".", node), (b"..", ROOT), *self._names(node).items()]
        out = b""
        for at, (name, inode) in enumerate(entries[offset:], offset + 1):
            kind = (stat.S_IFREG if inode >= FIRST_DEVICE else stat.S_IFDIR) >> 12
            entry = proto.DIRENT.pack(inode, at, len(name), kind) + name
            entry = entry.ljust(len(entry) + 7 & ~7, b"\0")
            if len(out) + len(entry) > size:
                break
            out += entry
        reply(0, out)

    def _statfs(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        reply(0, proto.STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0))

    # -- open files -------------------------------------------------------------------------------------

    def _open(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        device = self._device(node)
        self._opened(device)
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = device
        reply(0, proto.OPEN_OUT.pack(handle, 0, 0))

    def _release(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        self._released(self._handles.pop(unpack_from("=Q", data)[0]))
        reply(0, b"")

    def _read(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        handle, offset, size, *_ = proto.READ_IN.unpack_from(data)
        device = self._handles[handle]
        size = min(size, max(0, device.bytes - offset))
        if not size:
            reply(0, b"")
            return
        start, end = _blocks(device, offset, size)
        buffer = bytearray(end - start)

        def done(bio: Bio) -> None:
            reply(bio.error, bytes(buffer[offset - start : offset - start + size]))

        _submit(device, Op.READ, start, buffer, done)

    def _write(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        handle, offset, size, *_ = proto.WRITE_IN.unpack_from(data)
        device = self._handles[handle]
        if device.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        written = min(size, max(0, device.bytes - offset))
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        new = data[proto.WRITE_IN.size : proto.WRITE_IN.size + written]
        start, end = _blocks(device, offset, written)

        def done(bio: Bio) -> None:
            reply(bio.error, proto.WRITE_OUT.pack(written, 0))

        if (start, end) == (offset, offset + written):
            _submit(device, Op.WRITE, start, bytearray(new), done)
            return
        buffer = bytearray(end - start)

        def patch(bio: Bio) -> None:
            if bio.error:
                done(bio)
                return
            buffer[offset - start : offset - start + written] = new
            _submit(device, Op.WRITE, start, buffer, done)

        _submit(device, Op.READ, start, buffer, patch)

    def _fsync(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        device = self._handles[unpack_from("=Q", data)[0]]
        device.submit_bio(Bio(Op.FLUSH, 0, 0, None, lambda bio: reply(bio.error, b""), bdev=device))

    def _fallocate(self, unique: int, node: int, data: bytes, reply: Reply) -> None:
        """blkdev_fallocate() of block/fops.c."""
        handle, offset, length, mode, _ = proto.FALLOCATE_IN.unpack_from(data)
        device = self._handles[handle]
        if mode & ~FALLOC_KEEP_SIZE not in (FALLOC_ZERO_RANGE, FALLOC_PUNCH_HOLE):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if offset >= device.bytes or (offset | length) % device.limits.logical_block_size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        length = min(length, device.bytes - offset)
        if mode & FALLOC_PUNCH_HOLE and not device.limits.write_zeroes:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        sector, count = offset // SECTOR_SIZE, length // SECTOR_SIZE
        issue_zeroout(device, sector, count, lambda error: reply(error, b""))


def _blocks(device: DmDev, offset: int, size: int) -> tuple[int, int]:
    """The bytes of whole logical blocks that cover a range: first, end."""
    block = device.limits.logical_block_size
    return offset // block * block, min((offset + size + block - 1) // block * block, device.bytes)


def _submit(device: DmDev, op: Op, start: int, buffer: bytearray, done: Callable[[Bio], None]) -> None:
    sector, count = start // SECTOR_SIZE, len(buffer) // SECTOR_SIZE
    device.submit_bio(Bio(op, sector, count, memoryview(buffer), done, bdev=device))


# -- mounting -----------------------------------------------------------------------------------------------


def _mount(directory: str) -> int:
    """A connection to the kernel, mounted at `directory`."""
    options = f"rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
    if os.geteuid() == 0:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        data = f"fd={fd},{options},allow_other".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV)
        if libc.mount(b"dmserver", os.fsencode(directory), b"fuse.dmserver", flags, data):
            failed = ctypes.get_errno()
            os.close(fd)
            raise OSError(failed, f"mount of FUSE: {os.strerror(failed)}", directory)
        return fd
    helper = _fusermount()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [helper, "-o", "fsname=dmserver,subtype=dmserver,nosuid,nodev", "--", directory]
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        done = subprocess.run(
            command, env=environment, pass_fds=[theirs.fileno()], capture_output=True, text=True, check=False
        )
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise OSError(errno.EPERM, done.stderr.strip() or "fusermount3 gave no descriptor", directory)
    os.set_inheritable(fds[0], False)
    return fds[0]


def _unmount(directory: str) -> None:
    if os.geteuid() == 0:
        ctypes.CDLL(None).umount2(os.fsencode(directory), MNT_DETACH)
    else:
        subprocess.run([_fusermount(), "-u", "-z", "--", directory], capture_output=True, check=False)


def _fusermount() -> str:
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        raise OSError(errno.ENOENT, "no fusermount3 to mount FUSE with; root needs none")
    return helper
