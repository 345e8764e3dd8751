# SPDX-License-Identifier: MIT-0
"""Enforce the mock server's rate limits, over a sliding window of 60 seconds."""

from __future__ import annotations

import math
from collections import deque

from .api import Response, error_response

WINDOW = 60.0  # seconds


class SlidingWindow:
    """Count what was used in the last 60 seconds, and compare it with a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: deque[tuple[float, int]] = deque()
        self._used = 0

    def add(self, now: float, amount: int) -> None:
        """Book ``amount`` at ``now``, in seconds on the monotonic clock."""
        self._entries.append((now, amount))
        self._used += amount

    def remaining(self, now: float) -> int:
        """Return how much may still be used."""
        while self._entries and self._entries[0][0] <= now - WINDOW:
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
            seconds = moment + WINDOW - now
        return seconds


class RateLimits:
    """Limit the requests and the tokens per minute of all chat requests together.

    A request that exceeds the request limit, or whose tokens do not fit, gets a 429. An
    accepted request is charged the tokens that it really uses.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._windows = {
            name: SlidingWindow(limit)
            for name, limit in (("req", requests_per_minute), ("tokens", tokens_per_minute))
            if limit is not None
        }

    def apply(self, response: Response, now: float) -> Response:
        """Charge the response and return it, or return a 429; both get x-ratelimit headers."""
        amounts = {"req": 1, "tokens": response.tokens}
        wait = max(
            (window.seconds_until_room(now, amounts[name])
             for name, window in self._windows.items()),
            default=0.0,
        )  # fmt: skip
        if wait > 0:
            response = error_response(429, math.ceil(wait))
        for name, window in self._windows.items():
            if wait <= 0:
                window.add(now, amounts[name])
            response.headers[f"x-ratelimit-limit-{name}-minute"] = str(window.limit)
            response.headers[f"x-ratelimit-remaining-{name}-minute"] = str(window.remaining(now))
        return response
