# SPDX-License-Identifier: MIT-0
"""Stop calling a service that is down: it recovers sooner, and callers fail at once.

Copy this file alone: it needs the standard library only.

    >>> breaker = CircuitBreaker("api", failure_threshold=1, recovery_timeout=60)
    >>> def call_api():
    ...     raise ConnectionError("the service is down")
    >>> breaker.call(call_api)
    Traceback (most recent call last):
    ConnectionError: the service is down
    >>> try:
    ...     breaker.call(call_api)      # not called any more
    ... except CircuitOpenError as error:
    ...     print(error)
    Circuit breaker is open

       failures reach the threshold              recovery_timeout has passed
    closed ----------------------------> open ----------------------------> half-open
      ^                                    ^                                   |  |
      |                                    +-------- the probe fails ----------+  |
      +--------------------------------------------- the probe succeeds ----------+

After Michael Nygard, "Release It!" (2007), and Martin Fowler's "CircuitBreaker" (2014).
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
import time
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
State = Literal["closed", "open", "half-open"]


class CircuitOpenError(Exception):
    """The call was not made. ``retry_after``: seconds until the circuit lets one try.

    It carries no ``retryable``: to wait for the circuit would defeat its purpose.
    """

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(name, retry_after)
        self.name = name
        self.retry_after = retry_after

    def __str__(self) -> str:
        return "Circuit breaker is open"


def is_service_failure(error: Exception) -> bool:
    """Does the error speak against the service? A refused request (400, 401, 404) does not."""
    return bool(getattr(error, "retryable", True))


class CircuitBreaker:
    """Guards one service; shared by all threads that call it.

    ``failure_threshold`` failures in a row open the circuit. ``recovery_timeout``
    seconds later one call, the probe, is let through: it closes the circuit or opens
    it again. An error for which ``counts_as_failure(error)`` is false, or a Ctrl-C,
    changes nothing. Raises ValueError for a number that cannot be right.
    """

    def __init__(
        self,
        name: str,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        counts_as_failure: Callable[[Exception], bool] = is_service_failure,
    ) -> None:
        if not (isinstance(failure_threshold, int) and failure_threshold >= 1):
            raise ValueError(
                f"failure_threshold must be a whole number from 1, not {failure_threshold!r}"
            )
        if not 0 <= recovery_timeout < math.inf:
            raise ValueError(
                f"recovery_timeout must be finite seconds from 0, not {recovery_timeout!r}"
            )
        self.name = name
        self.failure_threshold = failure_threshold
        self.recovery_timeout = recovery_timeout
        self._counts_as_failure = counts_as_failure
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_at: float | None = None  # None: closed
        self._probing = False
        # Goes up whenever the circuit opens. A call remembers the era it began in; if another
        # one has come when it ends, it says nothing about the service of now.
        self._era = 0

    @property
    def state(self) -> State:
        """What the next call will meet."""
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "open" if self._seconds_left(self._opened_at) > 0 else "half-open"

    def call(self, operation: Callable[[], T]) -> T:
        """The operation's result or its own error; CircuitOpenError if it wasn't called.

        The operation must be over when it returns: no coroutine, no generator.
        """
        era = self._admit()
        healthy = None  # says nothing, until we know
        try:
            result = operation()
            healthy = True
            return result
        except Exception as error:
            if self._counts_as_failure(error):
                healthy = False
            raise
        finally:
            self._settle(era, healthy)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """The breaker as a decorator."""
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError("an async or generator function only starts later: guard what it calls")

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.call(lambda: function(*args, **kwargs))

        return guarded

    def reset(self) -> None:
        """Close the circuit and forget every failure, those of calls under way too."""
        with self._lock:
            self._era += 1
            self._close()

    def _admit(self) -> int:
        """Let a call in, with the era that it belongs to, or raise CircuitOpenError."""
        era = self._era  # read before the state, so that it is the old one if the circuit opens
        if self._opened_at is None:
            return era
        with self._lock:
            if self._opened_at is None:
                return self._era
            seconds_left = self._seconds_left(self._opened_at)
            if seconds_left > 0 or self._probing:
                raise CircuitOpenError(self.name, seconds_left)
            self._probing = True
            return self._era

    def _settle(self, era: int, healthy: bool | None) -> None:
        """Draw the conclusion from a call's end; None says nothing about the service."""
        if healthy and self._opened_at is None and not self._failures:
            return  # all was well, and is
        with self._lock:
            if era != self._era:
                return
            self._probing = False
            if healthy:
                self._close()
            elif healthy is False:
                self._failures += 1
                if self._opened_at is not None or self._failures >= self.failure_threshold:
                    self._open()

    def _close(self) -> None:
        self._opened_at = None
        self._failures = 0
        self._probing = False

    def _open(self) -> None:
        self._opened_at = time.monotonic()
        self._era += 1  # after the state: who reads the new one without the lock sees it open
        self._probing = False

    def _seconds_left(self, opened_at: float) -> float:
        return max(0.0, opened_at + self.recovery_timeout - time.monotonic())
