# SPDX-License-Identifier: MIT-0
"""Retry a failed call with exponential backoff, full jitter and a retry budget.

Copy this file alone: it needs the standard library only. It looks at two attributes
that any exception can have: ``retryable`` (bool; an error without it is not retried)
and ``retry_after`` (the seconds that the server asked for, or None).

    >>> class Busy(Exception):
    ...     retryable = True
    >>> results = iter([Busy(), "Hello!"])
    >>> def call_api():
    ...     result = next(results)
    ...     if isinstance(result, Busy):
    ...         raise result
    ...     return result
    >>> Retrier(max_attempts=3, base_delay=0.01).call(call_api)
    'Hello!'

Why exponential backoff (each wait is twice as long as the one before): a service that is
still down after one second needs more time, not more requests. Why full jitter (each wait
is random, between zero and that length): a thousand clients that fail together and all
wait exactly one second retry together, and overload the service again. This is called a
thundering herd. Why a retry budget: if a service fails because it is overloaded, three
attempts per call triple its load and keep it down.

Retry only what is safe to do twice (idempotent). A chat call changes nothing on the
server, but after a timeout the first answer may have been generated and billed. If your
code acts on the answer (sends mail, runs a tool), retry the chat call only, never the
action. Retry at one layer only: three attempts around an SDK that makes three attempts
itself are nine requests. Switch the SDK's own retries off: ``OpenAI(max_retries=0)``.

After Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), and,
for the budget, gRPC's retry throttling (proposal A6) and Finagle's RetryBudget.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
GiveUpReason = Literal[
    "not retryable",
    "attempts exhausted",
    "Retry-After too long",
    "total timeout",
    "retry budget exhausted",
]

_logger = logging.getLogger(__name__)


def is_retryable(error: Exception) -> bool:
    """Return the error's ``retryable`` attribute, or False if it has none."""
    return bool(getattr(error, "retryable", False))


class RetryBudget:
    """Limit the retries of all calls together, so that they cannot keep a service down.

    The budget holds up to ``max_tokens`` tokens and starts full. Each retry costs one token.
    Each success earns ``tokens_per_success``, and each second earns ``tokens_per_second``.
    While a service is down, no call succeeds. Once the tokens are used up, the service gets
    its normal load plus, with the defaults, one retry every two seconds. A program that
    makes one call per second can still retry: it earns up to 0.6 retries per second.

    Each Retrier has a budget of its own, unless you pass one budget to several of them.
    With ``max_tokens=math.inf`` it never runs out. Thread-safe. Raises ValueError for a
    wrong argument.
    """

    def __init__(
        self,
        max_tokens: float = 10.0,
        *,
        tokens_per_success: float = 0.1,
        tokens_per_second: float = 0.5,
    ) -> None:
        if max_tokens != math.inf:
            _check_number("max_tokens", max_tokens, "number")
        _check_number("tokens_per_success", tokens_per_success, "number")
        _check_number("tokens_per_second", tokens_per_second, "number")
        self.max_tokens = max_tokens
        self.tokens_per_success = tokens_per_success
        self.tokens_per_second = tokens_per_second
        self._tokens = max_tokens
        self._updated_at = time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take one token for a retry. Return False, and take none, if less than one is left."""
        with self._lock:
            now = time.monotonic()
            self._add((now - self._updated_at) * self.tokens_per_second)
            self._updated_at = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def earn(self) -> None:
        """Add the tokens that a successful call earns."""
        if self._tokens < self.max_tokens:
            with self._lock:
                self._add(self.tokens_per_success)

    def _add(self, tokens: float) -> None:
        self._tokens = min(self.max_tokens, self._tokens + tokens)

    def __repr__(self) -> str:
        return f"RetryBudget({self.max_tokens:g}, tokens={self._tokens:.1f})"


class Retrier:
    """Call an operation until it succeeds, at most ``max_attempts`` times.

    All times are in seconds. After attempt n, the Retrier waits a random time between 0 and
    ``min(max_delay, base_delay * 2**(n-1))``, or exactly that long with ``jitter=False``.
    If the server sent a Retry-After, the Retrier waits that long instead. It does not wait
    but raises the error at once if the Retry-After is longer than ``max_retry_after``, or if
    the wait would end after ``total_timeout``, counted from the start of the call (None
    means no limit).

    ``retry_if(error)`` decides whether an error is worth another attempt; the default looks
    at the error's ``retryable`` attribute. ``budget`` limits the retries of all calls
    together (see RetryBudget); with None, the Retrier makes a budget of its own.

    Each wait is logged at INFO. For more, pass hooks; attempts count from 1, and an
    exception that a hook raises reaches the caller. ``on_attempt(attempt)`` is called before
    each attempt, ``on_wait(attempt, error, delay)`` before each wait,
    ``on_recovery(attempt)`` after a success that took more than one attempt, and
    ``on_give_up(attempt, error, reason)`` before the last error is raised, with one of the
    GiveUpReason texts.

    Thread-safe. Threads and asyncio tasks may share one Retrier. Raises ValueError for a
    wrong argument.
    """

    def __init__(
        self,
        max_attempts: int = 3,
        *,
        base_delay: float = 1.0,
        max_delay: float = 30.0,
        jitter: bool = True,
        max_retry_after: float = 60.0,
        total_timeout: float | None = None,
        retry_if: Callable[[Exception], bool] = is_retryable,
        budget: RetryBudget | None = None,
        on_attempt: Callable[[int], object] | None = None,
        on_wait: Callable[[int, Exception, float], object] | None = None,
        on_recovery: Callable[[int], object] | None = None,
        on_give_up: Callable[[int, Exception, GiveUpReason], object] | None = None,
    ) -> None:
        if type(max_attempts) is not int or max_attempts < 1:
            raise ValueError(f"max_attempts must be an integer >= 1, got {max_attempts!r}")
        _check_number("base_delay", base_delay, "number of seconds")
        _check_number("max_delay", max_delay, "number of seconds")
        _check_number("max_retry_after", max_retry_after, "number of seconds")
        if total_timeout is not None:
            _check_number("total_timeout", total_timeout, "number of seconds")
        self.max_attempts = max_attempts
        self.base_delay = base_delay
        self.max_delay = max_delay
        self.jitter = jitter
        self.max_retry_after = max_retry_after
        self.total_timeout = total_timeout
        self.budget = RetryBudget() if budget is None else budget
        self._retry_if = retry_if
        self._on_attempt = on_attempt
        self._on_wait = on_wait
        self._on_recovery = on_recovery
        self._on_give_up = on_give_up

    def call(self, operation: Callable[[], T]) -> T:
        """Call the operation, with retries. Return its result, or raise its last attempt's error.

        KeyboardInterrupt and SystemExit are not retried; they pass through at once. Raises
        TypeError if the operation returns an awaitable, which has not run yet.
        """
        started_at = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            self._before_attempt(attempt)
            try:
                result = operation()
            except Exception as error:
                delay = self._delay_after(error, attempt, started_at)
                if delay is None:
                    raise
                time.sleep(delay)
            else:
                if hasattr(type(result), "__await__"):
                    raise _not_awaited(result)
                self._after_success(attempt)
                return result

    async def call_async(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Do what ``call`` does, for an async operation, without blocking the event loop.

        A cancelled task is not retried: asyncio.CancelledError passes through at once.
        """
        started_at = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            self._before_attempt(attempt)
            try:
                result = await operation()
            except Exception as error:
                delay = self._delay_after(error, attempt, started_at)
                if delay is None:
                    raise
                await asyncio.sleep(delay)
            else:
                self._after_success(attempt)
                return result

    def __call__(self, function: F) -> F:
        """Decorate a function or an async function, so that each call to it is retried."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                "cannot decorate a generator, which runs after the call has returned: "
                "decorate what it calls"
            )

        @functools.wraps(function)
        def retried(*args: Any, **kwargs: Any) -> Any:
            return self.call(lambda: function(*args, **kwargs))

        @functools.wraps(function)
        async def retried_async(*args: Any, **kwargs: Any) -> Any:
            return await self.call_async(lambda: function(*args, **kwargs))

        return cast("F", retried_async if inspect.iscoroutinefunction(function) else retried)

    def __repr__(self) -> str:
        return f"Retrier({self.max_attempts}, base_delay={self.base_delay:g}, budget={self.budget})"

    def _before_attempt(self, attempt: int) -> None:
        if self._on_attempt:
            self._on_attempt(attempt)

    def _after_success(self, attempt: int) -> None:
        self.budget.earn()
        if attempt > 1 and self._on_recovery:
            self._on_recovery(attempt)

    def _delay_after(self, error: Exception, attempt: int, started_at: float) -> float | None:
        """Return the seconds to wait after a failed attempt, or None to give up."""
        retry_after = _retry_after(error)
        delay = self._backoff(attempt) if retry_after is None else retry_after
        elapsed = time.monotonic() - started_at
        reason = self._reason_to_give_up(error, attempt, delay, elapsed)
        if reason:
            if self._on_give_up:
                self._on_give_up(attempt, error, reason)
            return None
        if self._on_wait:
            self._on_wait(attempt, error, delay)
        _logger.info(
            "Attempt %d of %d failed (%s: %s), waiting %.2f s",
            attempt, self.max_attempts, type(error).__name__, error, delay,
        )  # fmt: skip
        return delay

    def _reason_to_give_up(
        self, error: Exception, attempt: int, delay: float, elapsed: float
    ) -> GiveUpReason | None:
        if not self._retry_if(error):
            return "not retryable"
        if attempt >= self.max_attempts:
            return "attempts exhausted"
        if (_retry_after(error) or 0) > self.max_retry_after:
            return "Retry-After too long"
        if self.total_timeout is not None and elapsed + delay > self.total_timeout:
            return "total timeout"
        if not self.budget.take():  # checked last, since it takes a token
            return "retry budget exhausted"
        return None

    def _backoff(self, attempt: int) -> float:
        doublings = min(attempt - 1, 1000)  # 2.0**1024 would overflow
        ceiling = min(self.max_delay, self.base_delay * 2.0**doublings)
        # Jitter comes after the cap: before it, all clients at the cap would wait equally long.
        return random.uniform(0, ceiling) if self.jitter else ceiling


def _retry_after(error: Exception) -> float | None:
    """Return the error's ``retry_after``, or None if it is not a finite number >= 0."""
    value: Any = getattr(error, "retry_after", None)
    return value if type(value) in (int, float) and 0 <= value < math.inf else None


def _not_awaited(result: object) -> TypeError:
    if inspect.iscoroutine(result):
        result.close()  # otherwise Python warns that it was never awaited
    return TypeError("the operation returned an awaitable, which has not run: use call_async")


def _check_number(name: str, value: object, kind: str) -> None:
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} must be a {kind} >= 0, got {value!r}")
