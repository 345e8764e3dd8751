"""breaker( retry( limiter( call ))): four failed attempts look like one failure."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    def paced_call() -> ChatCompletion:
        limiter.acquire()
        return client.chat(messages)

    return breaker.call(lambda: retrier.call(paced_call))
