"""Callers of every kind: static binaries, threads, children, the impatient and the killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dmserver.bridge.caller import Caller
from dmserver.bridge.seccomp import Listener
from dmserver.bridge.supervisor import Call, Supervisor
from dmserver.loop import Loop
from dmserver.testing import PrivateServer

Run = Callable[..., "subprocess.CompletedProcess[str]"]

gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
dmsetup = pytest.mark.skipif(shutil.which("dmsetup", path="/usr/sbin:/sbin") is None, reason="no dmsetup")

HEADER = r"""
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct dm_ioctl { uint32_t version[3], data_size, data_start, target_count; int32_t open_count;
    uint32_t flags, event_nr, padding; uint64_t dev; char name[128], uuid[129], data[7]; };

static int dm(int fd, int command, const char *name, uint32_t event_nr) {
    struct dm_ioctl io = { {4, 0, 0}, sizeof io, sizeof io };
    io.event_nr = event_nr;
    strncpy(io.name, name, 127);
    return ioctl(fd, _IOWR(0xfd, command, struct dm_ioctl), &io) ? -errno : (int)io.version[1];
}
static int control(void) { return open("/dev/mapper/control", O_RDWR); }
"""


@pytest.fixture
def compile_c(tmp_path: Path) -> Callable[..., Path]:
    def build(main: str, *options: str) -> Path:
        source, binary = tmp_path / "client.c", tmp_path / "client"
        source.write_text(HEADER + main)
        subprocess.run(["gcc", "-O1", "-o", binary, source, *options], check=True)
        return binary

    return build


@gcc
def test_static_binary(compile_c: Callable[..., Path], dm_run: Run) -> None:
    main = r"""int main(void) { int fd = control(); char buffer[8];
        printf("%d ", dm(fd, 0, "", 0)); printf("%d ", dm(fd, 3, "a", 0));
        printf("%d ", dm(fd, 3, "a", 0)); printf("%d\n", dm(fd, 99, "", 0));
        struct pollfd p = { fd, POLLIN }; int before, after;
        before = poll(&p, 1, 0); dm(fd, 16, "", 0); after = poll(&p, 1, 0); printf("%d %d\n", before, after);
        printf("%d\n", ioctl(fd, _IOWR(0xfd, 0, struct dm_ioctl), (void *)8) ? errno : 0);
        printf("%d\n", ioctl(0, _IOWR(0xfd, 0, struct dm_ioctl), buffer) ? errno : 0); return 0; }"""
    printed = dm_run(compile_c(main, "-static")).stdout.split("\n")
    assert printed[:4] == [f"47 47 {-16} {-25}", "1 0", "14", "25"]


@gcc
def test_a_waiting_thread_does_not_hold_up_the_others(compile_c: Callable[..., Path], dm_run: Run) -> None:
    main = r"""static int fd; static volatile int tid;
        static void *waiter(void *arg) { tid = syscall(SYS_gettid); return (void *)(intptr_t)dm(fd, 8, "a", 0); }
        static int runs(void) { char path[64], state = 'R'; sprintf(path, "/proc/self/task/%d/stat", tid);
            FILE *stat = fopen(path, "r"); fscanf(stat, "%*d (%*[^)]) %c", &state); fclose(stat); return state == 'R'; }
        int main(void) { pthread_t thread; void *result; int i; fd = control(); dm(fd, 3, "a", 0);
        pthread_create(&thread, 0, waiter, 0);
        while (!tid || runs()) sched_yield();
        for (i = 0; i < 300; i++) if (dm(fd, 7, "a", 0) != 47) return 1;
        if (dm(fd, 4, "a", 0) != 47) return 2;
        pthread_join(thread, &result); printf("%d\n", (int)(intptr_t)result); return 0; }"""
    assert dm_run(compile_c(main, "-pthread")).stdout == "47\n"


@gcc
@pytest.mark.parametrize(("flags", "calls"), [("0", "-4"), ("SA_RESTART", "47")])
def test_a_signal_ends_a_wait(compile_c: Callable[..., Path], dm_run: Run, flags: str, calls: str) -> None:
    main = r"""static int fd; static void tick(int n) { if (FLAGS) dm(control(), 4, "a", 0); }
        int main(void) { struct sigaction action = { .sa_handler = tick, .sa_flags = FLAGS };
        sigaction(SIGALRM, &action, 0); fd = control(); dm(fd, 3, "a", 0); ualarm(50000, 0);
        printf("%d\n", dm(fd, 8, "a", 0)); return 0; }"""
    result = dm_run(compile_c(main, f"-DFLAGS={flags}")).stdout
    assert result == f"{calls}\n" or (flags == "SA_RESTART" and result == "-6\n")


@gcc
def test_a_client_killed_while_it_waits(compile_c: Callable[..., Path], dmserver: PrivateServer) -> None:
    main = r"""int main(void) { int fd = control(); dm(fd, 3, "a", 0); write(1, "x", 1);
        return dm(fd, 8, "a", 0) != 47; }"""
    process = dmserver.popen(compile_c(main), stdout=subprocess.PIPE)
    with process:
        assert process.stdout
        assert process.stdout.read(1) == "x"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    again = dmserver.run(compile_c(r"""int main(void) { return dm(control(), 4, "a", 0) != 47; }"""))
    assert again.returncode == 0


def test_what_ends_after_the_last_process_is_answered_to_nobody() -> None:
    """A request to a device may be under way then."""
    loop, (fd, other), ended = Loop(), os.pipe(), list[Supervisor]()
    supervisor = Supervisor(loop, {}, Listener(fd), ended.append)
    caller = Caller(os.getpid())
    call = Call(supervisor, "ioctl", 7, caller, (0,) * 6)
    supervisor.close()
    call.finish(0)
    call.write(0, b"data")
    assert call.hand_over(other, cloexec=True) is None
    assert ended == [supervisor]
    caller.close()
    loop.close()
    os.close(other)


@gcc
def test_vfork_and_exec_get_their_own_memory(compile_c: Callable[..., Path], dm_run: Run) -> None:
    main = r"""int main(int argc, char **argv) {
        int fd = control(), status; dm(fd, 3, argc > 1 ? "child" : "parent", 0);
        if (argc > 1) return 0;
        pid_t pid = vfork();
        if (!pid) { close(open("/dev/mapper/control", O_RDWR)); execl(argv[0], argv[0], "x", NULL); }
        waitpid(pid, &status, 0);
        printf("%d %d %d\n", status, dm(fd, 7, "child", 0), dm(fd, 7, "parent", 0)); return 0; }"""
    assert dm_run(compile_c(main)).stdout == "0 47 47\n"


@dmsetup
def test_xargs_in_parallel(dm_run: Run) -> None:
    script = """seq 1 40 | xargs -P 8 -I N dmsetup create dN --table '0 8 zero' && dmsetup ls | wc -l
    dmsetup ls | cut -f1 | xargs -P 8 -n 1 dmsetup remove && dmsetup ls"""
    assert dm_run("sh", "-c", script).stdout == "40\nNo devices found\n"


@dmsetup
def test_many_runs_side_by_side() -> None:
    command = [sys.executable, "-m", "dmserver", "run", "--", "dmsetup", "create", "v", "--table", "0 8 zero"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(40)]
    outputs = [(run.communicate()[0], run.returncode) for run in runs]
    assert outputs == [(b"", 0)] * 40


def test_directories_of_a_dead_client_are_forgotten(dm_run: Run) -> None:
    assert dm_run("sh", "-c", "(cd /dev/mapper && kill -9 $$)", check=False).returncode == -signal.SIGKILL
    assert dm_run("sh", "-c", "cd /dev/mapper && pwd -P && cd .. && pwd -P && cd / && pwd -P").stdout == (
        "/dev/mapper\n/dev\n/\n"
    )


def test_a_directory_that_is_not_there_moves_nobody(dm_run: Run) -> None:
    done = dm_run("sh", "-c", "cd /dev/mapper; cd /nowhere || cd /usr/nowhere || ls", check=False)
    assert done.stdout == "control\n"


def test_another_thread_than_the_first_executes_a_program(dm_run: Run) -> None:
    script = """import os, threading; os.listdir("/dev/mapper")
threading.Thread(target=os.execvp, args=("ls", ["ls", "/dev/mapper"])).start()"""
    assert dm_run("python3", "-c", script).stdout == "control\n"


def test_what_is_not_ours_is_the_kernels(dm_run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    script = "cat link; readlink link; test -r file && ls; mkdir d; mv file d/f; ln -s d/f g; cat g; rm g; chmod 700 d"
    assert dm_run("sh", "-c", script, cwd=tmp_path).stdout == "textfile\nfile\nlink\ntext"
    assert os.stat(tmp_path / "d").st_mode & 0o777 == 0o700
