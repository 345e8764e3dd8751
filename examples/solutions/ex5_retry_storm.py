"""Exercise 5, solved: one Retrier, and with it one budget, for all calls of the program.

The backoff and the jitter decide when a retry is sent; the budget decides whether. While
the service is down there are no successes, so the budget is soon empty, and from then on
the service gets one retry every two seconds. A Retrier made in ``call`` would have a full
budget for each call, and limit nothing.

A circuit breaker with a short ``recovery_timeout`` around each attempt ends the storm as
well, but it fails all calls while it is open.
"""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.retry import Retrier


class Client:
    """Calls the service for one program; all calls of the program share it.

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
