"""Replays the recorded loads of one target type through its constructor alone."""

from __future__ import annotations

import errno
import re

from support.targets import Bench, recorded_constructors

from dmserver.model.args import split_args
from dmserver.model.dm_table import DmTable
from dmserver.model.dm_target import StatusType, Target, TargetError

#: Lines that speak of the machine, or of the table around the target, or that the kernel prints only so often.
_ELSEWHERE = re.compile(
    r"error adding target|hrtimer|alignment inconsistency|SCSI subsystem|version .* loaded|implementation"
    r"|is deprecated|Disabling discard passdown"
)


def replay(bench: Bench, kind: type[Target], *files: str) -> int:
    """Assert errno, message, log and TABLE line of each; returns how many there were."""
    count = 0
    for length, params, expected, table_line, kmsg, read_only in recorded_constructors(kind.name, *files):
        if "253:" in params or any("table load rejected" in line for line in kmsg):
            continue  # needs the devices of the scenario, or is the table's own refusal
        count += 1
        device = bench.mapper.create("replay")
        before = len(bench.mapper.events.lines)
        table = DmTable(device, bench.resolve, read_only=read_only)
        try:
            target = table.add_target(kind, 0, length, split_args(params))
        except TargetError as refusal:
            name = errno.errorcode[refusal.errno]
            line = f"device-mapper: table: 253:0: {kind.name}: {refusal.message} (-{name})"
            assert (name, [line]) == (expected, [text for text in kmsg if ": table: " in text]), params
        else:
            assert expected == "0", params
            if table_line is not None:
                assert target.status(StatusType.TABLE) == table_line
        logged = list(bench.mapper.events.lines)[before:]
        ours = [text for text in logged if not _ELSEWHERE.search(text)]
        assert ours == [text for text in kmsg if ": table: " not in text and not _ELSEWHERE.search(text)], params
        table.destroy()
        bench.mapper.remove(device)
    return count
