# SPDX-License-Identifier: MIT-0
"""Retry with exponential backoff and full jitter: many calls fail once and work a second later.

Copy this file alone: it needs the standard library only. It knows an error by two
attributes that any exception can carry: ``retryable`` (bool; an error without it
is not retried) and ``retry_after`` (seconds that the server asked for, or None).

    >>> class Busy(Exception):
    ...     retryable = True
    >>> answers = iter([Busy(), "Hello!"])
    >>> def ask():
    ...     answer = next(answers)
    ...     if isinstance(answer, Busy):
    ...         raise answer
    ...     return answer
    >>> Retrier(max_attempts=3, base_delay=0.01).call(ask)
    'Hello!'

After Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Retrier:
    """Calls an operation until it succeeds, at most ``max_attempts`` times.

    All times are seconds. Before attempt n+1 it waits a random time between 0 and
    min(max_delay, base_delay * 2**(n-1)); exactly that long with ``jitter=False``.
    A server's Retry-After is waited for instead, unless it is longer than
    ``max_retry_after``: then, or when a wait would end after the ``deadline``
    (counted from the start of the call), the error is raised at once.

    The hooks tell what happens, for a log or a lesson: ``before_attempt(attempt)``,
    ``before_wait(error, attempt, delay)``, ``on_recovery(attempt)`` after a success
    that took more than one attempt, ``on_give_up(error, attempt)`` before the error
    of the last attempt is raised. Attempts count from 1.

    One Retrier serves any number of threads: the state of a call lives in the call.
    Raises ValueError for a number that cannot be right.
    """

    def __init__(
        self,
        max_attempts: int = 3,
        base_delay: float = 1.0,
        max_delay: float = 30.0,
        jitter: bool = True,
        max_retry_after: float = 60.0,
        deadline: float | None = None,
        *,
        before_attempt: Callable[[int], object] | None = None,
        before_wait: Callable[[Exception, int, float], object] | None = None,
        on_recovery: Callable[[int], object] | None = None,
        on_give_up: Callable[[Exception, int], object] | None = None,
    ) -> None:
        if not (isinstance(max_attempts, int) and max_attempts >= 1):
            raise ValueError(f"max_attempts must be a whole number from 1, not {max_attempts!r}")
        seconds = {"base_delay": base_delay, "max_delay": max_delay,
                   "max_retry_after": max_retry_after, "deadline": deadline or 0.0}  # fmt: skip
        for name, value in seconds.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number of seconds from 0, not {value!r}")
        self.max_attempts = max_attempts
        self.base_delay = base_delay
        self.max_delay = max_delay
        self.jitter = jitter
        self.max_retry_after = max_retry_after
        self.deadline = deadline
        self._before_attempt = before_attempt
        self._before_wait = before_wait
        self._on_recovery = on_recovery
        self._on_give_up = on_give_up

    def call(self, operation: Callable[[], T]) -> T:
        """The operation's result, or the original error of its last attempt.

        Only errors whose ``retryable`` is true are tried again; Ctrl-C never is. The
        operation must be over when it returns: no coroutine, no generator.
        """
        start = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            if self._before_attempt:
                self._before_attempt(attempt)
            try:
                result = operation()
            except Exception as error:
                delay = self._delay_after(error, attempt, start)
                if delay is None:
                    if self._on_give_up:
                        self._on_give_up(error, attempt)
                    raise
                if self._before_wait:
                    self._before_wait(error, attempt, delay)
                time.sleep(delay)
            else:
                if attempt > 1 and self._on_recovery:
                    self._on_recovery(attempt)
                return result

    def _delay_after(self, error: Exception, attempt: int, start: float) -> float | None:
        """Seconds to wait before the next attempt; None where there shall be none."""
        if attempt >= self.max_attempts or not getattr(error, "retryable", False):
            return None
        asked_for: Any = getattr(error, "retry_after", None)
        if type(asked_for) in (int, float) and 0 <= asked_for < math.inf:
            if asked_for > self.max_retry_after:
                return None
            delay = float(asked_for)
        else:
            delay = self._backoff(attempt)
        if self.deadline is not None and time.monotonic() - start + delay > self.deadline:
            return None
        return delay

    def _backoff(self, attempt: int) -> float:
        doublings = min(attempt - 1, 1000)  # 2.0**1024 would overflow
        ceiling = min(self.max_delay, self.base_delay * 2.0**doublings)
        # Jitter comes after the cap: before it, all clients at the cap would wait alike.
        return random.uniform(0, ceiling) if self.jitter else ceiling
