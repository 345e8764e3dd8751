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

Why exponential backoff: a service that is still down after one second needs more time, not
more requests. Why full jitter (each wait is random, between zero and its length without
jitter): a thousand clients that fail together and wait equally long retry together, and
overload the service again. This is called a thundering herd.

After Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Literal, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
GiveUpReason = Literal[
    "not retryable", "attempts exhausted", "Retry-After too long", "total timeout",
    "retry budget exhausted", "circuit open",
]  # fmt: skip
StopRule = Callable[[Exception], GiveUpReason | None]

jitter_random = random.Random()  # not the global one: programs may seed it alike in each worker

_GENERATORS = (GeneratorType, AsyncGeneratorType)
_logger = logging.getLogger(__name__)


def is_retryable(error: Exception) -> bool:
    """Return the error's ``retryable`` attribute, or False if it has none."""
    return bool(getattr(error, "retryable", False))


def _never(error: Exception) -> None:
    return None


class Retrier:
    """Call an operation until it succeeds, at most ``max_attempts`` times.

    All times are in seconds. After attempt n, the Retrier waits for the Retry-After that the
    server sent, if any, plus a random time between 0 and ``min(max_delay, base_delay *
    2**(n-1))``. With ``jitter=False``, it waits for the longer of the two. Instead of waiting, it
    raises the error if the Retry-After is longer than ``max_retry_after``, or if the wait would end
    after ``total_timeout``, counted from the start of the call (None: no limit).

    ``retry_if(error)`` decides whether an error is worth another attempt. ``budget`` limits
    the retries of all calls together; with None, the Retrier makes a RetryBudget of its own.
    Your own kind of budget needs its methods, ``take`` and ``earn``.

    Hooks, whose attempts count from 1: ``on_attempt(attempt)`` is called before each attempt,
    ``on_wait(attempt, error, delay)`` before each wait, ``on_recovery(attempt)`` after a
    success that took several attempts, ``on_give_up(attempt, error, reason)`` before the last
    error is raised. An exception that a hook raises reaches the caller.

    Thread-safe. Threads and asyncio tasks may share one Retrier. Raises ValueError for a
    wrong argument, and TypeError for an async hook or ``retry_if``.
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
        self.max_attempts = max_attempts
        self.base_delay = _seconds("base_delay", base_delay)
        self.max_delay = _seconds("max_delay", max_delay)
        self.jitter = jitter
        self.max_retry_after = _seconds("max_retry_after", max_retry_after)
        self.total_timeout = total_timeout
        if total_timeout is not None:
            _seconds("total_timeout", total_timeout)
        self.budget = RetryBudget() if budget is None else budget
        if not {"take", "earn"} <= set(dir(type(self.budget))):
            raise ValueError(f"budget must be a RetryBudget or have its methods, got {budget!r}")
        self.retry_if = _predicate("retry_if", retry_if)
        self._on_attempt = _hook("on_attempt", on_attempt)
        self._on_wait = _hook("on_wait", on_wait)
        self._on_recovery = _hook("on_recovery", on_recovery)
        self._on_give_up = _hook("on_give_up", on_give_up)

    def _delay_after(self, error: Exception, attempt: int) -> float:
        """Return the seconds to wait after a failed attempt."""
        doublings = min(attempt - 1, 1000)  # 2.0**1024 would overflow
        backoff = min(self.max_delay, self.base_delay * 2.0**doublings)
        if self.jitter:
            # Cap first, then jitter: the other way round, all clients at the cap wait equally
            # long. A Retry-After needs it too, because many clients get the same one.
            return _retry_after(error) + jitter_random.uniform(0, backoff)
        return max(_retry_after(error), backoff)

    def _reason_to_give_up(
        self, error: Exception, attempt: int, delay: float, elapsed: float
    ) -> GiveUpReason | None:
        if not self.retry_if(error):
            return "not retryable"
        if attempt >= self.max_attempts:
            return "attempts exhausted"
        if _retry_after(error) > self.max_retry_after:
            return "Retry-After too long"
        if self.total_timeout is not None and elapsed + delay > self.total_timeout:
            return "total timeout"
        if not self.budget.take():  # checked last, since it takes a token
            return "retry budget exhausted"
        return None

    def call(self, operation: Callable[[], T], *, stop: StopRule = _never) -> T:
        """Call the operation, with retries. Return its result, or raise its last attempt's error.

        The error's ``gave_up`` is the reason for giving up, one of the GiveUpReason texts.
        ``stop(error)`` may return such a reason, which ends the retries, or None. A Pipeline uses
        it to end them when the circuit has opened. KeyboardInterrupt and SystemExit are not
        retried; they pass through at once. Raises TypeError if the operation returns an awaitable
        or a generator, which has not run yet.

        Retry only what is safe to do twice. A chat call changes nothing on the server, but
        after a timeout the first response may have been generated and billed. If your code
        acts on the answer (sends mail, runs a tool), retry the chat call only, never the
        action. Retry at one layer only: three attempts around an SDK that makes three attempts
        itself are nine requests. Switch the SDK's own retries off: ``OpenAI(max_retries=0)``.
        """
        started_at = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            self._on_attempt(attempt)
            try:
                result = operation()
            except Exception as error:
                delay = self._after_failure(error, attempt, started_at, stop)
                if delay is None:
                    raise
                time.sleep(delay)
            else:
                if hasattr(result, "__await__") and isinstance(result, Awaitable):
                    raise _not_awaited(result)
                self._after_success(result, attempt)
                return result

    async def call_async(
        self, operation: Callable[[], Awaitable[T]], *, stop: StopRule = _never
    ) -> T:
        """Do what ``call`` does, for an async operation, without blocking the event loop.

        A cancelled task is not retried: asyncio.CancelledError passes through at once.
        """
        started_at = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            self._on_attempt(attempt)
            try:
                result = await operation()
            except Exception as error:
                delay = self._after_failure(error, attempt, started_at, stop)
                if delay is None:
                    raise
                await asyncio.sleep(delay)
            else:
                self._after_success(result, attempt)
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

        return cast("F", retried_async if _is_async(function) else retried)

    def __repr__(self) -> str:
        return f"Retrier({self.max_attempts}, base_delay={self.base_delay:g}, budget={self.budget})"

    def _after_success(self, result: object, attempt: int) -> None:
        if type(result) in _GENERATORS:
            _check_that_it_has_started(result)
        self.budget.earn(retries=attempt - 1)
        if attempt > 1:
            self._on_recovery(attempt)

    def _after_failure(
        self, error: Exception, attempt: int, started_at: float, stop: StopRule
    ) -> float | None:
        """Return the seconds to wait before the next attempt, or None to give up."""
        delay = self._delay_after(error, attempt)
        elapsed = time.monotonic() - started_at
        reason = stop(error) or self._reason_to_give_up(error, attempt, delay, elapsed)
        what = f"attempt {attempt} of {self.max_attempts} ({_class_and_status(error)})"
        if reason is None:
            self._on_wait(attempt, error, delay)
            _logger.info("Waiting %.2f s after %s", delay, what)
            return delay
        with contextlib.suppress(Exception):  # some classes allow no new attribute
            error.gave_up = reason  # type: ignore[attr-defined]
        self._on_give_up(attempt, error, reason)
        _logger.info("Giving up after %s: %s", what, reason)
        return None


class RetryBudget:
    """Limit the retries of all calls together, so that they cannot keep a service down.

    If a service fails because it is overloaded, three attempts per call triple its load. The budget
    holds up to ``max_tokens`` retry tokens and starts full. Each retry takes a token, and a call
    that succeeds gives back those that its retries took, so only retries that do not help use up
    the budget. Each success also earns ``tokens_per_success``, and each second
    ``tokens_per_second``. With the defaults, a service that is down gets its normal load, ten
    retries, and one more every 50 seconds.

    Each Retrier has a budget of its own, unless you pass one budget to several of them.
    With ``max_tokens=math.inf`` it never runs out. Thread-safe. Raises ValueError for a
    wrong argument.

    That a successful call gives tokens back is the rule of the AWS SDKs. The numbers (10 tokens,
    0.1 per success) are those of gRPC's retry throttling (proposal A6), where each failed call
    costs a token. Two rules are from Finagle's RetryBudget: a retry costs a token, and time earns
    some.
    """

    def __init__(
        self,
        max_tokens: float = 10.0,
        *,
        tokens_per_success: float = 0.1,
        tokens_per_second: float = 0.02,
    ) -> None:
        self.max_tokens = max_tokens
        if max_tokens != math.inf:
            _number("max_tokens", max_tokens)
        self.tokens_per_success = _number("tokens_per_success", tokens_per_success)
        self.tokens_per_second = _number("tokens_per_second", tokens_per_second)
        self._tokens = max_tokens
        self._updated_at = time.monotonic()
        self._renew_lock()
        _budgets.add(self)

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

    def earn(self, retries: int = 0) -> None:
        """Add what a successful call earns, and give back the tokens that its retries took."""
        if self._tokens < self.max_tokens:
            with self._lock:
                self._add(self.tokens_per_success + retries)

    def __repr__(self) -> str:
        return f"RetryBudget({self.max_tokens:g}, tokens={self._tokens:.1f})"

    def _add(self, tokens: float) -> None:
        self._tokens = min(self.max_tokens, self._tokens + tokens)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()  # a signal handler may call what it interrupted


_budgets: weakref.WeakSet[RetryBudget] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Free the locks that other threads held at the fork, and give the child jitter of its own."""
    jitter_random.seed()
    for budget in _budgets:
        budget._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _retry_after(error: Exception) -> float:
    """Return the error's ``retry_after``, or 0 if it is not a finite number >= 0."""
    value: Any = getattr(error, "retry_after", None)
    return value if type(value) in (int, float) and 0 <= value < math.inf else 0.0


def _class_and_status(error: Exception) -> str:
    """Describe the error without its text, which may hold a secret."""
    status = getattr(error, "status_code", None)
    name = type(error).__name__
    return f"{name}, status {status}" if isinstance(status, int) else name


def _number(name: str, value: float, kind: str = "number") -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a {kind} >= 0, got {value!r}")
    return value


def _seconds(name: str, value: float) -> float:
    return _number(name, value, "number of seconds")


def _hook(name: str, function: Callable[..., object] | None) -> Callable[..., object]:
    return _do_nothing if function is None else _plain(name, function, "function")


def _do_nothing(*arguments: object) -> None:
    pass


def _not_awaited(result: object) -> TypeError:
    if inspect.iscoroutine(result):
        result.close()  # otherwise Python warns that it was never awaited
    return TypeError("the operation returned an awaitable, which has not run: use call_async")


def _check_that_it_has_started(generator: Any) -> None:
    """Raise TypeError for a generator that has not started, and for any async generator.

    Before Python 3.12, an async generator does not show whether it has started.
    """
    is_plain = isinstance(generator, GeneratorType)
    if is_plain and inspect.getgeneratorstate(generator) != inspect.GEN_CREATED:
        return
    raise TypeError(
        "the operation returned a generator, which has not run: "
        "iterate over it inside the operation"
    )


def _predicate(name: str, function: F) -> F:
    kind = "function that takes the error"
    if isinstance(function, type):  # calling it makes an instance, which is always true
        what = function.__name__
        raise ValueError(
            f"{name} must be a {kind}, got the class {what}: "
            f"use lambda error: isinstance(error, {what})"
        )
    return _plain(name, function, kind)


def _plain(name: str, function: F, kind: str) -> F:
    if not callable(function):
        raise ValueError(f"{name} must be a {kind}, got {function!r}")
    if _is_async(function):
        raise TypeError(f"{name} must be a plain function, got an async one: it would never run")
    return function


def _is_async(function: object) -> bool:
    """Return True for an async function and for an object whose ``__call__`` is one."""
    call = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
