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

       failures reach the threshold              recovery_timeout has passed
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
import math
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
State = Literal["closed", "open", "half-open"]


class CircuitOpenError(Exception):
    """The circuit is open, so the call was not made.

    ``retry_after`` is the seconds until the circuit lets a probe through, or 0 while a probe
    is under way. ``last_failure`` is the text of the error that opened the circuit. The
    error has no ``retryable`` attribute, so a Retrier does not retry it: waiting for the
    circuit would defeat its purpose.
    """

    def __init__(self, name: str, retry_after: float, last_failure: str = "") -> None:
        super().__init__(name, retry_after, last_failure)
        self.name = name
        self.retry_after = retry_after
        self.last_failure = last_failure

    def __str__(self) -> str:
        return "Circuit breaker is open"


def is_service_failure(error: Exception) -> bool:
    """Return True if the error indicates an unhealthy service.

    An error with an HTTP status (``status_code``) counts, unless the status is a 4xx: a 400,
    401 or 404 is about the request, and a 429 means that you send too many requests. An
    error without a status counts, unless it has ``retryable = False``.
    """
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return not 400 <= status <= 499
    return getattr(error, "retryable", True) is not False


class _Closed:
    """The state of a closed circuit. Each time the circuit closes, it gets a new state object.

    If the state object was replaced while a call ran, the call's outcome is out of date and
    changes nothing.
    """

    def __init__(self) -> None:
        self.failures = 0  # consecutive


class _Open:
    """The state of a circuit that is open or, once the recovery timeout has passed, half-open."""

    def __init__(self, opened_at: float, last_failure: str) -> None:
        self.opened_at = opened_at
        self.last_failure = last_failure
        self.probe: _Call | None = None


class _Call:
    """A call through the breaker: the state that it began under, and whether it has ended."""

    state: _Closed | _Open | None = None  # None: the circuit did not let it through
    ended = False


class CircuitBreaker:
    """Protect one service. All threads and tasks that call the service share one breaker.

    ``failure_threshold`` consecutive failures open the circuit. ``recovery_timeout`` seconds
    later it is half-open: one call, the probe, goes through. If it succeeds, the circuit
    closes; if it fails, the circuit opens again. ``counts_as_failure(error)`` decides which
    errors count. An error that does not count changes nothing, and neither does Ctrl-C or a
    cancelled task.

    ``on_state_change(name, old_state, new_state)`` is called after each change, in the
    thread that caused it. An exception that it raises reaches the caller.

    Thread-safe. Threads and asyncio tasks may share one breaker. Raises ValueError for a
    wrong argument.
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
        self._counts_as_failure = counts_as_failure
        self._on_state_change = on_state_change
        self._state: _Closed | _Open = _Closed()
        self._lock = threading.Lock()

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
        a probe is under way. Raises TypeError if the operation returns an awaitable.
        """
        call = _Call()
        try:
            self._before_call(call)
            result = operation()
        except Exception as error:
            self._after_failure(call, error)
            raise
        else:
            if hasattr(type(result), "__await__"):
                raise _not_awaited(result)
            self._after_success(call)
            return result
        finally:
            call.ended = True  # frees the probe's place; Ctrl-C cannot interrupt one assignment

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
            self._after_success(call)
            return result
        finally:
            call.ended = True

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

        return cast("F", protected_async if inspect.iscoroutinefunction(function) else protected)

    def reset(self) -> None:
        """Close the circuit and forget all failures; calls that are under way no longer count."""
        with self._lock:
            old, self._state = self._state, _Closed()
        if isinstance(old, _Open):
            self._report("half-open" if old.probe else "open", "closed")

    def __repr__(self) -> str:
        return (
            f"CircuitBreaker({self.name!r}, failure_threshold={self.failure_threshold}, "
            f"recovery_timeout={self.recovery_timeout:g}, state={self.state!r})"
        )

    def _before_call(self, call: _Call) -> None:
        """Let the call through (as the probe, if half-open) or raise CircuitOpenError."""
        state = self._state
        if isinstance(state, _Closed):
            call.state = state
            return
        with self._lock:
            state = self._state  # another thread may have changed it in the meantime
            is_first_probe = False
            if isinstance(state, _Open):
                remaining = self._remaining(state)
                if remaining > 0 or (state.probe and not state.probe.ended):
                    raise CircuitOpenError(self.name, remaining, state.last_failure)
                is_first_probe = state.probe is None
                state.probe = call
        if is_first_probe:
            self._report("open", "half-open")
        call.state = state  # after the hook: an error that it raises is not a service failure

    def _after_success(self, call: _Call) -> None:
        if isinstance(call.state, _Closed) and not call.state.failures:
            return
        with self._lock:
            if call.state is not self._state:
                return  # the circuit has changed since the call began
            if isinstance(call.state, _Closed):
                call.state.failures = 0
                return
            self._state = _Closed()
        self._report("half-open", "closed")

    def _after_failure(self, call: _Call, error: Exception) -> None:
        if call.state is None or not self._counts_as_failure(error):
            return
        with self._lock:
            state = self._state
            if state is not call.state:
                return  # the circuit has changed since the call began
            if isinstance(state, _Closed):
                state.failures += 1
                if state.failures < self.failure_threshold:
                    return
            self._state = _Open(time.monotonic(), f"{type(error).__name__}: {error}")
        self._report("closed" if isinstance(state, _Closed) else "half-open", "open")

    def _report(self, old: State, new: State) -> None:
        if self._on_state_change:
            self._on_state_change(self.name, old, new)

    def _remaining(self, state: _Open) -> float:
        return max(0.0, state.opened_at + self.recovery_timeout - time.monotonic())


def _not_awaited(result: object) -> TypeError:
    if inspect.iscoroutine(result):
        result.close()  # otherwise Python warns that it was never awaited
    return TypeError("the operation returned an awaitable, which has not run: use call_async")
