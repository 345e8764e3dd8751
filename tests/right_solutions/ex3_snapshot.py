"""A monitor without a lock: each append, and each copy of the list, is one atomic step."""

import time
from typing import Any

from lib.client import MistralClient
from lib.errors import MistralError


class HealthMonitor:
    def __init__(self, client: MistralClient, window_seconds: float = 60.0) -> None:
        self.client = client
        self.window_seconds = window_seconds
        self.calls: list[tuple[float, bool]] = []

    def record(self, success: bool) -> None:
        self.calls.append((time.monotonic(), success))

    def check_health(self) -> dict[str, Any]:
        return self.health(*self.measure(self.client.models), "down")

    def check_chat(self) -> dict[str, Any]:
        health = self.check_health()
        if health["api_status"] == "down":
            return health
        messages = [{"role": "user", "content": "?"}]
        result = self.measure(lambda: self.client.chat(messages, max_tokens=1))
        return self.health(*result, "degraded")

    def measure(self, call: Any) -> tuple[bool, float]:
        start = time.perf_counter()
        try:
            call()
        except MistralError:
            return False, 0.0
        return True, time.perf_counter() - start

    def health(self, success: bool, seconds: float, failed: str) -> dict[str, Any]:
        start = time.monotonic() - self.window_seconds
        recent = [success for when, success in list(self.calls) if when >= start]
        return {
            "api_status": "up" if success else failed,
            "response_time": seconds if success else None,
            "error_rate": recent.count(False) / len(recent) if recent else None,
        }
