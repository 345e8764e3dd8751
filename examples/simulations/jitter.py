"""Simulation: how much work does jitter save? Many clients update the same row at the same time.

A client reads the row and writes it. The write fails if another client has written since
the read (optimistic concurrency control). Then the client waits and starts again, until it
has succeeded once. The retrier decides how long the client waits.

After Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), with his
numbers; his simulator is github.com/aws-samples/aws-arch-backoff-simulator.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.simulations.chart import Line, Panel, draw
from examples.simulations.report import Report, show
from examples.simulations.virtual_time import simulate
from examples.support.lesson import run_command
from lib.retry import Retrier, RetryBudget

CLIENTS = (10, 50, 100, 190)
WRITES = 10_000  # runs are repeated until they have this many writes; a result is their average
# base_delay in seconds, and jitter. Brooker's base is 5 ms, doubled before the first wait.
POLICIES = {
    "no backoff": (0.0, False),
    "backoff without jitter": (0.010, False),
    "backoff with full jitter": (0.010, True),
}
COLOURS = ("grey", "orange", "blue")
MAX_DELAY = 2.0  # seconds


class Result(NamedTuple):
    """How many writes were tried until all clients had succeeded, and how long that took."""

    writes: float
    seconds: float


class ConflictError(Exception):
    """Another client has written since the read."""

    retryable = True


class Row:
    """A row of a database, behind a network."""

    def __init__(self) -> None:
        self.version = 0
        self.writes = 0

    async def update(self) -> None:
        """Read the row and write it. Raises ConflictError if it has changed in between."""
        await asyncio.sleep(network_delay())
        version = self.version
        await asyncio.sleep(network_delay() + network_delay())  # to the client and back
        self.writes += 1
        conflict = self.version != version
        if not conflict:
            self.version += 1
        await asyncio.sleep(network_delay())
        if conflict:
            raise ConflictError


def network_delay() -> float:
    return abs(random.normalvariate(0.010, 0.002))


async def contend(clients: int, base_delay: float, jitter: bool) -> Result:
    """Let every client update the row once."""
    # Each client must succeed, so neither the attempts nor the budget may run out.
    retrier = Retrier(
        max_attempts=1_000_000,
        base_delay=base_delay,
        max_delay=MAX_DELAY,
        jitter=jitter,
        budget=RetryBudget(math.inf),
    )
    row = Row()
    await asyncio.gather(*(retrier.call_async(row.update) for _ in range(clients)))
    return Result(row.writes, time.monotonic())


def average(clients: int, policy: str, seed: int) -> Result:
    """Return the averages of many runs, each with its own seed."""
    runs: list[Result] = []
    while sum(run.writes for run in runs) < WRITES:
        runs.append(simulate(lambda: contend(clients, *POLICIES[policy]), seed=seed + len(runs)))
    return Result(*(fmean(values) for values in zip(*runs, strict=True)))


def report(seed: int) -> Report:
    results = {
        policy: {clients: average(clients, policy, seed) for clients in CLIENTS}
        for policy in POLICIES
    }
    return Report(table(results), picture(results))


def table(results: dict[str, dict[int, Result]]) -> str:
    clients = "".join(f"{clients:>7}" for clients in CLIENTS)
    lines = [
        "Jitter: every client must update the same row once.",
        "",
        f"{'':<25}{'writes tried':>28}{'seconds until all are done':>31}",
        f"{'clients':<25}{clients}   {clients}",
    ]
    for policy, averages in results.items():
        writes = "".join(f"{average.writes:>7,.0f}" for average in averages.values())
        seconds = "".join(f"{average.seconds:>7.2f}" for average in averages.values())
        lines.append(f"{policy:<25}{writes}   {seconds}")
    return "\n".join(lines) + "\n"


def picture(results: dict[str, dict[int, Result]]) -> str:
    writes, seconds = (
        [
            Line(policy, colour, [(n, averages[n][field]) for n in CLIENTS])
            for (policy, averages), colour in zip(results.items(), COLOURS, strict=True)
        ]
        for field in range(2)
    )
    clients = (0, 50, 100, 150, 200)
    return draw(
        "Jitter: every client must update the same row once",
        "Two charts over the number of clients, 10 to 190. Left, the writes tried: most without "
        "backoff, fewest with full jitter. Right, the seconds until all are done: with backoff "
        "but no jitter, many times those of the other two.",
        [
            Panel("Writes tried", "clients", clients, (0, 2500, 5000, 7500, 10000), writes),
            Panel("Seconds until all are done", "clients", clients, (0, 30, 60, 90, 120), seconds),
        ],
    )


if __name__ == "__main__":
    run_command(lambda: show({"jitter": report}))
