"""`python tests/bench [--json] [MODULE...]`: run the bench modules of this folder and print their tables.

A bench module is a file beside this one with a function `run(report: compare.Report) -> None`; the first line of its
docstring is the title of its table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from compare import Report

NOT_BENCHES = {"__main__", "compare"}


def main() -> None:
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_BENCHES)
    parser = argparse.ArgumentParser(prog="bench", description="Ratios to peers, measured in the same run.")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"any of: {', '.join(known)}; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON object a table instead of text")
    options = parser.parse_args()
    if unknown := set(options.modules) - set(known):
        parser.error(f"no such module: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for name in options.modules or known:
        module = import_module(name)
        report = Report((module.__doc__ or name).splitlines()[0])
        module.run(report)
        print(json.dumps(asdict(report)) if options.json else report.table(), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
