# SPDX-License-Identifier: MIT-0
"""Stay under a rate limit: start at most n requests per minute, evenly spaced and in order.

Copy this file alone: it needs the standard library only.

    >>> limiter = RateLimiter(max_requests_per_minute=600)
    >>> limiter.acquire()       # the first request starts at once
    0.0
    >>> limiter.acquire() > 0   # the next one waits for its slot, about 0.1 seconds
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
import inspect
import math
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from typing import Any

PACE = 0.985  # of the limit; the rest is a margin for late starts and the network's jitter

Attempt = Callable[["Caller"], float]
OnWait = Callable[[float], object] | None


class RateLimitTimeoutError(TimeoutError):
    """No slot was free within the timeout, so no request was sent.

    The error comes from your own limiter, not from the service, so it is not retryable, and a
    circuit breaker does not count it as a failure.
    """

    retryable = False


class RateLimiter:
    """Let at most ``max_requests_per_minute`` requests start per minute, evenly spaced.

    Callers start in the order in which they arrived, at 98.5 % of the limit. If the operating
    system wakes a thread late, its request starts late, and the next starts make up for it.
    Only this process is counted; several processes need a shared limiter.

    Thread-safe. Threads and asyncio tasks may share one limiter. If a task is first in line
    and its event loop is blocked, all callers behind it wait too. Raises ValueError for a
    wrong argument.
    """

    def __init__(self, max_requests_per_minute: float = 60) -> None:
        self.max_requests_per_minute = max_requests_per_minute
        self._next_slot = -math.inf  # a time on the monotonic clock, like all times here
        self._line = Line()

    @property
    def max_requests_per_minute(self) -> float:
        """The limit. You may change it; a caller that already waits for its slot keeps its wait."""
        return self._limit

    @max_requests_per_minute.setter
    def max_requests_per_minute(self, limit: float) -> None:
        if type(limit) not in (int, float) or not 0 < limit < math.inf:
            raise ValueError(f"max_requests_per_minute must be a number > 0, got {limit!r}")
        self._limit, self._interval = limit, 60 / (PACE * limit)

    def acquire(self, timeout: float | None = None, *, on_wait: OnWait = None) -> float:
        """Wait for a free slot and take it. Return the seconds waited.

        ``timeout`` is in seconds; None means no limit. If there is a wait, ``on_wait(seconds)``
        is called once, before it, with its expected length.

        The slot is taken only when the wait is over, so a caller that gives up uses no slot,
        and ``pause`` also delays callers that are already waiting. Raises
        RateLimitTimeoutError as soon as it is clear that no slot will be free within
        ``timeout`` seconds, ValueError for a wrong timeout, and TypeError if ``on_wait`` is
        an async function.
        """
        return self._line.wait(Caller(self._try_start, timeout, on_wait), time.sleep)

    async def acquire_async(self, timeout: float | None = None, *, on_wait: OnWait = None) -> float:
        """Do what ``acquire`` does, without blocking the event loop.

        A cancelled task leaves the line and uses no slot.
        """
        return await self._line.wait_async(Caller(self._try_start, timeout, on_wait), asyncio.sleep)

    def _try_start(self, caller: Caller) -> float:
        """Take the next slot and return 0 if it has come; else return the seconds until it."""
        now, interval = time.monotonic(), self._interval
        slot = max(now, self._next_slot) + caller.ahead * interval
        if slot > now:
            if slot > caller.gives_up_at:
                raise RateLimitTimeoutError(caller.too_late("no request may start"))
            return slot - now
        # If this start is late, count it as on time, so that the next slot does not move. The
        # exceptions: it is late by an interval, or by more than the pace leaves free in a minute.
        due = max(self._next_slot, caller.arrived_at)
        self._next_slot = (due if now - due < min(interval, 60 / PACE - 60) else now) + interval
        return 0.0

    def pause(self, seconds: float) -> None:
        """Block all new starts for ``seconds``. Raises ValueError for a wrong number.

        Call it with the Retry-After of a 429: every caller that shares the limiter waits,
        so that the others don't each get a 429 too.
        """
        end = time.monotonic() + as_seconds("seconds", seconds)
        with self._line.lock:
            self._next_slot = max(self._next_slot, end)

    def __repr__(self) -> str:
        return f"RateLimiter({self.max_requests_per_minute:g}, waiting={len(self._line.callers)})"


class Caller:
    """A caller in line: what it waits for, since when, until when, behind how many others.

    ``attempt(caller)`` returns 0 if it succeeds, or else the seconds to wait before the next
    attempt. It raises an error when the caller must give up.
    """

    def __init__(self, attempt: Attempt, timeout: float | None, on_wait: OnWait = None) -> None:
        check_hook("on_wait", on_wait)
        self.attempt, self.on_wait, self.ahead = attempt, on_wait, 0
        self.timeout = math.inf if timeout in (None, math.inf) else as_seconds("timeout", timeout)
        self.arrived_at = time.monotonic()
        self.gives_up_at = self.arrived_at + self.timeout
        self.awaited: asyncio.Future[None] | None = None

    def sleep(self, seconds: float) -> None:
        """Sleep until the line wakes this caller, or for ``seconds``."""
        wait([self.turn], min(seconds, threading.TIMEOUT_MAX))
        self.turn: Turn = Turn()  # the old one is done for ever

    async def sleep_async(self, seconds: float) -> None:
        """Do what ``sleep`` does, without blocking the event loop."""
        woken = self.awaited = asyncio.wrap_future(self.turn)
        await (woken if seconds == math.inf else asyncio.wait([woken], timeout=seconds))
        self.turn = Turn()

    def is_gone(self) -> bool:
        """Return True for a task that was cancelled, or whose event loop was closed."""
        task = self.awaited
        return task is not None and (task.cancelled() or task.get_loop().is_closed())

    def too_late(self, what: str) -> str:
        """Return the message of the error that this caller gets when it gives up."""
        return f"{what} within {round(self.timeout, 3):g} s"


class Turn(Future[None]):
    """A future that is done when the caller may try to start."""

    def cancel(self) -> bool:
        """Do nothing: a task that is cancelled leaves the line by itself."""
        return False


class Line:
    """Callers in the order in which they arrived: threads, and tasks of any event loop.

    Only the first one tries to start; the others sleep until they are first. A task whose
    event loop was closed is skipped as soon as another caller arrives or leaves.

    Thread-safe: each attempt holds ``lock``. It is reentrant, because the garbage collector
    may end a forgotten task at any moment.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.callers: OrderedDict[Caller, None] = OrderedDict()  # to leave it costs O(1)
        _lines.add(self)

    def wait(self, caller: Caller, sleep: Callable[[float], object]) -> float:
        """Wait until an attempt of the caller succeeds. Return the seconds waited.

        The first attempt is made on arrival, the others when the caller is first, and after each
        ``sleep``.
        """
        self.wake_first()
        if (seconds := self._try(caller)) == 0:
            return 0.0
        try:
            self._join(caller, seconds)
            caller.sleep(caller.timeout)
            while (seconds := self._try(caller)) > 0:
                sleep(min(seconds, threading.TIMEOUT_MAX))
            return time.monotonic() - caller.arrived_at
        finally:
            try:
                self._leave(caller)
            finally:
                self._leave(caller)  # again, in case Ctrl-C interrupted the first call

    async def wait_async(self, caller: Caller, sleep: Callable[[float], Awaitable[None]]) -> float:
        """Do what ``wait`` does, without blocking the event loop."""
        self.wake_first()
        if (seconds := self._try(caller)) == 0:
            return 0.0
        try:
            self._join(caller, seconds)
            await caller.sleep_async(caller.timeout)
            while (seconds := self._try(caller)) > 0:
                await sleep(seconds)
            return time.monotonic() - caller.arrived_at
        finally:
            try:
                self._leave(caller)
            finally:
                self._leave(caller)  # again: see wait

    def wake_first(self) -> None:
        """Let the first caller try at once; drop tasks that will never run again."""
        with self.lock:
            while self.callers and (first := next(iter(self.callers))).is_gone():
                del self.callers[first]
            if self.callers and not first.turn.done():
                first.turn.set_result(None)

    def _try(self, caller: Caller) -> float:
        """Let the caller make an attempt; tell it how many are ahead, if it is not first."""
        with self.lock:
            caller.ahead = 0 if next(iter(self.callers), caller) is caller else len(self.callers)
            seconds = caller.attempt(caller)
        return seconds  # noqa: RET504 - Ctrl-C after a call in `return` would skip the unlocking

    def _join(self, caller: Caller, seconds: float) -> None:
        caller.turn = Turn()
        with self.lock:
            self.callers[caller] = None
            self.wake_first()
        if caller.on_wait is not None:
            caller.on_wait(seconds)

    def _leave(self, caller: Caller) -> None:
        with self.lock:
            self.callers.pop(caller, None)
            self.wake_first()


def as_seconds(name: str, value: Any) -> float:
    """Return the value as a float; raise ValueError if it is not a number of seconds."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of seconds >= 0, got {value!r}")
    return float(value)


def check_hook(name: str, hook: Callable[..., object] | None) -> None:
    """Raise ValueError or TypeError if the hook is not a function, or is an async one."""
    if hook is not None and not callable(hook):
        raise ValueError(f"{name} must be a function, got {hook!r}")
    if hook is not None and any(map(inspect.iscoroutinefunction, (hook, type(hook).__call__))):
        raise TypeError(f"{name} must be a plain function, got an async one: it would never run")


_lines: weakref.WeakSet[Line] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Empty the lines: the child has none of the threads that waited or held a lock."""
    for line in list(_lines):
        line.lock = threading.RLock()
        line.callers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
