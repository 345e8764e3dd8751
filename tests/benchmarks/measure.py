"""Measure calls in turns, and report medians relative to this project."""

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
    """Take each measure in turns (A B C A B C ...), so that a busy moment affects all of them."""
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
    """Return the median cost of one call in µs. ``before`` runs before each batch, not timed."""

    def cost_of(call: Call) -> float:
        before()
        start = time.perf_counter()
        for _ in range(batch):
            call()
        return (time.perf_counter() - start) / batch * 1e6

    return medians(in_turns({name: partial(cost_of, call) for name, call in calls.items()}, rounds))


def wall_time(call: Call, *, times: int, threads: int) -> float:
    """Return the seconds until each thread has made ``times`` calls."""

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


def fastest_peer(costs: Mapping[str, float]) -> float:
    return min(cost for name, cost in costs.items() if name != OURS)


@dataclass
class Row:
    """One job: its target, whether it is reached, and (library, median, relative to ours)."""

    job: str
    target: str
    reached: bool
    results: list[tuple[str, str, str]]

    def __str__(self) -> str:
        lines = [f"    {who:<38}{median:>14}{ratio:>9}" for who, median, ratio in self.results]
        verdict = f"    {'met' if self.reached else 'missed'}: target {self.target}"
        return "\n".join([self.job, *map(str.rstrip, lines), verdict, ""])


def relative_to_ours(medians: Mapping[str, float], unit: str) -> list[tuple[str, str, str]]:
    """Return the results of a row: each median, and its ratio to ours."""
    ours = medians[OURS]
    return [
        (name, f"{median:,.2f} {unit}", f"{median / ours:.2f}") for name, median in medians.items()
    ]
