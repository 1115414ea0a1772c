"""The bridge: one DM_VERSION against a bare supervisor in C, and a whole run of dmsetup.

Both supervisors and their clients run on one processor, as the scheduler would have it; the client itself measures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from compare import Report, interleave

CALLS = 20000

CLIENT = r"""
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
int main(int argc, char **argv) {
    static char io[312]; int fd = open(argv[1], O_RDWR), n = atoi(argv[2]); struct timespec a, b;
    uint32_t *words = (uint32_t *)io; words[0] = 4; words[3] = words[4] = 312;
    for (int i = 0; i < 100; i++) ioctl(fd, 0xc138fd00, io);
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < n; i++) if (ioctl(fd, 0xc138fd00, io) < 0) return 1;
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%.9f\n", ((b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) / 1e9) / n); return 0;
}
"""

SUPERVISOR = r"""
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int pair[2]; socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 0; struct iovec iov = { &byte, 1 };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    if (!fork()) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_ioctl, 0, 4),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
            BPF_STMT(BPF_ALU | BPF_RSH | BPF_K, 8), BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xfd, 1, 0),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF) };
        struct sock_fprog program = { sizeof code / sizeof *code, code };
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        int fd = syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
        struct cmsghdr *head = CMSG_FIRSTHDR(&msg);
        head->cmsg_level = SOL_SOCKET; head->cmsg_type = SCM_RIGHTS; head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof fd); sendmsg(pair[1], &msg, 0); close(fd);
        execv(argv[1], argv + 1); return 1;
    }
    int fd; recvmsg(pair[0], &msg, 0); memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof fd);
    for (;;) {
        struct seccomp_notif notif = {0}; struct seccomp_notif_resp answer = {0};
        if (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &notif)) return 0;
        answer.id = notif.id; ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    }
}
"""


def run(report: Report) -> None:
    if shutil.which("gcc") is None or shutil.which("dmsetup") is None:
        raise SystemExit("the bridge is measured with gcc and dmsetup; one of them is not installed")
    processors = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as directory:
        client, supervisor = (build(Path(directory), *source) for source in (("client", CLIENT), ("bare", SUPERVISOR)))
        os.sched_setaffinity(0, {min(processors)})
        try:
            round_trip(report, client, supervisor)
        finally:
            os.sched_setaffinity(0, processors)
    whole_run(report)


def build(directory: Path, name: str, source: str) -> str:
    path = directory / f"{name}.c"
    path.write_text(source)
    subprocess.run(["gcc", "-O2", "-o", directory / name, path], check=True)
    return str(directory / name)


def dmserver(*argv: str) -> list[str]:
    return [sys.executable, "-P", "-m", "dmserver", "run", "--", *argv]


def round_trip(report: Report, client: str, supervisor: str) -> None:
    """The median of what the client measured, each supervisor in turn."""

    def measured(*command: str) -> float:
        # the bare supervisor blocks in the kernel when its last client is gone
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert process.stdout
            seconds = float(process.stdout.readline())
            process.kill()
        return seconds

    times: dict[str, list[float]] = {"dmserver run": [], "bare C supervisor": []}
    for _ in range(7):
        times["bare C supervisor"].append(measured(supervisor, client, "/dev/null", str(CALLS)))
        times["dmserver run"].append(measured(*dmserver(client, "/dev/mapper/control", str(CALLS))))
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    report.add("DM_VERSION", medians, "dmserver run", ["bare C supervisor"], goal=3)


def whole_run(report: Report) -> None:
    """A run of `dmsetup version`, against the same dmsetup without a device-mapper and the start of an interpreter: six
    times both together, and, what imports alone exceed, six times dmsetup and an interpreter once."""

    def call(*command: str) -> None:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    medians = interleave(
        {
            "run": lambda: call(*dmserver("dmsetup", "version")),
            "native": lambda: call("dmsetup", "version"),
            "interpreter": lambda: call(sys.executable, "-c", "pass"),
        },
        seconds=5,
        rounds=11,
    )
    medians["6x (dmsetup + python)"] = 6 * (medians["native"] + medians["interpreter"])
    medians["6x dmsetup + python"] = 6 * medians["native"] + medians["interpreter"]
    report.add("dmsetup version", medians, "run", ["6x (dmsetup + python)", "6x dmsetup + python"], goal=1)
