# SPDX-License-Identifier: MIT-0
"""Stay under a rate limit: start at most n requests per minute, evenly spaced and in order.

Copy this file alone: it needs the standard library only.

    >>> limiter = RateLimiter(max_requests_per_minute=600)
    >>> limiter.acquire()       # the first request starts at once
    0.0
    >>> 0 < limiter.acquire() <= 0.2    # the next one waits for its slot
    True

An API rejects a request above its rate limit with a 429. A limiter prevents that: it delays
the request until the next free slot, the time at which one request may start.

Why evenly spaced: a limiter that allows 60 requests per clock minute can let 120 through
in two seconds, 60 at the end of one minute and 60 at the start of the next. Evenly spaced
starts cannot exceed the limit in any 60 seconds, and the server gets no bursts.

After the leaky bucket (J. Turner, "New Directions in Communications", 1986), with no room
for a burst.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque

WINDOW_STARTS = 10  # over this many starts, the rate is never exceeded, even after a delay


class RateLimitTimeoutError(TimeoutError):
    """No slot was free within the timeout, so no request was sent.

    The error comes from your own limiter, not from the service. It is not retryable, and its
    ``status_code`` is 429, so a circuit breaker does not count it as a failure.
    """

    retryable = False
    status_code = 429


class RateLimiter:
    """Let at most ``max_requests_per_minute`` requests start per minute, evenly spaced.

    Callers start in the order in which they arrived. If the operating system wakes a thread
    late, its request starts late. The next starts make up for the delay, so the full rate is
    still reached. Only this process is counted; several processes need a shared limiter.

    Thread-safe. Threads and asyncio tasks may share one limiter. While a task is first in
    line, the callers behind it wait for its event loop, so don't block the loop. Raises
    ValueError for a wrong argument.
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
        self._next_slot = -math.inf  # a time on the monotonic clock, like all times here
        self._window_opens_at = -math.inf
        self._last_starts: deque[float] = deque(maxlen=WINDOW_STARTS)
        self._line: deque[_Waiter] = deque()
        self._reserved: deque[float] = deque()  # slots that ``reserve`` booked behind the line
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Book the next free slot. Return the seconds until it; you must wait that long yourself.

        Use it to announce the wait, or to wait in your own way. A booked slot cannot be
        given back.
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

        The slot is taken only when the wait is over, so a caller that gives up uses no slot,
        and ``pause`` also delays callers that are already waiting. Raises
        RateLimitTimeoutError as soon as it is clear that no slot will be free within
        ``timeout`` seconds.
        """
        waiter = _Waiter(timeout)
        try:
            while (wait := self._try_start(waiter)) > 0:
                if waiter.is_first:
                    time.sleep(min(wait, threading.TIMEOUT_MAX))
                else:
                    waiter.wait_until_notified(wait)
        except BaseException:
            try:
                self._leave(waiter)
            finally:
                self._leave(waiter)  # again, in case Ctrl-C interrupted the first call
            raise
        return waiter.waited

    async def acquire_async(self, timeout: float | None = None) -> float:
        """Do what ``acquire`` does, without blocking the event loop.

        A cancelled task leaves the line and uses no slot.
        """
        waiter = _TaskWaiter(timeout)
        try:
            while (wait := self._try_start(waiter)) > 0:
                if waiter.is_first:
                    await asyncio.sleep(wait)
                else:
                    await waiter.wait_until_notified_async(wait)
        except BaseException:
            try:
                self._leave(waiter)
            finally:
                self._leave(waiter)  # again, in case Ctrl-C interrupted the first call
            raise
        return waiter.waited

    def pause(self, seconds: float) -> None:
        """Block all new starts for ``seconds``; slots that are already reserved are kept.

        Call it with the Retry-After of a 429: every caller that shares the limiter waits,
        so that the others don't each get a 429 too.
        """
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be a number of seconds >= 0, got {seconds!r}")
        with self._lock:
            self._next_slot = max(self._next_slot, time.monotonic() + seconds)

    def __repr__(self) -> str:
        return f"RateLimiter({self.max_requests_per_minute:g}, waiting={len(self._line)})"

    def _try_start(self, waiter: _Waiter) -> float:
        """Take a slot and return 0 if it is the waiter's turn; else return the seconds to wait."""
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
            # A start less than one interval late keeps its slot, so the next one is on time.
            due = max(self._next_slot, waiter.joined_at)
            self._take(due if now < due + self._interval else now, now)
            waiter.waited = now - waiter.joined_at
            self._line.popleft()
            self._notify_first()
            return 0.0

    def _leave(self, waiter: _Waiter) -> None:
        """Remove a waiter that gave up from the line, wherever it was interrupted."""
        with self._lock:
            if waiter in self._line:
                self._line.remove(waiter)
            self._notify_first()

    def _notify_first(self) -> None:
        while self._line:
            try:
                self._line[0].notify()
                return
            except RuntimeError:  # its event loop is closed, so it will never start
                self._line.popleft()

    def _earliest_start(self) -> float:
        """Return when the next request may start."""
        self._take_due_reservations()
        return max(self._next_slot, self._window_opens_at)

    def _take_due_reservations(self) -> None:
        """Take each reserved slot that is less than half an interval after the next free one."""
        while self._reserved and self._reserved[0] < self._next_slot + self._interval / 2:
            slot = self._reserved.popleft()
            self._take(max(slot, self._next_slot), slot)

    def _take(self, slot: float, start: float) -> None:
        """Book a slot for a request that starts at ``start``, a bit earlier or later than it."""
        self._next_slot = slot + self._interval
        self._last_starts.append(start)
        # Starts that make up for a delay must not exceed the rate: for each n >= WINDOW_STARTS,
        # the next start comes at least n intervals after the n-th last one.
        self._window_opens_at += self._interval
        if len(self._last_starts) == WINDOW_STARTS:
            window_end = self._last_starts[0] + WINDOW_STARTS * self._interval
            self._window_opens_at = max(self._window_opens_at, window_end)


class _Waiter:
    """A thread in line. It is notified once, when it is first; then it waits for its slot."""

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and (type(timeout) not in (int, float) or not timeout >= 0):
            raise ValueError(f"timeout must be a number of seconds >= 0, got {timeout!r}")
        self.timeout = math.inf if timeout is None else timeout
        self.joined_at: float | None = None
        self.is_first = False
        self.waited = 0.0
        self._set_up()

    def _set_up(self) -> None:
        self._notified = threading.Event()

    def notify(self) -> None:
        self._notified.set()

    def wait_until_notified(self, seconds: float) -> None:
        self._notified.wait(min(seconds, threading.TIMEOUT_MAX))


class _TaskWaiter(_Waiter):
    """An asyncio task in line. A thread other than that of its event loop may notify it."""

    def _set_up(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()

    def notify(self) -> None:
        if asyncio._get_running_loop() is self._loop:
            self._wake()
        else:
            self._loop.call_soon_threadsafe(self._wake)

    async def wait_until_notified_async(self, seconds: float) -> None:
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
