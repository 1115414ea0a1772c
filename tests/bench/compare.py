"""Fair comparison of peers: every contestant runs in every round of one run, and medians are compared.

On a shared machine only the ratio within one run means something. Interleaving the contestants spreads a slow
moment over all of them, and the median of the rounds forgets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

__all__ = ["Report", "Row", "interleave"]

Clock = Callable[[], float]


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 0.5,
    rounds: int = 7,
    clock: Clock = perf_counter,
) -> dict[str, float]:
    """Median seconds of one call of each contestant.

    Each round times a batch of calls of every contestant in turn. Batches are sized after a first, untimed call so
    that the whole comparison takes about `seconds`, though never less than one call of each in each round.
    For code that waits for nobody, `clock=process_time` leaves out what the machine's other tenants take.
    """
    share = seconds / rounds / len(contestants)
    batches: dict[str, int] = {}
    for name, call in contestants.items():
        call()
        batches[name] = max(1, int(share / max(_time(call, 1, clock), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            times[name].append(_time(call, batches[name], clock))
    return {name: median(of_one) for name, of_one in times.items()}


def _time(call: Callable[[], object], times: int, clock: Clock) -> float:
    start = clock()
    for _ in range(times):
        call()
    return (clock() - start) / times


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: `seconds` a call, `ratio` ours to the peer's (below 1: faster), `goal` its upper bound."""

    case: str
    seconds: float
    peer: str
    ratio: float
    goal: float | None = None


@dataclass(slots=True)
class Report:
    """What a bench module fills in: `title` and rows of one table."""

    title: str
    rows: list[Row] = field(default_factory=list)

    def add(
        self, case: str, medians: Mapping[str, float], ours: str, peers: Iterable[str], goal: float | None = None
    ) -> None:
        """One row for each of `peers`: how long `ours` took, and its ratio to that peer (at most `goal`)."""
        for peer in peers:
            self.rows.append(Row(case, medians[ours], peer, medians[ours] / medians[peer], goal))

    def table(self) -> str:
        lines = [self.title, f"  {'case':<32} {'time':>10}  {'peer':<24} {'ratio':>7}  goal"]
        for row in self.rows:
            goal = "" if row.goal is None else f"<= {row.goal:.2f}" + ("" if row.ratio <= row.goal else "  MISSED")
            lines.append(f"  {row.case:<32} {_span(row.seconds):>10}  {row.peer:<24} {row.ratio:>7.3f}  {goal}")
        return "\n".join(lines)


def _span(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
