"""The rules of exercise 4. You need not read them to do the exercise."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from examples.exercises.checker.rules import (
    advance_clock,
    missing,
    rule,
    run_in_threads,
    set_wall_clock_back,
    stretch,
)
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError
from lib.client import ChatCompletion, MistralClient
from lib.errors import APITimeoutError, InternalServerError, MistralError
from lib.mock_server import MockServer
from lib.rate_limiter import RateLimiter, RateLimitTimeoutError
from lib.retry import Retrier

NOTHING_SENT = "(nothing is sent)"
OPENED = "CircuitOpenError or InternalServerError"  # the rejection, or what made the circuit open
MESSAGES = [{"role": "user", "content": "Capstone"}]


class Limiter(RateLimiter):
    """A rate limiter whose next slot is free after ``wait`` seconds; it counts the slots taken."""

    def __init__(self, wait: float = 0.0) -> None:
        super().__init__()
        self.slots = 0
        self._wait = wait

    def acquire(self, timeout: float | None = None, **options: Any) -> float:
        """Take a slot, unless the timeout is too short."""
        if timeout is not None and timeout < self._wait:
            raise RateLimitTimeoutError(f"no slot is free within {timeout:g} s")
        self.slots += 1
        return self._wait


class Client(MistralClient):
    """A client that records how many slots were taken before each of its requests."""

    def __init__(self, url: str, limiter: Limiter) -> None:
        super().__init__("no-key", base_url=url)
        self.slots: list[int] = []
        self._limiter = limiter

    def chat(self, *args: Any, **kwargs: Any) -> ChatCompletion:
        """Return the completion."""
        self.slots.append(self._limiter.slots)
        return super().chat(*args, **kwargs)


@dataclass
class Result:
    """How one call of resilient_chat ended, and what each part saw."""

    returned: object
    ended_with: str  # the response's text, or the error's name
    trace: list[str]  # the server's response to each request
    retries: int  # that the retrier made
    slots: int
    slots_before_requests: list[int]
    circuit: str


def chat(
    solution: Any, faults: str, *, threshold: int = 5, circuit_open: bool = False, wait: float = 0.0
) -> Result:
    """Call resilient_chat under these faults, with 4 attempts that don't wait."""
    retries: list[int] = []
    retrier = Retrier(4, base_delay=0, on_wait=lambda attempt, *rest: retries.append(attempt))
    breaker = CircuitBreaker("mistral-api", failure_threshold=threshold)
    limiter = Limiter(wait)
    if circuit_open:
        open_circuit(breaker)
    returned = None
    with MockServer(faults) as server, closing(Client(server.url, limiter)) as client:
        try:
            returned = solution.resilient_chat(client, retrier, breaker, limiter, MESSAGES)
            ended_with = str(getattr(returned, "content", returned))
        except (MistralError, CircuitOpenError, RateLimitTimeoutError) as error:
            ended_with = type(error).__name__
        trace = [f"{request.method} chat -> {request.outcome}" for request in server.log]
    return Result(
        returned, ended_with, trace, len(retries), limiter.slots, client.slots, breaker.state
    )


def open_circuit(breaker: CircuitBreaker) -> None:
    def fail() -> None:
        raise ConnectionError

    while breaker.state == "closed":
        with contextlib.suppress(ConnectionError):
            breaker.call(fail)


def differs(result: Result, ended_with: str, responses: list[str]) -> str:
    """Return "" if it ended so, after these responses; else both traces side by side.

    ``ended_with`` is a text, an error's name, or the names of several errors with "or" between.
    """
    right = [f"POST chat -> {response}" for response in responses]
    problem = f"requests: {len(result.trace)}; it ended with {result.ended_with}"
    if result.trace != right:
        rows = [("what the server saw", "expected"), ("-" * 19, "-" * 18)]
        rows += itertools.zip_longest(
            result.trace or [NOTHING_SENT], right or [NOTHING_SENT], fillvalue=""
        )
        table = [f"{seen:<26}{expected}".rstrip() for seen, expected in rows]
        return "\n".join([problem, *table])
    return "" if result.ended_with in ended_with.split(" or ") else problem


class StubClient:
    """A client without a server: ``respond()`` may take its time, or raise an error."""

    def __init__(self, respond: Callable[[], object]) -> None:
        self.requests = 0
        self._respond = respond

    def chat(self, *args: Any, **kwargs: Any) -> str:
        """Return the completion's text."""
        self.requests += 1
        self._respond()
        return "Hello!"


def chat_with_stub(solution: Any, client: StubClient) -> object:
    """Call resilient_chat with new helpers, and 2 attempts that don't wait."""
    breaker = CircuitBreaker("mistral-api", failure_threshold=100)
    return solution.resilient_chat(client, Retrier(2, base_delay=0), breaker, Limiter(), MESSAGES)


@rule(
    "without faults, one request is sent, and its completion is returned",
    called="resilient_chat(...) with the faults ok",
    expected="1 request; a ChatCompletion whose content is 'Capstone response'",
)
def without_faults(solution: Any) -> str | None:
    result = chat(solution, "ok")
    if problem := differs(result, "Capstone response", ["200"]):
        return problem
    is_right = isinstance(result.returned, ChatCompletion)
    return None if is_right else f"1 request; it returned {result.returned!r}"


@rule(
    "a failed request is retried",
    called="resilient_chat(...) with the faults 503,503,ok",
    expected="3 requests, the response to the third",
    needs=(without_faults,),
)
def failures_are_retried(solution: Any) -> str | None:
    return differs(chat(solution, "503,503"), "Capstone response", ["503", "503", "200"])


@rule(
    "the retrier makes the attempts: as many as it allows, and no more",
    called="resilient_chat(...) with the faults 503*, 4 attempts, and a breaker that opens after "
    "100 failures",
    expected="4 requests, 3 of them retries of the retrier; it ends with InternalServerError",
    needs=(failures_are_retried,),
)
def attempts_are_limited(solution: Any) -> str | None:
    result = chat(solution, "503*", threshold=100)
    if problem := differs(result, "InternalServerError", ["503"] * 4):
        return problem
    return None if result.retries == 3 else f"4 requests; retries of the retrier: {result.retries}"


@rule(
    "each attempt is paced",
    called="resilient_chat(...) with the faults 503,503,ok",
    expected="3 slots of the limiter are taken, one before each of the 3 requests",
    needs=(failures_are_retried,),
)
def each_attempt_is_paced(solution: Any) -> str | None:
    result = chat(solution, "503,503")
    if result.slots == len(result.trace) == 3:
        before = result.slots_before_requests
        return None if before == [1, 2, 3] else f"slots taken before the requests: {before}"
    return f"slots taken: {result.slots}; requests: {len(result.trace)}"


@rule(
    "an attempt waits for its slot",
    called="resilient_chat(...), and the limiter's next slot is free in 90 seconds",
    expected="it waits, and sends 1 request",
    needs=(without_faults,),
)
def waits_for_a_slot(solution: Any) -> str | None:
    return differs(chat(solution, "ok", wait=90), "Capstone response", ["200"])


@rule(
    "the breaker sees each attempt: when it opens, the retries end",
    called="resilient_chat(...) with the faults 503*, 4 attempts, and a breaker that opens after "
    "2 failures",
    expected="2 requests; it ends with CircuitOpenError or InternalServerError, and the circuit is "
    "open",
    needs=(failures_are_retried,),
)
def circuit_ends_the_retries(solution: Any) -> str | None:
    result = chat(solution, "503*", threshold=2)
    if problem := differs(result, OPENED, ["503", "503"]):
        return problem
    return None if result.circuit == "open" else f"the circuit is {result.circuit}"


@rule(
    "an open circuit sends nothing and uses up no slot",
    called="resilient_chat(...) while the circuit is open",
    expected="CircuitOpenError; no request, no slot of the limiter taken",
    needs=(without_faults,),
)
def open_circuit_costs_nothing(solution: Any) -> str | None:
    result = chat(solution, "ok*", circuit_open=True)
    if problem := differs(result, "CircuitOpenError", []):
        return problem
    return f"no request, but slots taken: {result.slots}" if result.slots else None


@rule(
    "a bad request is sent once, and does not count as a failure of the service",
    called="resilient_chat(...) with the faults 400*, and a breaker that opens after 1 failure",
    expected="1 request; it ends with BadRequestError, and the circuit is closed",
    needs=(attempts_are_limited,),
)
def bad_request_is_sent_once(solution: Any) -> str | None:
    result = chat(solution, "400*", threshold=1)
    if problem := differs(result, "BadRequestError", ["400"]):
        return problem
    return None if result.circuit == "closed" else f"the circuit is {result.circuit}"


@rule(
    "while the circuit is half-open, only the probe takes a slot",
    called="resilient_chat(...) while another thread's probe is under way",
    expected="CircuitOpenError; no request, no slot of the limiter taken",
    needs=(open_circuit_costs_nothing,),
)
def half_open_circuit_costs_nothing(solution: Any) -> str | None:
    breaker = CircuitBreaker("mistral-api", failure_threshold=1, recovery_timeout=0)
    open_circuit(breaker)
    limiter, client = Limiter(), StubClient(lambda: None)
    call = partial(solution.resilient_chat, client, Retrier(1), breaker, limiter, MESSAGES)
    with probe_under_way(breaker):
        problem = missing(CircuitOpenError, call)
    if problem or client.requests or limiter.slots:
        return problem or f"requests: {client.requests}; slots taken: {limiter.slots}"
    return None


@contextlib.contextmanager
def probe_under_way(breaker: CircuitBreaker) -> Iterator[None]:
    started, ended = threading.Event(), threading.Event()

    def probe() -> None:
        started.set()
        ended.wait()

    thread = threading.Thread(target=breaker.call, args=(probe,))
    thread.start()
    started.wait(timeout=5)
    try:
        yield
    finally:
        ended.set()
        thread.join()


@rule(
    "two calls run at the same time",
    called="2 threads call resilient_chat(...); each request waits up to 1 s for the other one",
    expected="both requests are under way at the same time",
    needs=(without_faults,),
)
def calls_overlap(solution: Any) -> str | None:
    virtual = solution.__modules__["threading"]
    barrier, met = virtual.Barrier(2), []

    def respond() -> None:
        with contextlib.suppress(virtual.BrokenBarrierError):
            barrier.wait(timeout=1.0)
            met.append(True)

    call = partial(chat_with_stub, solution, StubClient(respond))
    run_in_threads(solution, call, call)
    return None if met else "the second request was sent after the first call had ended"


@rule(
    "a call that fails leaves nothing behind",
    called="resilient_chat(...) 200 times, which fail; then one that works",
    expected="200 errors, then a completion",
    needs=(failures_are_retried,),
)
def failures_leave_nothing(solution: Any) -> str | None:
    client = StubClient(fail_with(InternalServerError(503, "down")))
    for number in range(200):
        if problem := missing(InternalServerError, partial(chat_with_stub, solution, client)):
            return f"{problem}, after {number} calls that failed"
    result = chat_with_stub(solution, StubClient(lambda: None))
    return None if result == "Hello!" else f"after 200 calls that failed, {result!r}"


@rule(
    "an error that is not the API's ends the call at once",
    called="resilient_chat(...); the request raises KeyboardInterrupt, then TypeError",
    expected="the same error, after 1 request",
    needs=(
        failures_leave_nothing,
        bad_request_is_sent_once,
    ),
)
def other_errors_end_the_call(solution: Any) -> str | None:
    for error in (KeyboardInterrupt(), TypeError("a mistake in the program")):
        client = StubClient(fail_with(error))
        problem = missing(type(error), partial(chat_with_stub, solution, client))
        if problem or client.requests != 1:
            return problem or f"{type(error).__name__} after {client.requests} requests"
    return None


def fail_with(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


class SlowClient:
    """A client whose requests fail after 2 seconds of virtual time; it records their timeouts."""

    def __init__(self, solution: Any, *, seconds: float = 2.0) -> None:
        self.total_timeouts: list[float] = []
        self._solution = solution
        self._seconds = seconds
        self._total_timeout = math.inf

    def with_options(self, *, total_timeout: float = math.inf, **options: Any) -> SlowClient:
        """Return a client with this timeout, which records in the same list."""
        client = copy.copy(self)
        client._total_timeout = total_timeout
        return client

    def chat(self, *args: Any, **kwargs: Any) -> None:
        """Send a request that fails."""
        self.total_timeouts.append(self._total_timeout)
        advance_clock(self._solution, min(self._seconds, self._total_timeout))
        set_wall_clock_back(self._solution, 60)
        if self._total_timeout < self._seconds:
            raise APITimeoutError("no response in time")
        raise InternalServerError(503, "down")


def chat_within(
    solution: Any, client: Any, limiter: Limiter, breaker: CircuitBreaker, seconds: float = 5.0
) -> object:
    """Call chat_within with 4 attempts that don't wait."""
    retrier = Retrier(4, base_delay=0)
    return solution.chat_within(seconds, client, retrier, breaker, limiter, MESSAGES)


def new_breaker(threshold: int = 100) -> CircuitBreaker:
    return CircuitBreaker("mistral-api", failure_threshold=threshold)


@stretch(
    "chat_within does what resilient_chat does, if there is time enough",
    called="chat_within(5.0, ...) with the faults 503,503,ok; then with the faults 503* and a "
    "breaker that opens after 2 failures",
    expected="'Capstone response' after 3 requests, then an error after 2 requests",
    needs=(circuit_ends_the_retries, each_attempt_is_paced),
)
def does_the_same(solution: Any) -> str | None:
    for faults, threshold, ended_with, responses in [
        ("503,503", 5, "Capstone response", ["503", "503", "200"]),
        ("503*", 2, OPENED, ["503", "503"]),
    ]:
        within = WithinFiveSeconds(solution)
        if problem := differs(chat(within, faults, threshold=threshold), ended_with, responses):
            return problem
    return None


class WithinFiveSeconds:
    """A solution whose resilient_chat is chat_within."""

    def __init__(self, solution: Any) -> None:
        self.resilient_chat = partial(solution.chat_within, 5.0)


@stretch(
    "each attempt may take the time that is left, and no more",
    called="chat_within(5.0, ...), then chat_within(3.0, ...); each request fails after 2 seconds, "
    "and time.time() is set back by a minute meanwhile",
    expected="requests with a total_timeout of 5, 3 and 1 seconds, then of 3 and 1 seconds",
    needs=(does_the_same,),
)
def attempts_get_what_is_left(solution: Any) -> str | None:
    for expected in ([5.0, 3.0, 1.0], [3.0, 1.0]):
        client = SlowClient(solution)
        with contextlib.suppress(MistralError, TimeoutError):
            chat_within(solution, client, Limiter(), new_breaker(), seconds=expected[0])
        found = [round(timeout, 2) for timeout in client.total_timeouts]
        if found != expected:
            return f"chat_within({expected[0]}, ...): a total_timeout of {found}"
    return None


@stretch(
    "the wait for a slot counts, too",
    called="chat_within(5.0, ...), and the limiter's next slot is free in 90 seconds",
    expected="a TimeoutError, and no request",
    needs=(does_the_same,),
)
def slot_in_time(solution: Any) -> str | None:
    client = SlowClient(solution)
    call = partial(chat_within, solution, client, Limiter(90), new_breaker())
    problem = missing(TimeoutError, call)
    return problem or (f"requests: {len(client.total_timeouts)}" if client.total_timeouts else None)


@stretch(
    "a lack of time is not a failure of the service",
    called="chat_within(5.0, ...); each request fails after 2 seconds; a breaker that opens after "
    "4 failures",
    expected="the circuit is closed: 3 requests failed, and the fourth attempt was not made",
    needs=(attempts_get_what_is_left,),
)
def lack_of_time_is_no_failure(solution: Any) -> str | None:
    breaker = new_breaker(threshold=4)
    with contextlib.suppress(MistralError, TimeoutError):
        chat_within(solution, SlowClient(solution), Limiter(), breaker)
    return None if breaker.state == "closed" else f"the circuit is {breaker.state}"
