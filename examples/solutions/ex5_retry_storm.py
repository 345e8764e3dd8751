"""Exercise 5, solved: one Retrier, and with it one budget, for all calls of the program.

The backoff and the jitter decide when a retry is sent; the budget decides whether it is sent.
While the service is down, no call succeeds, so the budget is soon empty. From then on, the
service gets one retry every 50 seconds. If ``call`` made a new Retrier each time, each call
would have a full budget of its own, and nothing would be limited.

A circuit breaker with a short ``recovery_timeout`` around each attempt also ends the storm, but
while it is open, all calls fail.

In the stretch part, a counter is enough: no other task runs between the comparison and the
addition, because there is no ``await`` between them. ``finally`` also runs after a cancellation.
"""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.retry import Retrier


class Client:
    """Call the service for one program, which shares one Client among all its calls.

    ``send()`` sends one request and returns the response, or raises an error.
    """

    def __init__(self, send: Callable[[], Awaitable[str]]) -> None:
        self._send = send
        self._retrier = Retrier(max_attempts=3)

    async def call(self) -> str:
        """Return the response to one call, which may take several requests.

        Raises the error of the last request, or CircuitOpenError if none may be sent.
        """
        return await self._retrier.call_async(self._send)


class TooManyCallsError(Exception):
    """The call was rejected: as many calls as allowed are in progress."""


class BoundedClient:
    """A Client with at most ``max_calls`` calls in progress; it rejects more."""

    def __init__(self, send: Callable[[], Awaitable[str]], max_calls: int) -> None:
        self._client = Client(send)
        self._max_calls = max_calls
        self._in_progress = 0

    async def call(self) -> str:
        """Do what ``Client.call`` does.

        Raises TooManyCallsError at once, without a request, if ``max_calls`` are in progress.
        """
        if self._in_progress >= self._max_calls:
            raise TooManyCallsError(f"{self._in_progress} calls are in progress")
        self._in_progress += 1
        try:
            return await self._client.call()
        finally:
            self._in_progress -= 1
