# SPDX-License-Identifier: MIT-0
"""Enforce the mock server's rate limits, over a sliding window."""

from __future__ import annotations

import math
from collections import deque

from .api import API, Response


class SlidingWindow:
    """Count what was used in the last ``seconds``, and compare it with a limit."""

    def __init__(self, limit: int, seconds: float = 60.0) -> None:
        self.limit = limit
        self.seconds = seconds
        self._entries: deque[tuple[float, int]] = deque()
        self._used = 0

    def add(self, now: float, amount: int) -> None:
        """Book ``amount`` at ``now``, in seconds on the monotonic clock."""
        self._entries.append((now, amount))
        self._used += amount

    def remaining(self, now: float) -> int:
        """Return how much may still be used."""
        while self._entries and self._entries[0][0] <= now - self.seconds:
            self._used -= self._entries.popleft()[1]
        return max(0, self.limit - self._used)

    def seconds_until_room(self, now: float, amount: int) -> float:
        """Return the seconds until ``amount`` fits: 0 if it fits now."""
        missing = min(amount, self.limit) - self.remaining(now)
        seconds = 0.0
        for moment, freed in self._entries:
            if missing <= 0:
                break
            missing -= freed
            seconds = moment + self.seconds - now
        return seconds


class RateLimits:
    """Limit the requests and the tokens per minute of all chat requests together.

    A request that exceeds the request limit, or whose tokens do not fit, gets a 429. An
    accepted request is charged the tokens that it really uses.
    """

    def __init__(self, api: API, requests: int | None, tokens: int | None, window: float) -> None:
        self._api = api
        limits = {"requests": requests, "tokens": tokens}
        self._windows = {
            name: SlidingWindow(limit, window) for name, limit in limits.items() if limit
        }

    def apply(self, response: Response, now: float) -> Response:
        """Charge the response and return it, or return a 429; both get x-ratelimit headers."""
        amounts = {"requests": 1, "tokens": response.tokens}
        waits = {
            name: window.seconds_until_room(now, amounts[name])
            for name, window in self._windows.items()
        }
        wait = max(waits.values(), default=0.0)
        if wait > 0:
            response = self._api.error(429, retry_after=math.ceil(wait))
        for name, window in self._windows.items():
            if wait <= 0:
                window.add(now, amounts[name])
            remaining = window.remaining(now)
            response.headers.update(
                self._api.dialect.limit_headers(name, window.limit, remaining, waits[name])
            )
        return response
