# SPDX-License-Identifier: MIT-0
"""Stop calling a service that is down, so that callers fail fast and the service can recover.

Copy this file alone: it needs the standard library only.

    >>> breaker = CircuitBreaker("api", failure_threshold=1, recovery_timeout=60)
    >>> def call_api():
    ...     raise ConnectionError("the service is down")
    >>> breaker.call(call_api)
    Traceback (most recent call last):
    ConnectionError: the service is down
    >>> try:
    ...     breaker.call(call_api)      # fails fast: nothing is called
    ... except CircuitOpenError as error:
    ...     print(error, "-", error.last_failure)
    Circuit breaker is open - ConnectionError: the service is down

          too many calls fail                  recovery_timeout has passed
    closed ----------------------------> open ----------------------------> half-open
      ^                                    ^                                   |  |
      |                                    +-------- the probe fails ----------+  |
      +--------------------------------------------- the probe succeeds ----------+

While the circuit is closed, calls go through. While it is open, they are rejected at once.
While it is half-open, one call, the probe, goes through.

Why half-open, and why only one probe: the breaker cannot know that the service is back
without trying. If every caller tried at once, they would flood a service that has just
restarted.

After Michael Nygard, "Release It!" (2007), and Martin Fowler's "CircuitBreaker" (2014).
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Literal, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
State = Literal["closed", "open", "half-open"]

HALF_LIFE = 5.0  # seconds in which a past call loses half of its weight
MIN_PROBE_TIME = 1.0  # seconds

_GENERATORS = (GeneratorType, AsyncGeneratorType)
_logger = logging.getLogger(__name__)


def is_service_failure(error: Exception) -> bool:
    """Return True if the error indicates an unhealthy service.

    An error with an HTTP status (``status_code`` or ``response.status_code``) counts, unless
    it is a 4xx: a 400, 401 or 404 is about the request, and a 429 means that you send too
    many requests. An error without a status counts, unless it has ``retryable = False`` or
    comes from another breaker.
    """
    status = _status(error)
    if isinstance(status, int):
        return not 400 <= status <= 499
    rejected = isinstance(error, CircuitOpenError)
    return not rejected and getattr(error, "retryable", True) is not False


class CircuitBreaker:
    """Protect one service. All threads and tasks that call the service share one breaker.

    ``failure_threshold`` failures in a row open the circuit, if at least half of the recent
    calls failed. If many calls run, some failures in a row also happen by chance. A past call loses
    half of its weight every five seconds. More than ``failure_threshold`` recent failures, counted
    with their weight, have the same effect as failures in a row. ``counts_as_failure(error)``
    decides which errors count. An error that does not count changes nothing, and neither does
    Ctrl-C or a cancelled task.

    ``recovery_timeout`` seconds later the circuit is half-open: one call, the probe, goes
    through. If it succeeds, the circuit closes; if it fails, the circuit opens again. If it
    has not ended after another ``recovery_timeout`` (at least a second), the next call becomes the
    probe instead.

    A call inside a running call of the same breaker is part of it: it goes through, and only
    the outcome of the outer one counts. Each change of the state is logged at INFO, with the
    breaker's ``name``. ``on_state_change(name, old_state, new_state)`` is called after
    each change, in the thread that caused it. An exception that it raises reaches the caller.

    Thread-safe. Threads and asyncio tasks may share one breaker. Raises ValueError for a
    wrong argument, and TypeError for an async hook or ``counts_as_failure``.
    """

    def __init__(
        self,
        name: str,
        *,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        counts_as_failure: Callable[[Exception], bool] = is_service_failure,
        on_state_change: Callable[[str, State, State], object] | None = None,
    ) -> None:
        if type(failure_threshold) is not int or failure_threshold < 1:
            raise ValueError(
                f"failure_threshold must be an integer >= 1, got {failure_threshold!r}"
            )
        if type(recovery_timeout) not in (int, float) or not 0 <= recovery_timeout < math.inf:
            raise ValueError(
                f"recovery_timeout must be a number of seconds >= 0, got {recovery_timeout!r}"
            )
        self.name = name
        self.failure_threshold = failure_threshold
        self.recovery_timeout = recovery_timeout
        self._counts_as_failure = _predicate("counts_as_failure", counts_as_failure)
        self._on_state_change = _hook("on_state_change", on_state_change)
        self._state: _Closed | _Open = _Closed()
        self._lock = threading.RLock()  # a signal handler may call what it interrupted
        _breakers.add(self)

    def _must_open(self, calls: _Closed) -> bool:
        threshold = self.failure_threshold
        many = calls.failures_in_a_row >= threshold or calls.failures > threshold
        return many and calls.failures >= calls.successes

    @property
    def state(self) -> State:
        """The state that the next call will find: "closed", "open" or "half-open"."""
        state = self._state
        if isinstance(state, _Closed):
            return "closed"
        return "open" if self._remaining(state) > 0 else "half-open"

    def call(self, operation: Callable[[], T]) -> T:
        """Call the operation, unless the circuit is open. Return its result or raise its error.

        Raises CircuitOpenError, without calling the operation, while the circuit is open or
        a probe is under way. Raises TypeError if the operation returns an awaitable or a
        generator, which has not run yet.
        """
        call = _Call()
        try:
            self._before_call(call)
            result = operation()
        except Exception as error:
            self._after_failure(call, error)
            raise
        else:
            if hasattr(result, "__await__") and isinstance(result, Awaitable):
                raise _not_awaited(result)
            self._after_success(call, result)
            return result
        finally:
            call.ended = True  # lets the next probe through; Ctrl-C cannot interrupt an assignment

    async def call_async(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Do what ``call`` does, for an async operation. A cancelled task changes nothing."""
        call = _Call()
        try:
            self._before_call(call)
            result = await operation()
        except Exception as error:
            self._after_failure(call, error)
            raise
        else:
            self._after_success(call, result)
            return result
        finally:
            call.ended = True

    def check(self) -> None:
        """Raise CircuitOpenError if the circuit is open: for a call that waited inside of it."""
        state = self._state
        if isinstance(state, _Open) and (wait := self._remaining(state)) > 0:
            raise CircuitOpenError(self.name, wait, state.last_failure)

    def __call__(self, function: F) -> F:
        """Decorate a function or an async function, so that each call goes through the breaker."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                "cannot decorate a generator, which runs after the call has returned: "
                "decorate what it calls"
            )

        @functools.wraps(function)
        def protected(*args: Any, **kwargs: Any) -> Any:
            return self.call(lambda: function(*args, **kwargs))

        @functools.wraps(function)
        async def protected_async(*args: Any, **kwargs: Any) -> Any:
            return await self.call_async(lambda: function(*args, **kwargs))

        return cast("F", protected_async if _is_async(function) else protected)

    def reset(self) -> None:
        """Close the circuit and forget all failures; calls that are under way no longer count."""
        with self._lock:
            old, self._state = self._state, _Closed()
        if isinstance(old, _Open):
            self._report(old.name, "closed", "reset")

    def __repr__(self) -> str:
        return (
            f"CircuitBreaker({self.name!r}, failure_threshold={self.failure_threshold}, "
            f"recovery_timeout={self.recovery_timeout:g}, state={self.state!r})"
        )

    def _before_call(self, call: _Call) -> None:
        """Let the call through (as the probe, if half-open) or raise CircuitOpenError."""
        outer = _running(_calls.get())
        call.breaker, call.outer = self, outer
        _calls.set(call)
        while outer and outer.breaker is not self:
            outer = _running(outer.outer)
        if outer:
            return  # the outer call counts
        state = self._state
        if isinstance(state, _Closed):
            call.state = state
            return
        with self._lock:
            state = self._state  # another thread may have changed it in the meantime
            old_name = state.name
            if isinstance(state, _Open):
                wait = self._remaining(state)
                if wait > 0 or state.has_probe():
                    raise CircuitOpenError(self.name, wait, state.last_failure)
                state.admit(call, max(self.recovery_timeout, MIN_PROBE_TIME))
        if old_name == "open":
            self._report("open", "half-open", "the recovery timeout has passed")
        call.state = state  # after the hook: an error that it raises is not a service failure

    def _after_success(self, call: _Call, result: object) -> None:
        if type(result) in _GENERATORS:
            _check_that_it_has_started(result)
        state = call.state
        if state is None:
            return
        if isinstance(state, _Closed):
            state.successes += 1  # without the lock: it does not matter if a success is not counted
            if state.failures_in_a_row:
                with self._lock:
                    state.failures_in_a_row = 0
            return
        with self._lock:
            if state is not self._state:
                return  # the circuit has changed since the call began
            self._state = _Closed()
        self._report("half-open", "closed", "the probe succeeded")

    def _after_failure(self, call: _Call, error: Exception) -> None:
        if call.state is None or not self._counts_as_failure(error):
            return
        last_failure = _text(error)
        with self._lock:
            state = self._state
            if state is not call.state:
                return  # the circuit has changed since the call began
            if isinstance(state, _Closed):
                state.count_failure()
                if not self._must_open(state):
                    return
            self._state = _Open(last_failure)
        self._report(state.name, "open", _class_and_status(error))

    def _report(self, old: State, new: State, reason: str) -> None:
        _logger.info("Circuit %r: %s -> %s (%s)", self.name, old, new, reason)
        self._on_state_change(self.name, old, new)

    def _remaining(self, state: _Open) -> float:
        return max(0.0, state.opened_at + self.recovery_timeout - time.monotonic())

    def _reset_after_fork(self) -> None:
        self._lock = threading.RLock()
        if isinstance(self._state, _Open):
            self._state.probe.ended = True  # its thread is not in this process


class CircuitOpenError(Exception):
    """The circuit is open, so the call was not made.

    ``retry_after`` is the seconds until the circuit lets a probe through, or 0 while a probe
    is under way. ``last_failure`` is the text of the error that opened the circuit. The
    error has no ``retryable`` attribute, so a Retrier does not retry it: waiting for the
    circuit would defeat its purpose. It says nothing about the service, so no breaker counts
    it as a failure.
    """

    def __init__(self, name: str, retry_after: float, last_failure: str = "") -> None:
        super().__init__(name, retry_after, last_failure)
        self.name = name
        self.retry_after = retry_after
        self.last_failure = last_failure

    def __str__(self) -> str:
        return "Circuit breaker is open"


class _Closed:
    """The state of a closed circuit. Each time the circuit closes, it gets a new state object.

    If the state object was replaced while a call ran, the call started under an older state,
    so its outcome is ignored.
    """

    name: State = "closed"

    def __init__(self) -> None:
        self.failures_in_a_row = 0
        self.failures = 0.0  # recent ones: each has lost weight since it was counted
        self.successes = 0.0
        self._weighed_at = time.monotonic()

    def count_failure(self) -> None:
        now = time.monotonic()
        weight = 0.5 ** ((now - self._weighed_at) / HALF_LIFE)
        self._weighed_at = now
        self.successes *= weight
        self.failures = self.failures * weight + 1
        self.failures_in_a_row += 1


class _Open:
    """The state of a circuit that is open or, once the recovery timeout has passed, half-open."""

    def __init__(self, last_failure: str) -> None:
        self.name: State = "open"  # until a probe is admitted
        self.opened_at = time.monotonic()
        self.last_failure = last_failure
        self.probe = _Call()
        self.probe.ended = True  # there is none yet
        self._probe_deadline = 0.0

    def has_probe(self) -> bool:
        return not self.probe.ended and time.monotonic() < self._probe_deadline

    def admit(self, probe: _Call, timeout: float) -> None:
        """Make the call the probe; the outcome of the probe before it will be ignored."""
        self.name = "half-open"
        self.probe.state = None
        self.probe = probe
        self._probe_deadline = time.monotonic() + timeout


class _Call:
    """A call through a breaker: the circuit's state when it began, and whether it has ended."""

    breaker: CircuitBreaker
    outer: _Call | None = None  # the call that it runs inside of
    state: _Closed | _Open | None = None  # None: not let through, or its outcome is ignored
    ended = False


def _running(call: _Call | None) -> _Call | None:
    """Return the call, or the first one around it, that has not ended."""
    while call and call.ended:  # a call that has ended stays in the context
        call = call.outer
    return call


_calls: ContextVar[_Call | None] = ContextVar("innermost call", default=None)
_breakers: weakref.WeakSet[CircuitBreaker] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Free the locks that other threads held at the fork, and forget the parent's calls."""
    _calls.set(None)
    for breaker in _breakers:
        breaker._reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _status(error: Exception) -> object:
    response = getattr(error, "response", None)
    return getattr(error, "status_code", getattr(response, "status_code", None))


def _class_and_status(error: Exception) -> str:
    """Describe the error without its text, which may hold a secret."""
    name, status = type(error).__name__, _status(error)
    return f"{name}, status {status}" if isinstance(status, int) else name


def _text(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its __str__ raised
        return type(error).__name__


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
