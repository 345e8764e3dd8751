"""Exercise 4, solved: retry( breaker( limiter( call ))).

The breaker is inside the retries and sees each attempt: with a threshold of 2, it opens after 2
requests. CircuitOpenError is not retryable, so the retries end. If the breaker were around the
retries, it would count 4 failed attempts as one failure, and open only after 8 requests.

`lib/resilient_client.py` does the same for production: it also pauses all threads after a 429,
and it logs.
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
