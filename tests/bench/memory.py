"""Memory: what listing and converting 100,000 devices takes at its peak, against the size of the property list.

Each is done in a process of its own, and counts from the moment before.
"""

from __future__ import annotations

import subprocess
import sys

from compare import Report, Row

GOAL = 4.0

COMMON = """
from resource import RUSAGE_SELF, getrusage
from dmproto import DeviceEntry, Form, Header, Message, build, command, convert, proplib
def peak():
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024
COUNT = 100_000
"""

LISTED = """
from dmserver.host import Host
host = Host()
for number in range(COUNT):
    host.mapper.create(f"vg-lv{number:06}")
replies = []
before = peak()
host.dictionary(host.open(), {"command": "names", "version": [4, 0, 0]}, replies.append)
text = proplib.dumps(replies[0])
print((peak() - before) / len(text))
"""

CONVERTED = """
header = Header(version=(4, 48, 0))
entries = tuple(DeviceEntry(name=f"vg-lv{number:06}", dev=(253, number)) for number in range(COUNT))
data = build(Message(command=command("LIST_DEVICES"), reply=True, header=header, payload=entries))
if child := os.fork():  # a peak of its own: not that of making the list
    os.waitpid(child, 0)
    sys.exit()
before = peak()
text = convert(data, source=Form.BINARY, target=Form.PLIST, command="LIST_DEVICES", reply=True)
assert convert(text, source=Form.PLIST, target=Form.BINARY, reply=True) == data
print((peak() - before + len(data)) / len(text))
"""


def run(report: Report) -> None:
    for case, program in (("100000 devices listed", LISTED), ("100000 devices converted", CONVERTED)):
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"import os, sys\n{COMMON}{program}"], stdout=subprocess.PIPE, check=True
        )
        report.rows.append(Row(case, 0.0, "size of the text", float(done.stdout), GOAL))
