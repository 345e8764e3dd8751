"""Exercise 3, solved: a health monitor.

The two checks differ in what they call and in the word for its failure, so that is all
they say; `_probe` does the rest. `check_chat` finds what a green list of models hides, but
it costs a token each time: ask it every few minutes, and the other one every few seconds.
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
    """What a check found out.

    ``response_time`` is the seconds that the answer took, None where none came or it was
    an error. ``error_rate`` is failed calls / all calls (0.0 to 1.0) in the window, None
    where the window holds none: to know nothing is not the same as to know of no errors.
    """

    api_status: Literal["up", "degraded", "down"]
    response_time: float | None
    error_rate: float | None


class HealthMonitor:
    """Watches one API; safe for threads. ``window_seconds``: how long a call is remembered."""

    def __init__(self, client: MistralClient, window_seconds: float = 60.0) -> None:
        self._client = client
        self._window_seconds = window_seconds
        self._calls: deque[tuple[float, bool]] = deque()  # (when it ended, its success)
        self._lock = threading.Lock()

    def record(self, success: bool) -> None:
        """Remember how a call of the program ended, and when (by ``time.monotonic()``)."""
        with self._lock:
            self._forget_old_calls()
            self._calls.append((time.monotonic(), success))

    def check_health(self) -> Health:
        """Ask for the models: "up" if they come, "down" if anything goes wrong.

        Raises no MistralError. A check is no call of the program: it isn't recorded.
        """
        return self._probe(self._client.models, "down")

    def check_chat(self) -> Health:
        """``check_health``; and if that is "up", a chat with ``max_tokens=1``.

        "up" if the chat works, "degraded" if it doesn't; "down", with no chat sent, if not
        even the models come. ``response_time`` is then the chat's. Raises no MistralError.
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
        oldest_that_counts = time.monotonic() - self._window_seconds
        while self._calls and self._calls[0][0] < oldest_that_counts:
            self._calls.popleft()
