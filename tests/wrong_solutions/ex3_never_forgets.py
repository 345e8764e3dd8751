"""A monitor that counts since the start of the program: this morning's trouble is never over."""

import threading
import time
from collections.abc import Callable

from examples.solutions.ex3_health_monitor import HELLO, Health
from lib.client import MistralClient
from lib.errors import MistralError


class HealthMonitor:
    def __init__(self, client: MistralClient, window_seconds: float = 60.0) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._calls = 0
        self._failed = 0

    def record(self, success: bool) -> None:
        with self._lock:
            self._calls += 1
            self._failed += not success

    def check_health(self) -> Health:
        response_time = self._time_of(self._client.models)
        return {
            "api_status": "down" if response_time is None else "up",
            "response_time": response_time,
            "error_rate": self._failed / self._calls if self._calls else None,
        }

    def check_chat(self) -> Health:
        health = self.check_health()
        if health["api_status"] == "up":
            health["response_time"] = self._time_of(lambda: self._client.chat(HELLO, max_tokens=1))
            if health["response_time"] is None:
                health["api_status"] = "degraded"
        return health

    def _time_of(self, call: Callable[[], object]) -> float | None:
        start = time.monotonic()
        try:
            call()
        except MistralError:
            return None
        return time.monotonic() - start
