"""How the benchmark measures: everybody in turns, then medians, then one table."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

T = TypeVar("T")
Call = Callable[[], object]

OURS = "this project"


def in_turns(measures: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each measure gave, taken A B C A B C ..., so that a busy moment meets them all."""
    taken: dict[str, list[T]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            taken[name].append(measure())
    return taken


def medians(taken: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in taken.items()}


def call_costs(
    calls: Mapping[str, Call], *, rounds: int, batch: int, before: Call = lambda: None
) -> dict[str, float]:
    """The median cost of one call in µs. ``before`` runs ahead of each batch, off the clock."""

    def cost_of(call: Call) -> float:
        before()
        start = time.perf_counter()
        for _ in range(batch):
            call()
        return (time.perf_counter() - start) / batch * 1e6

    return medians(in_turns({name: partial(cost_of, call) for name, call in calls.items()}, rounds))


def wall_time(call: Call, *, times: int, threads: int) -> float:
    """Seconds until each of the threads has made so many calls."""

    def work() -> None:
        for _ in range(times):
            call()

    start = time.perf_counter()
    in_threads(work, threads)
    return time.perf_counter() - start


def in_threads(work: Call, threads: int) -> None:
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def quickest_peer(costs: Mapping[str, float]) -> float:
    return min(cost for name, cost in costs.items() if name != OURS)


@dataclass
class Row:
    """One job in every library: what to reach, whether it is, and (who, median, beside ours)."""

    job: str
    target: str
    reached: bool
    results: list[tuple[str, str, str]]

    def __str__(self) -> str:
        lines = [f"    {who:<38}{median:>14}{ratio:>9}" for who, median, ratio in self.results]
        verdict = f"    {'met' if self.reached else 'missed'}: target {self.target}"
        return "\n".join([self.job, *map(str.rstrip, lines), verdict, ""])


def beside_ours(medians: Mapping[str, float], unit: str) -> list[tuple[str, str, str]]:
    """The results of a row: each median, and how many times ours it is."""
    ours = medians[OURS]
    return [
        (name, f"{median:,.2f} {unit}", f"{median / ours:.2f}") for name, median in medians.items()
    ]
