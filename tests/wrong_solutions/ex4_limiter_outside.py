"""retry( limiter( breaker( call ))): a call that isn't made uses up a slot."""

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
    def attempt() -> ChatCompletion:
        limiter.acquire()
        return breaker.call(lambda: client.chat(messages))

    return retrier.call(attempt)
