"""Exercise 4, solved: retry( breaker( limiter( call ))).

The breaker is inside the retries and sees each attempt: with a threshold of 2, it opens after 2
requests. CircuitOpenError is not retryable, so the retries end. If the breaker were around the
retries, it would count 4 failed attempts as one failure, and open only after 8 requests.

In the stretch part, the deadline is a point in time, and each layer gets what is left until then.
A timeout per attempt would not do: four attempts of five seconds each take twenty seconds.

`lib/pipeline.py` does the same for production: it also pauses all threads after a 429,
and it logs.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.circuit_breaker import CircuitBreaker
from lib.client import ChatCompletion, MistralClient
from lib.rate_limiter import RateLimiter
from lib.retry import Retrier


def resilient_chat(
    client: MistralClient,
    retrier: Retrier,
    breaker: CircuitBreaker,
    limiter: RateLimiter,
    messages: Sequence[Mapping[str, Any]],
) -> ChatCompletion:
    """Send a chat request through the retrier, the breaker and the limiter.

    Raises the error of the last attempt: a MistralError, or CircuitOpenError if the circuit
    was open and nothing was sent.
    """

    def paced_call() -> ChatCompletion:
        limiter.acquire()
        return client.chat(messages)

    def attempt() -> ChatCompletion:
        return breaker.call(paced_call)

    return retrier.call(attempt)


def chat_within(
    seconds: float,
    client: MistralClient,
    retrier: Retrier,
    breaker: CircuitBreaker,
    limiter: RateLimiter,
    messages: Sequence[Mapping[str, Any]],
) -> ChatCompletion:
    """Do what resilient_chat does, but end within ``seconds``, however many attempts it takes.

    Raises the error of the last attempt, or a TimeoutError if no time is left for another one.
    """
    deadline = time.monotonic() + seconds

    def time_left() -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no time is left of {seconds:g} s")
        return left

    def paced_call() -> ChatCompletion:
        limiter.acquire(timeout=time_left())
        return client.with_options(total_timeout=time_left()).chat(messages)

    def attempt() -> ChatCompletion:
        time_left()  # outside the breaker, which would take its error for one of the service
        return breaker.call(paced_call)

    return retrier.call(attempt)
