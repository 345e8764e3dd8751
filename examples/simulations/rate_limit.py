"""Simulation: clients reach a server's rate limit. What does pacing save?

The server accepts 600 requests in any 60 seconds. It rejects the others with a 429, whose
Retry-After says when to try again. 50 clients share 1,000 calls: each client makes its next call as
soon as the last one has ended.
"""

from __future__ import annotations

import asyncio
import bisect
import functools
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.simulations.chart import Line, Panel, Point, draw
from examples.simulations.report import Report, show
from examples.simulations.virtual_time import simulate
from examples.support.lesson import run_command
from lib.mock_server.limits import SlidingWindow
from lib.rate_limiter import PACE, RateLimiter
from lib.retry import Retrier, RetryBudget

Send = Callable[[], Awaitable[None]]  # sends one request and waits for its response
Policy = Callable[[Send], Send]  # turns a Send into a call, which may send several requests

CALLS = 1000
CLIENTS = 50
LIMIT = 600  # requests in 60 seconds


class TooManyRequestsError(Exception):
    """A 429, with the seconds until there is room."""

    retryable = True
    status_code = 429

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"429, retry after {retry_after} s")
        self.retry_after = retry_after


class Server:
    """A service that responds after half a second, or at once with a 429."""

    def __init__(self) -> None:
        self.requests = 0
        self.rejections: list[float] = []
        self._window = SlidingWindow(LIMIT)

    async def send(self) -> None:
        """Send a request and wait for its response. Raises TooManyRequestsError."""
        await asyncio.sleep(network_delay())
        self.requests += 1
        wait = self._window.seconds_until_room(time.monotonic(), 1)
        if wait > 0:
            self.rejections.append(time.monotonic())
            await asyncio.sleep(network_delay())
            raise TooManyRequestsError(math.ceil(wait))
        self._window.add(time.monotonic(), 1)
        await asyncio.sleep(0.5 + network_delay())


def network_delay() -> float:
    return random.expovariate(20)


def no_retries(send: Send) -> Send:
    return send


def retries(send: Send) -> Send:
    retrier = Retrier()
    return lambda: retrier.call_async(send)


def retries_without_budget(send: Send) -> Send:
    retrier = Retrier(budget=RetryBudget(math.inf))
    return lambda: retrier.call_async(send)


def paced(requests_per_minute: float, send: Send) -> Send:
    limiter, retrier = RateLimiter(requests_per_minute), Retrier()

    async def paced_send() -> None:
        await limiter.acquire_async()
        await send()

    return lambda: retrier.call_async(paced_send)


POLICIES: dict[str, Policy] = {
    "no retries": no_retries,
    "retries": retries,
    "retries, no budget": retries_without_budget,
    "paced at 600 per minute": functools.partial(paced, LIMIT / PACE),
    "paced at 591 per minute": functools.partial(paced, LIMIT),  # as the limiter does it
}


class Result(NamedTuple):
    """What the server saw, and how the calls ended; all times are seconds."""

    requests: int
    rejections: list[float]  # when the server sent each 429
    successes: list[float]  # when each successful call ended
    longest_call: float
    ended: float


async def run(policy: Policy) -> Result:
    server = Server()
    call = policy(server.send)
    calls_left = iter(range(CALLS))
    successes: list[float] = []
    durations: list[float] = []

    async def client() -> None:
        for _ in calls_left:
            started_at = time.monotonic()
            try:
                await call()
                successes.append(time.monotonic())
            except TooManyRequestsError:
                pass
            durations.append(time.monotonic() - started_at)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    ended = time.monotonic()
    return Result(server.requests, server.rejections, successes, max(durations), ended)


def report(seed: int) -> Report:
    results = {
        name: simulate(functools.partial(run, policy), seed=seed)
        for name, policy in POLICIES.items()
    }
    return Report(table(results), picture(results))


def table(results: dict[str, Result]) -> str:
    lines = [
        "Rate limit: 50 clients make 1,000 calls, the server accepts 600 per minute.",
        "",
        f"{'':<24}{'requests':>8}{'':>6}{'failed':>8}{'longest':>10}{'all calls':>13}",
        f"{'policy':<24}{'sent':>8}{'429s':>6}{'calls':>8}{'call':>10}{'ended after':>13}",
    ]
    for name, result in results.items():
        lines.append(
            f"{name:<24}{result.requests:>8,}{len(result.rejections):>6}"
            f"{CALLS - len(result.successes):>8}"
            f"{result.longest_call:>8.1f} s{result.ended:>11.1f} s"
        )
    return "\n".join(lines) + "\n"


def picture(results: dict[str, Result]) -> str:
    panels = [
        Panel(
            name[0].upper() + name[1:],
            "seconds",
            (0, 30, 60, 90, 120),
            (0, 250, 500, 750, 1000),
            [
                Line("429s", "orange", running_count(result.rejections, result.ended)),
                Line(
                    "calls that have succeeded",
                    "blue",
                    running_count(result.successes, result.ended),
                ),
            ],
        )
        for name, result in results.items()
        if name != "paced at 600 per minute"
    ]
    return draw(
        "A limit of 600 requests per minute, and 1,000 calls",
        "Four charts that count, over 120 seconds, the 429s and the successful calls. No retries: "
        "600 calls succeed and 400 fail within 9 seconds. Retries: nearly the same. Retries "
        "without a budget: 600 succeed in 8 seconds, the others after a minute. Paced: a straight "
        "line to 1,000 calls, and no 429.",
        panels,
    )


def running_count(moments: list[float], ended: float) -> list[Point]:
    """Return, for each second until the end, how many of the moments have passed."""
    seconds = [*range(math.ceil(ended)), ended]
    return [(second, bisect.bisect(moments, second)) for second in seconds]


if __name__ == "__main__":
    run_command(lambda: show({"rate_limit": report}))
