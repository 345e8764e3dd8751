"""The rules of exercise 5. You need not read them to do the exercise."""

from __future__ import annotations

import asyncio
import random
import runpy
import time
from bisect import bisect
from typing import Any

from examples.exercises.checker.rules import rule
from examples.simulations.retry_storm import END, RequestError, Server, Traffic, run
from examples.simulations.virtual_time import simulate
from lib.circuit_breaker import CircuitOpenError

SEED = 2  # with this seed, three attempts per call keep the storm going
PATIENCE = 100  # seconds of virtual time that we wait for the last call


class UnavailableError(RequestError):
    """A 503."""

    status_code = 503


class UnauthorizedError(RequestError):
    """A 401."""

    retryable = False
    status_code = 401


class FailingServer(Server):
    """A service that responds after 0.1 seconds, or fails with a 503."""

    async def send(self) -> str:
        """Send a request. Raises UnavailableError."""
        self.traffic.requests.append(time.monotonic())
        await asyncio.sleep(0.1)
        if self.fails():
            raise UnavailableError
        return "Hello!"

    def fails(self) -> bool:
        """Return True if the service is down."""
        return True


class FlakyServer(FailingServer):
    """One request in twenty fails."""

    def fails(self) -> bool:
        """Return True in 5 % of the cases."""
        return self.rng.random() < 0.05


class RestartingServer(FailingServer):
    """A service that is down for the first half second."""

    def fails(self) -> bool:
        """Return True for the first half second."""
        return time.monotonic() < 0.5


class CallsNeverEndError(RuntimeError):
    """Some calls have not ended long after the last one arrived."""


def client_class(solution: Any) -> Any:
    """Return the learner's Client, from a module that sees the simulation's time."""
    return runpy.run_path(solution.__file__)[solution.Client.__name__]


def simulate_calls(solution: Any, server: type[Server], until: float) -> Traffic:
    """Let calls arrive until that second, all of them through one Client."""
    client = client_class(solution)

    async def main() -> Traffic:
        calls = run(lambda send: client(send).call, SEED, server=server, until=until)
        try:
            return await asyncio.wait_for(calls, until + PATIENCE)
        except asyncio.TimeoutError:
            message = (
                f"some calls had not ended {PATIENCE} simulated seconds after the last arrival"
            )
            raise CallsNeverEndError(message) from None

    return simulate(main, seed=SEED)


def one_call(solution: Any, *errors: RequestError) -> tuple[str, int]:
    """Return the response or the name of the error, and the number of requests."""
    client = client_class(solution)
    requests = 0

    async def send() -> str:
        nonlocal requests
        requests += 1
        if requests <= len(errors):
            raise errors[requests - 1]
        return "Hello!"

    async def main() -> str:
        try:
            return str(await client(send).call())
        except (RequestError, CircuitOpenError) as error:
            return type(error).__name__

    return simulate(main, seed=SEED), requests


@rule(
    "a call that succeeds is one request",
    called="Client(send).call(), where send() returns 'Hello!'",
    expected="'Hello!' after 1 request",
)
def success_is_one_request(solution: Any) -> str | None:
    result, requests = one_call(solution)
    return None if (result, requests) == ("Hello!", 1) else f"{result!r} after {requests} requests"


@rule(
    "an error that is not transient is raised at once",
    called="Client(send).call(), where send() raises an UnauthorizedError with retryable = False",
    expected="UnauthorizedError after 1 request",
)
def permanent_error_is_raised(solution: Any) -> str | None:
    result, requests = one_call(solution, UnauthorizedError())
    expected = ("UnauthorizedError", 1)
    return None if (result, requests) == expected else f"{result} after {requests} requests"


@rule(
    "transient failures are retried",
    called="40 calls per second for 20 seconds; 5 % of the requests fail with retryable = True",
    expected="at least 99 % of the calls succeed",
)
def transient_failures_are_retried(solution: Any) -> str | None:
    rate = simulate_calls(solution, FlakyServer, until=20).success_rate()
    return None if rate >= 0.99 else f"{rate:.1%} of the calls succeeded"


@rule(
    "a call sends at most three requests",
    called="Client(send).call(), where send() fails 20 times with retryable = True",
    expected="UnavailableError (or CircuitOpenError) after at most 3 requests",
)
def at_most_three_requests(solution: Any) -> str | None:
    result, requests = one_call(solution, *[UnavailableError()] * 20)
    if result in ("UnavailableError", "CircuitOpenError") and requests <= 3:
        return None
    return f"{result} after {requests} requests"


@rule(
    "a service that is down gets its normal load and a little more",
    called="40 calls per second for 20 seconds; every request fails with retryable = True",
    expected="at most 1.2 requests per call",
)
def load_on_a_service_that_is_down(solution: Any) -> str | None:
    load = simulate_calls(solution, FailingServer, until=20).requests_per_call()
    return None if load <= 1.2 else f"{load:.2f} requests per call"


@rule(
    "calls that fail together are not retried at the same moment",
    called="100 calls at the same moment, which all fail; half a second later the service is back",
    expected="at most half of the retries arrive within the same 10 ms",
)
def retries_are_spread(solution: Any) -> str | None:
    client, traffic = client_class(solution), Traffic()

    async def main() -> None:
        call = client(RestartingServer(traffic, random.Random(SEED)).send).call
        await asyncio.gather(*(traffic.call_at(0, call) for _ in range(100)))

    simulate(main, seed=SEED)
    retries = traffic.requests[100:]
    together = max(
        (bisect(retries, moment + 0.01) - index for index, moment in enumerate(retries)), default=0
    )
    if together <= max(1, len(retries) // 2):
        return None
    return f"{together} of {len(retries)} retries arrived within 10 ms"


@rule(
    "most calls succeed, in spite of the spike",
    called="the simulated storm: 40 calls per second for 80 seconds, 80 per second for 5 of them",
    expected="at least 85 % of all calls succeed",
)
def goodput(solution: Any) -> str | None:
    rate = simulate_calls(solution, Server, until=END).success_rate()
    return None if rate >= 0.85 else f"{rate:.0%} of all calls succeeded"


@rule(
    "when the spike is over, the outage is over",
    called="the same storm, whose spike ends at 25 s",
    expected="at least 95 % of the calls that arrive from 60 s on succeed",
)
def recovery(solution: Any) -> str | None:
    rate = simulate_calls(solution, Server, until=END).success_rate(60)
    return None if rate >= 0.95 else f"{rate:.0%} of the calls from 60 s on succeeded"
