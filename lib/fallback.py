# SPDX-License-Identifier: MIT-0
"""Fall back: try several ways to get an answer, the best one first, until one succeeds.

Copy this file alone: it needs the standard library only.

    >>> def ask_the_api(context):
    ...     raise ConnectionError("the service is down")
    >>> handler = FallbackHandler()
    >>> handler.add_strategy("api", ask_the_api, priority=10)
    >>> handler.add_strategy("apology", lambda context: "Please try again later.")
    >>> handler.execute({"prompt": "Hello!"})
    'Please try again later.'

Each strategy that fails is logged as a warning. Otherwise nobody would notice that the
service is failing, since the users still get answers. An error that you must fix, such as
a wrong key, is raised at once, because a fallback would hide it.

After the fallbacks in Ben Christensen's "Fault Tolerance in a High Volume, Distributed
System" (Netflix Tech Blog, 2012).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from types import AsyncGeneratorType, GeneratorType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Context = dict[str, Any]
Strategy = Callable[[Context], Any]
Errors = dict[str, Exception]  # by the name of the strategy that raised it

_logger = logging.getLogger(__name__)


def is_client_error(error: Exception) -> bool:
    """Return True if the error is a mistake of the caller, which a fallback would only hide.

    With an HTTP status (``status_code`` or ``response.status_code``), that means a 4xx other
    than 408, 409 and 429: a wrong key, for example, or a malformed request. Without a status,
    it means that the error has ``retryable = False`` and is not a TimeoutError (the errors of your
    own limiters are TimeoutErrors). An error with ``another_model_may_help = True`` is never such a
    mistake: the prompt may be too long for this model only, or the model unknown.
    """
    if getattr(error, "another_model_may_help", False) or isinstance(error, TimeoutError):
        return False
    status = _status(error)
    if isinstance(status, int):
        return 400 <= status <= 499 and status not in (408, 409, 429)
    return getattr(error, "retryable", True) is False


class FallbackHandler:
    """Try strategies, the highest priority first, until one gives an answer.

    A strategy is a function that gets the context, a dict, and returns an answer, or None
    for "no answer, try the next one". If it raises an error for which ``stop_on(error)`` is
    true, ``execute`` raises this error and tries no further strategy.

    Thread-safe. Threads and asyncio tasks may share one handler. Raises ValueError for a
    wrong argument, and TypeError for an async ``stop_on``.
    """

    def __init__(self, stop_on: Callable[[Exception], bool] = is_client_error) -> None:
        self._stop_on = _predicate("stop_on", stop_on)
        self._strategies: dict[str, tuple[float, Strategy]] = {}

    def add_strategy(self, name: str, strategy: Strategy, priority: float = 0) -> None:
        """Add a strategy. Of two with the same priority, the one added first is tried first.

        Raises ValueError for a name that is already used, since errors are reported by name,
        for a priority that is not a number, and for a strategy that is not a function.
        """
        if not callable(strategy):  # an answer, for example: ask() instead of ask
            raise ValueError(
                f"strategy must be a function that takes the context, got {strategy!r}"
            )
        if type(priority) not in (int, float) or priority != priority:
            raise ValueError(f"priority must be a number, got {priority!r}")
        entry = (priority, strategy)
        if self._strategies.setdefault(name, entry) is not entry:  # one step, also for threads
            raise ValueError(f"there is already a strategy named {name!r}")

    def execute(self, context: Context | None = None) -> Any:
        """Return the first answer that is not None: 0, "" and False are answers.

        Raises AllStrategiesFailedError if there is none, and TypeError if a strategy returns
        an awaitable or a generator, which has not run yet. Ctrl-C passes through at once.
        """
        context = {} if context is None else context
        errors: Errors = {}
        try:
            for name, (_, strategy) in self._in_order():
                try:
                    answer = strategy(context)
                except Exception as error:
                    if self._stop_on(error):
                        raise
                    _record(name, error, errors)
                else:
                    if _is_answer(name, answer):
                        return answer
            raise _all_failed(errors)
        finally:
            errors.clear()  # they refer to this frame, and it to them

    async def execute_async(self, context: Context | None = None) -> Any:
        """Do what ``execute`` does, with strategies that are plain or async functions.

        A plain function runs in the event loop's thread, so it must not block. A cancelled
        task tries no further strategy.
        """
        context = {} if context is None else context
        errors: Errors = {}
        try:
            for name, (_, strategy) in self._in_order():
                try:
                    answer = strategy(context)
                    if inspect.isawaitable(answer):
                        answer = await answer
                except Exception as error:
                    if self._stop_on(error):
                        raise
                    _record(name, error, errors)
                else:
                    if _is_answer(name, answer):
                        return answer
            raise _all_failed(errors)
        finally:
            errors.clear()

    def __repr__(self) -> str:
        return f"FallbackHandler(strategies={list(dict(self._in_order()))})"

    def _in_order(self) -> list[tuple[str, tuple[float, Strategy]]]:
        strategies = self._strategies.copy().items()  # others may add one meanwhile
        return sorted(strategies, key=lambda item: -item[1][0])


class AllStrategiesFailedError(Exception):
    """No strategy gave an answer. ``errors`` maps a strategy's name to its exception."""

    def __init__(self, errors: Errors) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        causes = "; ".join(f"{name}: {_text(error)}" for name, error in self.errors.items())
        return f"All fallback strategies failed: {causes or 'none gave an answer'}"


def _record(name: str, error: Exception, errors: Errors) -> None:
    errors[name] = error
    _logger.warning("Fallback strategy '%s' failed (%s)", name, _class_and_status(error))


def _is_answer(name: str, answer: object) -> bool:
    """Return False for None. Raise TypeError for an awaitable or a generator: nothing has run."""
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()  # otherwise Python warns that it was never awaited
        raise TypeError(f"strategy {name!r} returned an awaitable: use execute_async")
    if _is_new_generator(answer):
        raise TypeError(
            f"strategy {name!r} returned a generator, which has not run: "
            "iterate over it inside the strategy"
        )
    if answer is not None:
        _logger.info("Fallback strategy '%s' succeeded", name)
    return answer is not None


def _all_failed(errors: Errors) -> AllStrategiesFailedError:
    failure = AllStrategiesFailedError(errors.copy())
    failure.__cause__ = next(reversed(errors.values()), None)
    return failure


def _status(error: Exception) -> object:
    response = getattr(error, "response", None)
    return getattr(error, "status_code", getattr(response, "status_code", None))


def _class_and_status(error: Exception) -> str:
    """Describe the error without its text, which may hold a secret."""
    name, status = type(error).__name__, _status(error)
    return f"{name}, status {status}" if isinstance(status, int) else name


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # its __str__ raised
        return type(error).__name__


def _is_new_generator(value: object) -> bool:
    """Return True for a generator that has not started, and for any async generator.

    Before Python 3.12, an async generator does not show whether it has started.
    """
    if isinstance(value, GeneratorType):
        return inspect.getgeneratorstate(value) == inspect.GEN_CREATED
    return isinstance(value, AsyncGeneratorType)


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
