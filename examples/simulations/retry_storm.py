"""Simulation: a short spike of load, and an outage that does not end. What ends it?

A service gets slower with each request that it works on. A spike makes it so slow that
calls time out. Each timeout causes a retry, so there are more requests, and the service gets
even slower. This is a retry storm. It can keep the service down after the spike is over: a
metastable failure (N. Bronson et al., "Metastable Failures in Distributed Systems", 2021).

After simple_collapse_sim in Marc Brooker's github.com/mbrooker/simulator_example.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.simulations.chart import Line, Panel, Point, draw
from examples.simulations.report import Report, show
from examples.simulations.virtual_time import simulate
from examples.support.lesson import run_command
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError
from lib.retry import Retrier, RetryBudget

Send = Callable[[], Awaitable[str]]  # sends one request and returns its response
Policy = Callable[[Send], Send]  # turns a Send into a call, which may send several requests

END = 80  # seconds; after that, no more calls arrive
SPIKE = (20, 25)
TIMEOUT = 3.0
MAX_CALLS = 100  # of one program, in flight at the same time
RUNS = 5


class RequestError(Exception):
    """A request has failed."""

    retryable = True


class TimedOutError(RequestError):
    """The client has given up, but the server is still working on the request."""


class TooManyCallsError(Exception):
    """The bulkhead is full, so nothing was sent. It is not retryable."""


class Call(NamedTuple):
    """One call: when it arrived, when it ended, and how."""

    arrived: float
    ended: float
    succeeded: bool


class Traffic:
    """A record of the requests that were sent, and of the calls, with their times in seconds."""

    def __init__(self) -> None:
        self.requests: list[float] = []
        self.calls: list[Call] = []

    async def call_at(self, moment: float, call: Send) -> None:
        """Make a call at that moment, and record how it ends."""
        await asyncio.sleep(moment)
        try:
            await call()
            succeeded = True
        except (RequestError, CircuitOpenError, TooManyCallsError):
            succeeded = False
        self.calls.append(Call(moment, time.monotonic(), succeeded))

    def success_rate(self, start: float = 0, end: float = END) -> float:
        """Return the share of the calls that arrive between two moments and succeed."""
        ends = [call.succeeded for call in self.calls if start <= call.arrived < end]
        return ends.count(True) / len(ends)

    def requests_per_call(self, start: float = 0, end: float = math.inf) -> float:
        """Return how many requests the server got for each call, between two moments."""
        calls = sum(start <= call.arrived < end for call in self.calls)
        return sum(start <= moment < end for moment in self.requests) / calls


class Server:
    """A service that gets slower with each request in flight."""

    def __init__(self, traffic: Traffic, rng: random.Random) -> None:
        self.traffic = traffic
        self.rng = rng
        self._in_flight = 0

    async def send(self) -> str:
        """Send a request and return its response. Raises TimedOutError after TIMEOUT."""
        self.traffic.requests.append(time.monotonic())
        network_delay = self.rng.expovariate(10)
        seconds = 1 + 0.01 * self._in_flight + network_delay
        self._in_flight += 1
        asyncio.get_running_loop().call_later(seconds, self._finish)
        await asyncio.sleep(min(seconds, TIMEOUT))
        if seconds > TIMEOUT:
            raise TimedOutError
        return "Hello!"

    def _finish(self) -> None:
        self._in_flight -= 1


def no_retries(send: Send) -> Send:
    return send


def retries(send: Send) -> Send:
    retrier = Retrier(max_attempts=3, budget=RetryBudget(math.inf))
    return lambda: retrier.call_async(send)


def retries_and_breaker(send: Send) -> Send:
    retrier = Retrier(max_attempts=3, budget=RetryBudget(math.inf))
    breaker = CircuitBreaker("service", recovery_timeout=5.0)
    return lambda: retrier.call_async(lambda: breaker.call_async(send))


def retries_with_budget(send: Send) -> Send:
    retrier = Retrier(max_attempts=3)
    return lambda: retrier.call_async(send)


def retries_and_bulkhead(send: Send) -> Send:
    retrier = Retrier(max_attempts=3, budget=RetryBudget(math.inf))
    bulkhead = asyncio.Semaphore(MAX_CALLS)

    async def call() -> str:
        if bulkhead.locked():
            raise TooManyCallsError
        async with bulkhead:
            return await retrier.call_async(send)

    return call


POLICIES: dict[str, Policy] = {
    "no retries": no_retries,
    "3 attempts": retries,
    "3 attempts, circuit breaker": retries_and_breaker,
    "3 attempts, retry budget": retries_with_budget,
    "3 attempts, bulkhead": retries_and_bulkhead,
}
DRAWN = list(POLICIES)[:4]


def arrivals(rng: random.Random, until: float) -> list[float]:
    """Return when calls arrive: at random, 40 per second, and 80 per second in the spike."""
    moments, now = [], 0.0
    while now < until:
        moments.append(now)
        now += rng.expovariate(80 if SPIKE[0] <= now < SPIKE[1] else 40)
    return moments


async def run(
    policy: Policy, seed: int, *, server: type[Server] = Server, until: float = END
) -> Traffic:
    """Let calls arrive until that moment, and wait for the last one to end."""
    rng = random.Random(seed)
    moments = arrivals(rng, until)  # the same for each policy
    traffic = Traffic()
    call = policy(server(traffic, rng).send)
    await asyncio.gather(*(traffic.call_at(moment, call) for moment in moments))
    return traffic


def report(seed: int) -> Report:
    runs = {
        name: [
            simulate(functools.partial(run, policy, seed + index), seed=seed + index)
            for index in range(RUNS)
        ]
        for name, policy in POLICIES.items()
    }
    return Report(table(runs), picture({name: runs[name][0] for name in DRAWN}))


def table(runs: dict[str, list[Traffic]]) -> str:
    lines = [
        "Retry storm: 40 calls per second, and 80 per second from second 20 to 25.",
        "",
        f"{'':<28}{'calls that succeed, by arrival':>31}{'requests':>11}{'runs that':>11}",
        f"{'policy':<28}{'0-20 s':>9}{'20-60 s':>11}{'60-80 s':>11}{'per call':>11}{'recover':>11}",
    ]
    for name, traffics in runs.items():
        drawn = traffics[0]
        rates = [drawn.success_rate(0, 20), drawn.success_rate(20, 60), drawn.success_rate(60)]
        recovered = sum(traffic.success_rate(60) > 0.9 for traffic in traffics)
        lines.append(
            f"{name:<28}{rates[0]:>9.0%}{rates[1]:>11.0%}{rates[2]:>11.0%}"
            f"{drawn.requests_per_call():>11.2f}{recovered:>6} of {RUNS}"
        )
    return "\n".join(lines) + "\n"


def picture(traffics: dict[str, Traffic]) -> str:
    x_label = "seconds (shaded: the spike)"
    panels = []
    for name, traffic in traffics.items():
        arrived = [call.arrived for call in traffic.calls]
        succeeded = [call.ended for call in traffic.calls if call.succeeded]
        lines = [
            Line("calls that arrive", "grey", per_second(arrived)),
            Line("requests sent to the server", "orange", per_second(traffic.requests)),
            Line("calls that succeed", "blue", per_second(succeeded)),
        ]
        title = name[0].upper() + name[1:]
        panels.append(Panel(title, x_label, (0, 20, 40, 60, 80), (0, 50, 100, 150), lines, SPIKE))
    return draw(
        "A retry storm: calls and requests per second, before and after a spike",
        "Four charts over 80 seconds, with a spike of calls from second 20 to 25. No retries, "
        "retries with a circuit breaker, and retries with a budget: calls fail for some seconds, "
        "then all succeed again. Three attempts alone: the requests rise to three times the "
        "calls, and no call succeeds any more.",
        panels,
    )


def per_second(moments: list[float], end: int = END) -> list[Point]:
    """Return how many of the moments there are per second, averaged over two seconds each."""
    counts = Counter(int(moment // 2) for moment in moments)
    return [(2 * index + 1, counts[index] / 2) for index in range(end // 2)]


if __name__ == "__main__":
    run_command(lambda: show({"retry_storm": report}))
