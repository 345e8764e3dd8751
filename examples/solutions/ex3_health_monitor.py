"""Exercise 3, solved: a health monitor.

The two checks differ only in the call that they make and in the status if it fails. `_probe` does
the rest. `check_chat` finds problems that the list of models hides, but it is billed each time:
run it every few minutes, and `check_health` every few seconds.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypedDict

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.client import MistralClient
from lib.errors import MistralError

HELLO = [{"role": "user", "content": "Hello!"}]


class Health(TypedDict):
    """The result of a check.

    ``response_time`` is how long the response took, in seconds (by ``time.monotonic()``). It is
    None if the request failed. ``error_rate`` is failed calls / all calls in the window (0.0 to
    1.0). It is None if there were no calls: that is not the same as no errors.
    """

    api_status: Literal["up", "degraded", "down"]
    response_time: float | None
    error_rate: float | None


class HealthMonitor:
    """Watch one API, counting the calls of the last ``window_seconds``. Thread-safe."""

    def __init__(self, client: MistralClient, window_seconds: float = 60.0) -> None:
        self._client = client
        self._window_seconds = window_seconds
        self._calls: deque[tuple[float, bool]] = deque()  # (when it ended, success)
        self._lock = threading.Lock()

    def record(self, success: bool) -> None:
        """Record whether a call succeeded, and when it ended (``time.monotonic()``)."""
        with self._lock:
            self._forget_old_calls()
            self._calls.append((time.monotonic(), success))

    def check_health(self) -> Health:
        """Request the models. The status is "up" if they come, "down" after any MistralError.

        It raises no MistralError, and is not recorded as a call.
        """
        return self._probe(self._client.models, "down")

    def check_chat(self) -> Health:
        """Do ``check_health()`` and, if that is "up", send a chat with ``max_tokens=1``.

        The status is "up" if the chat works, and ``response_time`` is that of the chat. It is
        "degraded" if the chat fails, and "down" if the models don't come; then no chat is sent.
        It raises no MistralError.
        """
        health = self.check_health()
        if health["api_status"] != "up":
            return health
        return self._probe(lambda: self._client.chat(HELLO, max_tokens=1), "degraded")

    def _probe(
        self, call: Callable[[], object], status_if_it_fails: Literal["degraded", "down"]
    ) -> Health:
        status: Literal["up", "degraded", "down"] = "up"
        response_time = None
        start = time.monotonic()
        try:
            call()
            response_time = time.monotonic() - start
        except MistralError:
            status = status_if_it_fails
        return {
            "api_status": status,
            "response_time": response_time,
            "error_rate": self._error_rate(),
        }

    def _error_rate(self) -> float | None:
        with self._lock:
            self._forget_old_calls()
            failed = sum(not success for _, success in self._calls)
            return failed / len(self._calls) if self._calls else None

    def _forget_old_calls(self) -> None:
        window_start = time.monotonic() - self._window_seconds
        while self._calls and self._calls[0][0] < window_start:
            self._calls.popleft()
