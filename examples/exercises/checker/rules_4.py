"""The rules of exercise 4. You need not read them to do the exercise."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import Any

from examples.exercises.checker.rules import rule
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError
from lib.client import MistralClient
from lib.errors import MistralError
from lib.mock_server import MockServer
from lib.rate_limiter import RateLimiter
from lib.retry import Retrier

NOTHING_SENT = "(nothing is sent)"


class CountingLimiter(RateLimiter):
    """A rate limiter that counts the slots taken."""

    slots = 0

    def acquire(self, timeout: float | None = None) -> float:
        """Wait for a slot and count it."""
        waited = super().acquire(timeout)
        self.slots += 1
        return waited

    def reserve(self) -> float:
        """Book a slot and count it."""
        self.slots += 1
        return super().reserve()


@dataclass
class Result:
    """How one call of resilient_chat ended, and what each part saw."""

    ended_with: str  # the response's text, or the error's name
    trace: list[str]  # the server's response to each request
    slots: int
    circuit: str


def chat(solution: Any, faults: str, *, threshold: int = 5, circuit_open: bool = False) -> Result:
    """Call resilient_chat under these faults, with 4 attempts that don't wait."""
    retrier = Retrier(max_attempts=4, base_delay=0)
    breaker = CircuitBreaker("mistral-api", failure_threshold=threshold)
    limiter = CountingLimiter(max_requests_per_minute=60_000)
    if circuit_open:
        open_circuit(breaker)
    with MockServer(faults) as server, MistralClient("no-key", base_url=server.url) as client:
        messages = [{"role": "user", "content": "Capstone"}]
        try:
            response = solution.resilient_chat(client, retrier, breaker, limiter, messages)
            ended_with = str(getattr(response, "content", response))
        except (MistralError, CircuitOpenError) as error:
            ended_with = type(error).__name__
        trace = [f"{request.method} chat -> {request.outcome}" for request in server.log]
    return Result(ended_with, trace, limiter.slots, breaker.state)


def open_circuit(breaker: CircuitBreaker) -> None:
    def fail() -> None:
        raise ConnectionError

    for _ in range(breaker.failure_threshold):
        with contextlib.suppress(ConnectionError):
            breaker.call(fail)


def differs(result: Result, ended_with: str, responses: list[str]) -> str:
    """Return "" if it ended so, after these responses; else both traces side by side."""
    right = [f"POST chat -> {response}" for response in responses]
    problem = f"requests: {len(result.trace)}; it ended with {result.ended_with}"
    if result.trace != right:
        rows = [("what the server saw", "expected"), ("-" * 19, "-" * 18)]
        rows += itertools.zip_longest(
            result.trace or [NOTHING_SENT], right or [NOTHING_SENT], fillvalue=""
        )
        table = [f"{seen:<26}{expected}".rstrip() for seen, expected in rows]
        return "\n".join([problem, *table])
    return "" if result.ended_with == ended_with else problem


@rule(
    "without faults, one request is sent",
    called="resilient_chat(...) with the faults ok",
    expected="1 request, the response 'Capstone response'",
)
def without_faults(solution: Any) -> str | None:
    return differs(chat(solution, "ok"), "Capstone response", ["200"])


@rule(
    "a failed request is retried",
    called="resilient_chat(...) with the faults 503,503,ok",
    expected="3 requests, the response to the third",
    needs=(without_faults,),
)
def failures_are_retried(solution: Any) -> str | None:
    return differs(chat(solution, "503,503"), "Capstone response", ["503", "503", "200"])


@rule(
    "there are as many attempts as the retrier allows, and no more",
    called="resilient_chat(...) with the faults 503*, 4 attempts, and a breaker that opens after "
    "100 failures",
    expected="4 requests; it ends with InternalServerError",
    needs=(failures_are_retried,),
)
def attempts_are_limited(solution: Any) -> str | None:
    result = chat(solution, "503*", threshold=100)
    return differs(result, "InternalServerError", ["503"] * 4)


@rule(
    "each attempt is paced",
    called="resilient_chat(...) with the faults 503,503,ok",
    expected="3 slots of the limiter are taken, one for each of the 3 requests",
    needs=(failures_are_retried,),
)
def each_attempt_is_paced(solution: Any) -> str | None:
    result = chat(solution, "503,503")
    if result.slots == len(result.trace) == 3:
        return None
    return f"slots taken: {result.slots}; requests: {len(result.trace)}"


@rule(
    "the breaker sees each attempt: when it opens, the retries end",
    called="resilient_chat(...) with the faults 503*, 4 attempts, and a breaker that opens after "
    "2 failures",
    expected="2 requests; it ends with CircuitOpenError, and the circuit is open",
    needs=(failures_are_retried,),
)
def circuit_ends_the_retries(solution: Any) -> str | None:
    result = chat(solution, "503*", threshold=2)
    if problem := differs(result, "CircuitOpenError", ["503", "503"]):
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
    needs=(without_faults,),
)
def bad_request_is_sent_once(solution: Any) -> str | None:
    result = chat(solution, "400*", threshold=1)
    if problem := differs(result, "BadRequestError", ["400"]):
        return problem
    return None if result.circuit == "closed" else f"the circuit is {result.circuit}"
