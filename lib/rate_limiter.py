# SPDX-License-Identifier: MIT-0
"""Pace requests so that a limit is never hit: n starts a minute, evenly spaced, no more.

Copy this file alone: it needs the standard library only.

    >>> limiter = RateLimiter(max_requests_per_minute=600)
    >>> limiter.acquire()       # the first one may start at once
    0.0
    >>> 0 < limiter.acquire() <= 0.2    # the next one had to wait
    True

A limiter that allows 60 in each clock minute lets 120 pass around the minute's turn.
Spacing the starts evenly cannot: no 60 seconds ever hold more than 60 of them.
The idea is the leaky bucket of J. Turner (1986), with no room in it for a burst.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque

EVENED_OUT = 10  # requests within which a late start may be made up for


class RateLimiter:
    """Lets ``max_requests_per_minute`` requests a minute start, evenly spaced.

    Who is woken late by the system starts late, and the next nine make up for it: so the
    full rate is reached, yet ten intervals never hold more than ten starts.
    One limiter serves any number of threads; all of them together get the rate.
    It counts what this process starts: a limit shared by processes needs a shared one.
    Raises ValueError unless ``max_requests_per_minute`` is a number above 0.
    """

    def __init__(self, max_requests_per_minute: float = 60) -> None:
        if not 0 < max_requests_per_minute < math.inf:
            raise ValueError(
                f"max_requests_per_minute must be a number above 0, not {max_requests_per_minute!r}"
            )
        self._interval = 60.0 / max_requests_per_minute
        self._next_slot = -math.inf  # on the monotonic clock
        self._last_starts: deque[float] = deque(maxlen=EVENED_OUT)
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Book the next slot for good; returns the seconds until it, for the caller to wait.

        For callers who want to tell of the wait, or to wait in their own way.
        """
        with self._lock:
            now = time.monotonic()
            slot = max(now, self._earliest_start())
            self._take(slot, slot)
        return slot - now

    def acquire(self, timeout: float | None = None) -> float:
        """Wait for a free slot and take it; returns the seconds waited.

        A slot is taken when it starts, not before: a caller that gives up, or is
        interrupted, uses none, and a ``pause`` holds those who wait already. Those who wait
        are let through in no order. Raises TimeoutError, at once, when no slot can come
        within ``timeout`` seconds.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be 0 or more seconds, not {timeout!r}")
        begun = now = time.monotonic()
        while True:
            with self._lock:
                wait = self._earliest_start() - now
                if wait <= 0:
                    # Who waited and woke a bit late starts late, but those behind need not.
                    woke_late = begun < now < self._next_slot + self._interval
                    self._take(self._next_slot if woke_late else now, now)
                    return now - begun
            if timeout is not None and now + wait > begun + timeout:
                raise TimeoutError(f"no request may start within {timeout:g} s")
            time.sleep(wait)
            now = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Let nobody start for so many seconds, but who has reserved: for a 429's Retry-After."""
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be a finite number from 0, not {seconds!r}")
        with self._lock:
            self._next_slot = max(self._next_slot, time.monotonic() + seconds)

    def _earliest_start(self) -> float:
        """One interval after the last slot, and ten after the tenth last start."""
        if len(self._last_starts) < EVENED_OUT:
            return self._next_slot
        return max(self._next_slot, self._last_starts[0] + EVENED_OUT * self._interval)

    def _take(self, slot: float, start: float) -> None:
        self._next_slot = slot + self._interval
        self._last_starts.append(start)
