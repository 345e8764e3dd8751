"""The rules of exercise 5. You need not read them to do the exercise."""

from __future__ import annotations

import asyncio
import functools
import math
import random
import time
from bisect import bisect
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from examples.exercises.checker.load import load
from examples.exercises.checker.rules import at_most, rule, stretch
from examples.exercises.checker.scheduler import EPOCH
from examples.exercises.checker.virtual_modules import virtual_time
from examples.simulations.retry_storm import END, RequestError, Server, Traffic, run
from examples.simulations.virtual_time import simulate

SEED = 2  # with this seed, three attempts per call keep the storm going
PATIENCE = 100  # seconds of virtual time that we wait for the last call
Errors = Sequence[Exception]
T = TypeVar("T")


class BlockingSleepError(BaseException):
    """A time.sleep in async code."""


def no_sleep(_: object, seconds: float) -> NoReturn:
    raise BlockingSleepError(
        f"time.sleep({seconds:g}) stops every call of the program: await asyncio.sleep"
    )


def time_of_day_at_zero() -> float:
    """Return the time of day at which the simulation starts; 25 s later, it is set back."""
    return EPOCH if time.monotonic() < 25 else EPOCH - 3600


SIMULATED_TIME = virtual_time(lambda: time.monotonic(), no_sleep, time_of_day_at_zero)


class UnavailableError(RequestError):
    """A 503."""

    status_code = 503


class UnauthorizedError(RequestError):
    """A 401."""

    retryable = False
    status_code = 401


class ContentError(RequestError):
    """A 422."""

    retryable = False
    status_code = 422


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


class RecoveringServer(FlakyServer):
    """A service that is down for the first 20 seconds; then, one request in twenty fails."""

    def fails(self) -> bool:
        """Return True for the first 20 seconds."""
        return time.monotonic() < 20 or super().fails()


class RestartingServer(FailingServer):
    """A service that is down for the first half second."""

    def fails(self) -> bool:
        """Return True for the first half second."""
        return time.monotonic() < 0.5


class CallsNeverEndError(RuntimeError):
    """Some calls have not ended long after the last one arrived."""


def simulated(solution: Any, main: Callable[[Any], Coroutine[Any, Any, T]], seed: int = SEED) -> T:
    """Load the learner's file in a simulation, and run ``main(module)`` there."""

    async def load_and_run() -> T:
        return await main(load(Path(solution.__file__), {"time": SIMULATED_TIME}, set()))

    return simulate(load_and_run, seed=seed)


async def arriving_calls(client: Any, server: type[Server], until: float) -> Traffic:
    """Let calls arrive until that second, all of them through one Client."""
    calls = asyncio.ensure_future(
        run(lambda send: client(send).call, SEED, server=server, until=until)
    )
    await asyncio.wait([calls], timeout=until + PATIENCE)
    if not calls.done():
        raise CallsNeverEndError(
            f"a call never ends: it runs {PATIENCE} simulated seconds after the last arrival"
        )
    return calls.result()


def simulate_calls(solution: Any, server: type[Server], until: float) -> Traffic:
    """Simulate arriving_calls."""
    return simulated(solution, lambda module: arriving_calls(module.Client, server, until))


@functools.lru_cache(maxsize=1)
def spike_of(solution: Any) -> Traffic:
    """Simulate the spike of load, once for the rules that look at it."""
    return simulate_calls(solution, Server, until=END)


class FailsAtFirst:
    """A ``send`` that raises these errors, and then responds; it records when it was called."""

    def __init__(self, errors: Errors = ()) -> None:
        self.requests: list[float] = []
        self._errors = list(errors)

    async def __call__(self) -> str:
        """Send a request."""
        self.requests.append(time.monotonic())
        if self._errors:
            raise self._errors.pop(0)
        return "Hello!"


async def results_of(client: Any, calls: int = 1) -> list[str]:
    """Let calls begin together; return the response or the error's name of each."""

    async def result() -> str:
        try:
            return str(await client.call())
        except Exception as error:
            return type(error).__name__

    return list(await asyncio.gather(*(result() for _ in range(calls))))


def one_call(solution: Any, *errors: Exception) -> tuple[str, int]:
    """Return the response or the name of the error, and the number of requests."""
    send = FailsAtFirst(errors)
    [result] = simulated(solution, lambda module: results_of(module.Client(send)))
    return result, len(send.requests)


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
    called="Client(send).call(), where send() raises an UnauthorizedError and a ContentError with "
    "retryable = False, and a ValueError, which has no such attribute",
    expected="each error after 1 request",
)
def permanent_error_is_raised(solution: Any) -> str | None:
    for error in (UnauthorizedError(), ContentError(), ValueError("a mistake in the program")):
        result, requests = one_call(solution, error)
        if (result, requests) != (type(error).__name__, 1):
            return f"{result} after {requests} requests, where {type(error).__name__} is raised"
    return None


@rule(
    "transient failures are retried",
    called="40 calls per second for 20 seconds; 5 % of the requests fail with retryable = True",
    expected="at least 99 % of the calls succeed, after a request each",
    needs=(success_is_one_request,),
)
def transient_failures_are_retried(solution: Any) -> str | None:
    traffic = simulate_calls(solution, FlakyServer, until=20)
    rate, load = traffic.success_rate(), traffic.requests_per_call()
    if rate < 0.99:
        return f"{at_most(rate, 1)} of the calls succeeded"
    return (
        None if load >= 0.99 else f"{len(traffic.requests)} requests for {len(traffic.calls)} calls"
    )


@rule(
    "a call sends at most three requests",
    called="Client(send).call(), where send() fails 20 times with retryable = True",
    expected="UnavailableError (or CircuitOpenError) after at most 3 requests",
    needs=(success_is_one_request,),
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
    needs=(
        transient_failures_are_retried,
        at_most_three_requests,
    ),
)
def load_on_a_service_that_is_down(solution: Any) -> str | None:
    load = simulate_calls(solution, FailingServer, until=20).requests_per_call()
    return None if load <= 1.2 else f"{math.ceil(100 * load) / 100:.2f} requests per call"


@rule(
    "calls that fail together get few retries together",
    called="200 calls at the same moment, which all fail with retryable = True",
    expected="at most 1.2 requests per call, that is 240",
    needs=(load_on_a_service_that_is_down,),
)
def burst_is_limited(solution: Any) -> str | None:
    requests = len(requests_of_a_burst(solution, FailingServer, 200))
    return None if requests <= 240 else f"{requests} requests"


@rule(
    "calls that fail together are not retried at the same moment",
    called="100 calls at the same moment, which all fail; half a second later the service is back",
    expected="at most half of the retries arrive within the same 10 ms",
    needs=(transient_failures_are_retried,),
)
def retries_are_spread(solution: Any) -> str | None:
    retries = requests_of_a_burst(solution, RestartingServer, 100)[100:]
    together = most_within(0.01, retries)
    if together <= max(1, len(retries) // 2):
        return None
    return f"{together} of {len(retries)} retries arrived within 10 ms"


def requests_of_a_burst(solution: Any, server: type[FailingServer], calls: int) -> list[float]:
    """Return when the requests arrive of calls that begin at the same moment."""
    traffic = Traffic()

    async def main(module: Any) -> None:
        call = module.Client(server(traffic, random.Random(SEED)).send).call
        await asyncio.gather(*(traffic.call_at(0, call) for _ in range(calls)))

    simulated(solution, main)
    return traffic.requests


def most_within(seconds: float, moments: list[float]) -> int:
    """Return how many of the moments, which are in order, are within the same interval."""
    ends = [bisect(moments, moment + seconds) - index for index, moment in enumerate(moments)]
    return max(ends, default=0)


@rule(
    "most calls succeed, in spite of the spike",
    called="the simulated storm: 40 calls per second for 80 seconds, 80 per second for 5 of them",
    expected="at least 85 % of all calls succeed",
    needs=(burst_is_limited,),
)
def goodput(solution: Any) -> str | None:
    rate = spike_of(solution).success_rate()
    return None if rate >= 0.85 else f"{at_most(rate)} of all calls succeeded"


@rule(
    "when the spike is over, the outage is over",
    called="the same storm, whose spike ends at 25 s",
    expected="at least 95 % of the calls that arrive from 60 s on succeed",
    needs=(goodput,),
)
def recovery(solution: Any) -> str | None:
    rate = spike_of(solution).success_rate(60)
    return None if rate >= 0.95 else f"{at_most(rate)} of the calls from 60 s on succeeded"


@rule(
    "after an outage, transient failures are retried again",
    called="40 calls per second for 80 seconds; the service is down for the first 20 seconds, then "
    "5 % of the requests fail; at 25 s, time.time() is set back by an hour",
    expected="at least 99 % of the calls that arrive from 60 s on succeed",
    needs=(recovery,),
)
def retries_after_an_outage(solution: Any) -> str | None:
    rate = simulate_calls(solution, RecoveringServer, until=80).success_rate(60)
    return None if rate >= 0.99 else f"{at_most(rate, 1)} of the calls from 60 s on succeeded"


@rule(
    "two clients share nothing",
    called="two Clients in one program, 40 calls per second for 20 seconds each; one service is "
    "down, the other one fails in 5 % of the requests",
    expected="at least 99 % of the calls to the second service succeed",
    needs=(load_on_a_service_that_is_down,),
)
def clients_share_nothing(solution: Any) -> str | None:
    async def main(module: Any) -> Traffic:
        servers = (FailingServer, FlakyServer)
        both = await asyncio.gather(*(arriving_calls(module.Client, each, 20) for each in servers))
        return both[1]

    rate = simulated(solution, main).success_rate()
    return None if rate >= 0.99 else f"{at_most(rate, 1)} of the calls succeeded"


@rule(
    "many programs do not retry at the same moment, either",
    called="200 Clients, of a program each; one call of each, at the same moment, fails once",
    expected="at most 50 of the 200 retries arrive within the same 50 ms, and the same program "
    "waits differently when it runs again",
    needs=(retries_are_spread, clients_share_nothing),
)
def programs_are_spread(solution: Any) -> str | None:
    together = most_within(0.05, sorted(waits_of_programs(solution, 200, SEED)))
    if together > 50:
        return f"{together} retries arrived within 50 ms"
    again = [waits_of_programs(solution, 1, seed)[0] for seed in (SEED, SEED + 1)]
    return None if again[0] != again[1] else f"it waits {again[0]:.3f} s each time it runs"


def waits_of_programs(solution: Any, programs: int, seed: int) -> list[float]:
    """Return how long each program waits before the retry of one call."""
    sends = [FailsAtFirst([UnavailableError()]) for _ in range(programs)]

    async def program(module: Any, number: int, send: FailsAtFirst) -> None:
        await asyncio.sleep(seed + number / 100)  # programs do not start together
        client = module.Client(send)
        await asyncio.sleep(10 - number / 100)
        await client.call()

    async def main(module: Any) -> None:
        await asyncio.gather(*(program(module, *pair) for pair in enumerate(sends)))

    simulated(solution, main, seed)
    return [send.requests[-1] - send.requests[0] for send in sends]


@rule(
    "a call that is cancelled ends at once",
    called="Client(send).call() is cancelled, once during send(), and once during the wait before "
    "a retry",
    expected="asyncio.CancelledError, and no further request",
    needs=(
        transient_failures_are_retried,
        at_most_three_requests,
    ),
)
def cancellation_passes(solution: Any) -> str | None:
    for when, seconds in [("send()", 1.0), ("the wait", 0.0)]:
        send = FailsAfter(seconds)
        if not simulated(solution, partial(was_cancelled, send)):
            return f"it was not cancelled, or sent {len(send.requests)} requests, during {when}"
    return None


class FailsAfter(FailsAtFirst):
    """A ``send`` that fails after some seconds, whenever it is called."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def __call__(self) -> str:
        """Send a request."""
        self.requests.append(time.monotonic())
        await asyncio.sleep(self._seconds)
        raise UnavailableError


async def was_cancelled(send: FailsAtFirst, module: Any) -> bool:
    """Return True if a call ends when it is cancelled, and sends nothing after that."""
    task = asyncio.ensure_future(module.Client(send).call())
    await asyncio.sleep(0.0001)
    task.cancel()
    requests = len(send.requests)
    results: list[object] = await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(PATIENCE)
    return isinstance(results[0], asyncio.CancelledError) and len(send.requests) == requests


class Slow(FailsAtFirst):
    """A ``send`` that does what FailsAtFirst does, and takes a second."""

    async def __call__(self) -> str:
        """Send a request."""
        await asyncio.sleep(1)
        return await super().__call__()


@stretch(
    "a BoundedClient does what a Client does",
    called="BoundedClient(send, max_calls=10), 10 calls at the same moment, of which one fails "
    "once with retryable = True",
    expected="'Hello!' 10 times, after 11 requests",
    needs=(transient_failures_are_retried,),
)
def bounded_does_the_same(solution: Any) -> str | None:
    send = Slow([UnavailableError()])
    results = simulated(solution, lambda module: results_of(module.BoundedClient(send, 10), 10))
    if results == ["Hello!"] * 10 and len(send.requests) == 11:
        return None
    return f"'Hello!' {results.count('Hello!')} times, after {len(send.requests)} requests"


@stretch(
    "a call above the limit is rejected at once, and sends nothing",
    called="BoundedClient(send, max_calls=10), 15 calls at the same moment; send() takes a second",
    expected="5 TooManyCallsErrors at once, then 'Hello!' 10 times, after 10 requests",
    needs=(bounded_does_the_same,),
)
def too_many_are_rejected(solution: Any) -> str | None:
    send = Slow()
    at_once = simulated(solution, partial(results_within_half_a_second, send, 15))
    rejected, requests = at_once.count("TooManyCallsError"), len(send.requests)
    if (rejected, requests) == (5, 10):
        return None
    return f"TooManyCallsErrors at once: {rejected}; requests: {requests}"


async def results_within_half_a_second(send: FailsAtFirst, calls: int, module: Any) -> list[str]:
    """Let calls begin together, of which 10 are allowed; return the results of those that end."""
    client = module.BoundedClient(send, 10)
    tasks = [asyncio.ensure_future(results_of(client)) for _ in range(calls)]
    ended, running = await asyncio.wait(tasks, timeout=0.5)
    at_once = [task.result()[0] for task in ended]
    await asyncio.gather(*running)
    return at_once


@stretch(
    "a call that has ended makes room for the next one",
    called="BoundedClient(send, max_calls=1): a call that succeeds, one that fails, one that is "
    "cancelled, one that is rejected; after each of them, another call",
    expected="'Hello!' for the call after each of them",
    needs=(bounded_does_the_same,),
)
def each_end_makes_room(solution: Any) -> str | None:
    for end in ("succeeded", "failed", "was cancelled", "was rejected"):
        send = Slow([UnauthorizedError()] if end == "failed" else [])
        result = simulated(solution, partial(result_after, end, send))
        if result != "Hello!":
            return f"{result}, after a call that {end}"
    return None


async def result_after(end: str, send: FailsAtFirst, module: Any) -> str:
    """Let one call end so, and return the result of the next one."""
    client = module.BoundedClient(send, 1)
    task = asyncio.ensure_future(client.call())
    if end == "was cancelled":
        await asyncio.sleep(0.5)
        task.cancel()
    if end == "was rejected":
        await asyncio.sleep(0.5)
        await results_of(client)
    await asyncio.gather(task, return_exceptions=True)
    [result] = await results_of(client)
    return result


@stretch(
    "two bounded clients share nothing",
    called="two BoundedClients with max_calls=1, a call of each at the same moment",
    expected="'Hello!' twice",
    needs=(bounded_does_the_same,),
)
def bounded_clients_share_nothing(solution: Any) -> str | None:
    async def main(module: Any) -> list[list[str]]:
        both = (results_of(module.BoundedClient(Slow(), 1)) for _ in range(2))
        return list(await asyncio.gather(*both))

    results = [each[0] for each in simulated(solution, main)]
    return None if results == ["Hello!"] * 2 else " and ".join(results)
