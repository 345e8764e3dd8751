"""A circuit breaker that closes again soon, and retries without a budget."""

import math
from collections.abc import Awaitable, Callable

from lib.circuit_breaker import CircuitBreaker
from lib.retry import Retrier, RetryBudget


class Client:
    def __init__(self, send: Callable[[], Awaitable[str]]) -> None:
        self._send = send
        self._retrier = Retrier(max_attempts=3, budget=RetryBudget(math.inf))
        self._breaker = CircuitBreaker("service", recovery_timeout=5.0)

    async def call(self) -> str:
        return await self._retrier.call_async(lambda: self._breaker.call_async(self._send))
