"""The rules of exercise 4. To do the exercise you need not read them."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import Any

from examples.exercises.rules import rule
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError
from lib.client import MistralClient
from lib.errors import MistralError
from lib.mock_server import MockServer
from lib.rate_limiter import RateLimiter
from lib.retry import Retrier

NOTHING_SENT = "(nothing is sent)"


class CountingLimiter(RateLimiter):
    """Knows how many slots were taken."""

    slots = 0

    def acquire(self, timeout: float | None = None) -> float:
        """Wait for a slot, and count it."""
        waited = super().acquire(timeout)
        self.slots += 1
        return waited

    def reserve(self) -> float:
        """Book a slot, and count it."""
        self.slots += 1
        return super().reserve()


@dataclass
class Result:
    """One resilient_chat: what came of it, and what each part saw."""

    ended: str  # the answer's text, or the error's name
    trace: list[str]  # what the server answered, request by request
    slots: int
    circuit: str


def chat(their: Any, faults: str, *, threshold: int = 5, circuit_open: bool = False) -> Result:
    """resilient_chat under these faults, with 4 attempts that don't wait."""
    retrier = Retrier(max_attempts=4, base_delay=0)
    breaker = CircuitBreaker("mistral-api", failure_threshold=threshold)
    limiter = CountingLimiter(max_requests_per_minute=60_000)
    if circuit_open:
        open_up(breaker)
    with MockServer(faults) as server, MistralClient("no-key", base_url=server.url) as client:
        messages = [{"role": "user", "content": "Capstone"}]
        try:
            answer = their.resilient_chat(client, retrier, breaker, limiter, messages)
            ended = str(getattr(answer, "content", answer))
        except (MistralError, CircuitOpenError) as error:
            ended = type(error).__name__
        trace = [f"{request.method} chat -> {request.outcome}" for request in server.log]
    return Result(ended, trace, limiter.slots, breaker.state)


def open_up(breaker: CircuitBreaker) -> None:
    def fail() -> None:
        raise ConnectionError

    for _ in range(breaker.failure_threshold):
        with contextlib.suppress(ConnectionError):
            breaker.call(fail)


def unlike(result: Result, ended: str, answers: list[str]) -> str:
    """What differs from the right order's end and trace, with the two traces side by side."""
    right = [f"POST chat -> {answer}" for answer in answers]
    problem = f"{len(result.trace)} requests arrived; it ended with {result.ended}"
    if result.trace != right:
        rows = [("what the server saw", "in the right order"), ("-" * 19, "-" * 18)]
        rows += itertools.zip_longest(
            result.trace or [NOTHING_SENT], right or [NOTHING_SENT], fillvalue=""
        )
        table = [f"{yours:<26}{theirs}".rstrip() for yours, theirs in rows]
        return "\n".join([problem, *table])
    return "" if result.ended == ended else problem


@rule(
    "without faults the answer comes at once",
    called="resilient_chat(...) with the faults ok",
    expected="1 request, the answer 'Capstone response'",
)
def without_faults(their: Any) -> str | None:
    return unlike(chat(their, "ok"), "Capstone response", ["200"])


@rule(
    "a failure is tried again",
    called="resilient_chat(...) with the faults 503,503,ok",
    expected="3 requests, the answer of the third",
)
def failures_are_retried(their: Any) -> str | None:
    return unlike(chat(their, "503,503"), "Capstone response", ["503", "503", "200"])


@rule(
    "each attempt is paced",
    called="the same faults, 503,503,ok",
    expected="3 slots of the limiter taken, one for each of the 3 requests",
)
def each_attempt_is_paced(their: Any) -> str | None:
    result = chat(their, "503,503")
    if result.slots == len(result.trace) == 3:
        return None
    return f"{result.slots} slots taken, {len(result.trace)} requests arrived"


@rule(
    "the breaker sees each attempt: when it opens, the retries end",
    called="resilient_chat(...) with the faults 503*, 4 attempts, and a breaker that opens after "
    "2 failures",
    expected="2 requests; it ends with CircuitOpenError, and the circuit is open",
)
def circuit_ends_the_retries(their: Any) -> str | None:
    result = chat(their, "503*", threshold=2)
    if problem := unlike(result, "CircuitOpenError", ["503", "503"]):
        return problem
    return None if result.circuit == "open" else f"the circuit is {result.circuit}"


@rule(
    "an open circuit sends nothing and uses up no slot",
    called="resilient_chat(...) while the circuit is open",
    expected="CircuitOpenError; no request, no slot of the limiter taken",
)
def open_circuit_costs_nothing(their: Any) -> str | None:
    result = chat(their, "ok*", circuit_open=True)
    if problem := unlike(result, "CircuitOpenError", []):
        return problem
    return f"no request, but {result.slots} slot taken" if result.slots else None


@rule(
    "a bad request is sent once, and isn't held against the service",
    called="resilient_chat(...) with the faults 400*, and a breaker that opens after 1 failure",
    expected="1 request; it ends with BadRequestError, and the circuit is closed",
)
def bad_request_is_sent_once(their: Any) -> str | None:
    result = chat(their, "400*", threshold=1)
    if problem := unlike(result, "BadRequestError", ["400"]):
        return problem
    return None if result.circuit == "closed" else f"the circuit is {result.circuit}"
