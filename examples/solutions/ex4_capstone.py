"""Exercise 4, solved: retry( breaker( limiter( call ))).

The breaker inside the retries sees every attempt, so with a threshold of 2 it opens after
2 requests; CircuitOpenError is not retryable, and the retries end. Around the retries it
would see one failure where there were 4: 8 requests to a service that is down, to open.

`lib/resilient_client.py` is this function grown up: it also holds all threads back after
a 429, and logs.
"""

import sys
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
    """The answer to a chat, retried, guarded and paced.

    Raises the error of the last attempt: a MistralError, or CircuitOpenError where the
    circuit was open and nothing was sent.
    """

    def paced_call() -> ChatCompletion:
        limiter.acquire()
        return client.chat(messages)

    def attempt() -> ChatCompletion:
        return breaker.call(paced_call)

    return retrier.call(attempt)
