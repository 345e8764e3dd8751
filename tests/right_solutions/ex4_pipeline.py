"""The pipeline of lib, which knows the order."""

from typing import Any

from lib.circuit_breaker import CircuitBreaker
from lib.client import ChatCompletion, MistralClient
from lib.pipeline import Pipeline
from lib.rate_limiter import RateLimiter
from lib.retry import Retrier


def resilient_chat(
    client: MistralClient,
    retrier: Retrier,
    breaker: CircuitBreaker,
    limiter: RateLimiter,
    messages: Any,
) -> ChatCompletion:
    pipeline = Pipeline(retrier=retrier, breaker=breaker, limiter=limiter)
    return pipeline.call(lambda attempt: client.chat(messages))
