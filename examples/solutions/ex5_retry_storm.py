"""Exercise 5, solved: one Retrier, and with it one budget, for all calls of the program.

The backoff and the jitter decide when a retry is sent; the budget decides whether it is sent.
While the service is down, no call succeeds, so the budget is soon empty. From then on, the
service gets one retry every 50 seconds. If ``call`` made a new Retrier each time, each call
would have a full budget of its own, and nothing would be limited.

A circuit breaker with a short ``recovery_timeout`` around each attempt also ends the storm, but
while it is open, all calls fail.
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
