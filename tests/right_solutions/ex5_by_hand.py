"""A budget that earns tokens with time, without lib."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable


class Client:
    def __init__(self, send: Callable[[], Awaitable[str]]) -> None:
        self._send = send
        self._tokens = 20.0
        self._updated_at = time.monotonic()

    async def call(self) -> str:
        for attempt in range(3):
            try:
                return await self._send()
            except Exception as error:
                if not getattr(error, "retryable", False) or attempt == 2 or not self._take():
                    raise
            await asyncio.sleep(random.uniform(0, 2**attempt))
        raise AssertionError("unreachable")

    def _take(self) -> bool:
        now = time.monotonic()
        self._tokens = min(20.0, self._tokens + 3 * (now - self._updated_at))
        self._updated_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
