"""Simulation: which rule for retries is right for a fleet, and for a service that fails at random?

1,000 processes make 200 calls per second in all, or one process makes them alone. Each process
has a budget of its own for its retries. A short spike of load makes the service reject requests
and time out. Do the retries keep it down, once the spike is over? The same rules are then tried
in a program whose requests fail at random: a rule that stops a storm should not make it lose calls.
"""

from __future__ import annotations

import asyncio
import functools
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.simulations.chart import Line, Panel, draw
from examples.simulations.report import Report, show
from examples.simulations.retry_storm import RequestError, TimedOutError, Traffic, per_second
from examples.simulations.virtual_time import simulate
from examples.support.lesson import run_command
from lib.retry import GiveUpReason, Retrier, RetryBudget

# The number of processes, and the ticks of the time axis, whose last one ends the simulation.
FLEETS = {"1 process": (1, (0, 10, 20, 30, 40)), "1,000 processes": (1000, (0, 20, 40, 60, 80))}
SPIKE = (5, 10)
CAPACITY = 200 / 0.7  # requests per second that the service can respond to
LONGEST_QUEUE = 5.0  # seconds
TIMEOUT = 3.0
LATE = 15  # seconds at the end, in which all calls should succeed again


class Rule(RetryBudget):
    """The rule of `lib`: a retry takes a token; a call that succeeds gives its tokens back."""

    def on_give_up(self, attempt: int, error: Exception, reason: GiveUpReason) -> None:
        """Learn of a call that has failed."""


class TimeEarnsTokens(Rule):
    """A retry takes a token. Each second earns half a token; nothing is given back."""

    def __init__(self) -> None:
        super().__init__(tokens_per_second=0.5)

    def earn(self, retries: int = 0) -> None:
        """Add what a success earns."""
        super().earn()


class GrpcThrottling(Rule):
    """The rule of gRPC (A6): each failed request takes a token, a success earns 0.1 tokens.

    Nothing is retried while there are no more than half of the tokens.
    """

    tokens = 10.0

    def take(self) -> bool:
        """Take a token for a failed request. Return True if it may be retried."""
        self.tokens = max(0.0, self.tokens - 1)
        return self.tokens > self.max_tokens / 2

    def earn(self, retries: int = 0) -> None:
        """Add what a success earns."""
        self.tokens = min(self.max_tokens, self.tokens + 0.1)

    def on_give_up(self, attempt: int, error: Exception, reason: GiveUpReason) -> None:
        """Take a token for the last attempt too."""
        if reason == "attempts exhausted":  # before any other reason, `take` was asked
            self.take()


RULES = {
    "time earns tokens": TimeEarnsTokens,
    "gRPC's rule": GrpcThrottling,
    "successes give back": Rule,
}
COLOURS = ("grey", "orange", "blue")


class Service:
    """A service with a queue. It rejects new requests while the queue is too long."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self._free_at = 0.0

    async def send(self) -> str:
        """Send a request and wait for its response. Raises RequestError or TimedOutError."""
        now = time.monotonic()
        self.traffic.requests.append(now)
        if self._free_at - now > LONGEST_QUEUE:
            await asyncio.sleep(0.05)
            raise RequestError
        self._free_at = max(now, self._free_at) + 1 / CAPACITY
        seconds = self._free_at - now + 0.1
        await asyncio.sleep(min(seconds, TIMEOUT))
        if seconds > TIMEOUT:
            raise TimedOutError
        return "Hello!"


class FlakyService(Service):
    """A service that is not overloaded. One request in five fails, at random."""

    async def send(self) -> str:
        """Send a request and wait for its response. Raises RequestError."""
        await asyncio.sleep(0.3)
        if random.random() < 0.2:
            raise RequestError
        return "Hello!"


def with_a_spike(moment: float) -> float:
    """Return how many calls arrive per second, at all processes together."""
    return 600 if SPIKE[0] <= moment < SPIKE[1] else 200


def steady(moment: float) -> float:
    """Return how many calls arrive per second."""
    return 100


async def run(
    service: type[Service],
    rule: type[Rule],
    rate: Callable[[float], float],
    until: float,
    processes: int = 1,
) -> Traffic:
    """Let calls arrive until that moment, each at one of the processes."""
    traffic = Traffic()
    send = service(traffic).send
    budgets = [rule() for _ in range(processes)]
    retriers = [Retrier(budget=budget, on_give_up=budget.on_give_up) for budget in budgets]
    moment, calls = 0.0, []
    while moment < until:
        retrier = random.choice(retriers)  # the same for each rule
        calls.append(traffic.call_at(moment, functools.partial(retrier.call_async, send)))
        moment += random.expovariate(rate(moment))
    await asyncio.gather(*calls)
    return traffic


class Result(NamedTuple):
    """What one rule leads to: the traffic of each fleet, and of a service that fails at random."""

    fleets: list[Traffic]
    flaky: Traffic


def report(seed: int) -> Report:
    results = {
        name: Result(
            [
                simulate(
                    functools.partial(run, Service, rule, with_a_spike, ticks[-1], processes),
                    seed=seed,
                )
                for processes, ticks in FLEETS.values()
            ],
            simulate(functools.partial(run, FlakyService, rule, steady, 30), seed=seed),
        )
        for name, rule in RULES.items()
    }
    return Report(table(results), picture(results))


def table(results: dict[str, Result]) -> str:
    lines = [
        "Fleet: 200 calls per second in all, and 600 per second from second 5 to 10.",
        "",
        f"{'':<22}{'1 process, later':>20}{'1,000 processes, later':>26}{'1 request in 5':>17}",
        f"{'rule':<22}{'succeed':>10}{'requests':>10}{'succeed':>16}{'requests':>10}"
        f"{'fails: succeed':>17}",
    ]
    for name, result in results.items():
        columns = [
            f"{traffic.success_rate(end - LATE, end):.0%}"
            f"{traffic.requests_per_call(end - LATE, end):>10.2f}"
            for traffic, (_, (*_, end)) in zip(result.fleets, FLEETS.values(), strict=True)
        ]
        flaky = f"{result.flaky.success_rate():.1%}"
        lines.append(f"{name:<22}{columns[0]:>20}{columns[1]:>26}{flaky:>17}")
    return "\n".join(lines) + "\n"


def picture(results: dict[str, Result]) -> str:
    panels = [
        Panel(
            title,
            "seconds (shaded: the spike)",
            ticks,
            (0, 500, 1000, 1500),
            [
                Line(name, colour, per_second(results[name].fleets[index].requests, ticks[-1]))
                for name, colour in zip(RULES, COLOURS, strict=True)
            ],
            SPIKE,
        )
        for index, (title, (_, ticks)) in enumerate(FLEETS.items())
    ]
    return draw(
        "Requests per second of one process and of 1,000, with three rules for retries",
        "Two charts, with a spike of calls from second 5 to 10. One process, 40 seconds: after the "
        "spike, each rule leads back to 200 requests per second. 1,000 processes, 80 seconds: "
        "if time earns tokens, the requests stay at three times the calls; with gRPC's rule and "
        "if successes give back, they fall to 200 per second again.",
        panels,
    )


if __name__ == "__main__":
    run_command(lambda: show({"fleet": report}))
