# SPDX-License-Identifier: MIT-0
"""Stay under a rate limit: start n requests per minute, evenly spaced, first come, first served.

Copy this file alone: it needs the standard library only.

    >>> limiter = RateLimiter(max_requests_per_minute=600)
    >>> limiter.acquire()       # the first request starts at once
    0.0
    >>> 0 < limiter.acquire() <= 0.2    # the next one waits for its slot
    True

A limiter that allows 60 requests in each clock minute lets 120 pass around the turn of
the minute. Evenly spaced starts cannot exceed the limit in any 60 seconds.

After the leaky bucket of J. Turner (1986), without room for a burst.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque

WINDOW = 10  # starts; in any WINDOW intervals or more, the rate is never exceeded


class RateLimitTimeoutError(TimeoutError):
    """No slot came within the timeout, so no request was sent.

    Your own limiter gave up, not the service: it is not retryable, and its status is that
    of a 429, so that a circuit breaker does not count it.
    """

    retryable = False
    status_code = 429


class RateLimiter:
    """Let ``max_requests_per_minute`` requests start per minute, evenly spaced.

    Callers start in the order in which they came. A thread that wakes late starts late;
    the next start makes up for it, so that the full rate is reached.
    It counts the starts of this process; several processes need a shared limiter.

    Thread-safe; threads and asyncio tasks may share one. While a task is first in line,
    the others depend on its event loop: don't block it. Raises ValueError for a wrong
    argument.
    """

    def __init__(self, max_requests_per_minute: float = 60) -> None:
        if type(max_requests_per_minute) not in (int, float) or not (
            0 < max_requests_per_minute < math.inf
        ):
            raise ValueError(
                f"max_requests_per_minute must be a number > 0, got {max_requests_per_minute!r}"
            )
        self.max_requests_per_minute = max_requests_per_minute
        self._interval = 60.0 / max_requests_per_minute
        self._next_slot = -math.inf  # on the monotonic clock, like all times here
        self._window_opens_at = -math.inf
        self._last_starts: deque[float] = deque(maxlen=WINDOW)
        self._line: deque[_Waiter] = deque()
        self._reserved: deque[float] = deque()  # slots behind those who were in line
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Book the next free slot for good. Return the seconds until it; the caller waits.

        For callers that announce the wait, or wait in a way of their own.
        """
        with self._lock:
            now = time.monotonic()
            slot = max(now, self._earliest_start())
            if self._line or self._reserved:
                slot += (len(self._line) + len(self._reserved)) * self._interval
                self._reserved.append(slot)
            else:
                self._take(slot, slot)
        return slot - now

    def acquire(self, timeout: float | None = None) -> float:
        """Wait for a free slot and take it. Return the seconds waited.

        The slot is taken when the wait is over, so a caller that gives up costs nothing,
        and ``pause`` also delays callers that already wait. Raises RateLimitTimeoutError as
        soon as it is clear that no slot comes within ``timeout`` seconds.
        """
        waiter = _Waiter(timeout)
        try:
            while (wait := self._start_or_wait(waiter)) > 0:
                if waiter.is_first:
                    time.sleep(wait)
                else:
                    waiter.wait_until_called(wait)
        except BaseException:
            try:
                self._leave(waiter)
            finally:
                self._leave(waiter)  # again, in case that Ctrl-C interrupted the first
            raise
        return waiter.waited

    async def acquire_async(self, timeout: float | None = None) -> float:
        """Do what ``acquire`` does, without blocking the event loop.

        A cancelled task leaves the line and uses no slot.
        """
        waiter = _TaskWaiter(timeout)
        try:
            while (wait := self._start_or_wait(waiter)) > 0:
                if waiter.is_first:
                    await asyncio.sleep(wait)
                else:
                    await waiter.wait_until_called_async(wait)
        except BaseException:
            try:
                self._leave(waiter)
            finally:
                self._leave(waiter)  # again, in case that Ctrl-C interrupted the first
            raise
        return waiter.waited

    def pause(self, seconds: float) -> None:
        """Block all new starts for ``seconds``; slots that are already reserved are kept.

        Call it with the Retry-After of a 429: every caller that shares the limiter waits,
        so that the others don't each earn a 429.
        """
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be a number of seconds >= 0, got {seconds!r}")
        with self._lock:
            self._next_slot = max(self._next_slot, time.monotonic() + seconds)

    def __repr__(self) -> str:
        return f"RateLimiter({self.max_requests_per_minute:g}, waiting={len(self._line)})"

    def _start_or_wait(self, waiter: _Waiter) -> float:
        """Start if the waiter's turn and slot have come, and return 0; else the seconds to wait."""
        with self._lock:
            now = time.monotonic()
            if waiter.joined_at is None:
                waiter.joined_at = now
                self._line.append(waiter)
                ahead = len(self._line) - 1
            else:
                ahead = self._line.index(waiter)
            give_up_at = waiter.joined_at + waiter.timeout
            waiter.is_first = ahead == 0
            slot = self._earliest_start()
            if ahead:
                slot = max(slot, now) + ahead * self._interval
            if slot > give_up_at:
                raise RateLimitTimeoutError(f"no request may start within {waiter.timeout:g} s")
            if ahead:
                return give_up_at - now
            if slot > now:
                return slot - now
            # A start that is late by less than an interval keeps its slot; the next makes up.
            kept = max(self._next_slot, waiter.joined_at)
            self._take(kept if now < kept + self._interval else now, now)
            waiter.waited = now - waiter.joined_at
            self._line.popleft()
            self._call_first()
            return 0.0

    def _leave(self, waiter: _Waiter) -> None:
        """Take a waiter that gave up out of the line, wherever it was interrupted."""
        with self._lock:
            if waiter in self._line:
                self._line.remove(waiter)
            self._call_first()

    def _call_first(self) -> None:
        while self._line:
            try:
                self._line[0].call()
                return
            except RuntimeError:  # its event loop has been closed: it will never come
                self._line.popleft()

    def _earliest_start(self) -> float:
        while self._reserved and self._reserved[0] < self._next_slot + self._interval / 2:
            slot = self._reserved.popleft()
            self._take(max(slot, self._next_slot), slot)
        return max(self._next_slot, self._window_opens_at)

    def _take(self, slot: float, start: float) -> None:
        """Book a slot, whose request starts at ``start``, perhaps a little later."""
        self._next_slot = slot + self._interval
        self._last_starts.append(start)
        # However late some starts were: n intervals after the n-th last start, for n >= WINDOW.
        self._window_opens_at += self._interval
        if len(self._last_starts) == WINDOW:
            in_a_window = self._last_starts[0] + WINDOW * self._interval
            self._window_opens_at = max(self._window_opens_at, in_a_window)


class _Waiter:
    """A thread in line. It is called once, when it is first; then it waits for its slot."""

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and (type(timeout) not in (int, float) or not timeout >= 0):
            raise ValueError(f"timeout must be a number of seconds >= 0, got {timeout!r}")
        self.timeout = math.inf if timeout is None else timeout
        self.joined_at: float | None = None
        self.is_first = False
        self.waited = 0.0
        self._set_up()

    def _set_up(self) -> None:
        self._called = threading.Event()

    def call(self) -> None:
        self._called.set()

    def wait_until_called(self, seconds: float) -> None:
        self._called.wait(min(seconds, threading.TIMEOUT_MAX))


class _TaskWaiter(_Waiter):
    """An asyncio task in line; its event loop may run in another thread than its caller's."""

    def _set_up(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()

    def call(self) -> None:
        if asyncio._get_running_loop() is self._loop:
            self._wake()
        else:
            self._loop.call_soon_threadsafe(self._wake)

    async def wait_until_called_async(self, seconds: float) -> None:
        if seconds == math.inf:
            await self._future
            return
        timer = self._loop.call_later(seconds, self._wake)
        try:
            await self._future
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)
