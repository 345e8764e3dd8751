"""The retrier and the breaker as decorators."""

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
    messages: Any,
) -> ChatCompletion:
    @retrier
    @breaker
    def chat() -> ChatCompletion:
        limiter.acquire()
        return client.chat(messages)

    return chat()
