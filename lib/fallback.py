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
service is failing, since the users still get answers. A mistake of the caller, such as a
wrong key, is raised at once: a fallback would only hide it.

After the fallbacks in Ben Christensen's "Fault Tolerance in a High Volume, Distributed
System" (Netflix Tech Blog, 2012).
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

Context = dict[str, Any]
Strategy = Callable[[Context], Any]

_logger = logging.getLogger(__name__)


class AllStrategiesFailedError(Exception):
    """No strategy gave an answer. ``errors`` maps a strategy's name to its exception."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        causes = "; ".join(f"{name}: {error}" for name, error in self.errors.items())
        return f"All fallback strategies failed: {causes or 'none gave an answer'}"


def is_client_error(error: Exception) -> bool:
    """Return True if the error is a mistake of the caller, which a fallback would only hide.

    With an HTTP status (``status_code``), that means a 4xx other than 408, 409 and 429: a
    wrong key, for example, or a malformed request. Without a status, it means that the error
    has ``retryable = False``.
    """
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return 400 <= status <= 499 and status not in (408, 409, 429)
    return getattr(error, "retryable", True) is False


class FallbackHandler:
    """Try strategies, the highest priority first, until one gives an answer.

    A strategy is a function that gets the context, a dict, and returns an answer, or None
    for "no answer, try the next one". If it raises an error for which ``stop_on(error)`` is
    true, ``execute`` raises this error and tries no further strategy.

    Thread-safe. Threads and asyncio tasks may share one handler.
    """

    def __init__(self, stop_on: Callable[[Exception], bool] = is_client_error) -> None:
        self._stop_on = stop_on
        self._strategies: dict[str, tuple[float, Strategy]] = {}
        self._lock = threading.Lock()

    def add_strategy(self, name: str, strategy: Strategy, priority: float = 0) -> None:
        """Add a strategy. Of two with the same priority, the one added first is tried first.

        Raises ValueError for a name that is already used, since errors are reported by name,
        and for a priority that is not a number.
        """
        if type(priority) not in (int, float) or priority != priority:
            raise ValueError(f"priority must be a number, got {priority!r}")
        with self._lock:
            if name in self._strategies:
                raise ValueError(f"there is already a strategy named {name!r}")
            strategies = {**self._strategies, name: (priority, strategy)}
            by_priority = sorted(strategies.items(), key=lambda item: -item[1][0])
            # Copy on write: concurrent `execute` calls keep iterating over the old dict.
            self._strategies = dict(by_priority)

    def execute(self, context: Context | None = None) -> Any:
        """Return the first answer that is not None: 0, "" and False are answers.

        Raises AllStrategiesFailedError if there is none, and TypeError if a strategy
        returns an awaitable. Ctrl-C passes through at once.
        """
        errors: dict[str, Exception] = {}
        for name, (_, strategy) in self._strategies.items():
            try:
                answer = strategy({} if context is None else context)
            except Exception as error:
                self._after_failure(name, error, errors)
                continue
            if inspect.isawaitable(answer):
                raise _not_awaited(name, answer)
            if answer is not None:
                _logger.info("Fallback strategy '%s' succeeded", name)
                return answer
        raise _all_failed(errors)

    async def execute_async(self, context: Context | None = None) -> Any:
        """Do what ``execute`` does, with strategies that are plain or async functions.

        A plain function runs in the event loop's thread, so it must not block. A cancelled
        task tries no further strategy.
        """
        errors: dict[str, Exception] = {}
        for name, (_, strategy) in self._strategies.items():
            try:
                answer = strategy({} if context is None else context)
                if inspect.isawaitable(answer):
                    answer = await answer
            except Exception as error:
                self._after_failure(name, error, errors)
                continue
            if answer is not None:
                _logger.info("Fallback strategy '%s' succeeded", name)
                return answer
        raise _all_failed(errors)

    def __repr__(self) -> str:
        return f"FallbackHandler(strategies={list(self._strategies)})"

    def _after_failure(self, name: str, error: Exception, errors: dict[str, Exception]) -> None:
        """Record and log the error, or raise it if ``stop_on`` says so."""
        if self._stop_on(error):
            raise error
        errors[name] = error
        _logger.warning("Fallback strategy '%s' failed: %s", name, error)


def _all_failed(errors: dict[str, Exception]) -> AllStrategiesFailedError:
    failure = AllStrategiesFailedError(errors)
    failure.__cause__ = next(reversed(errors.values()), None)
    return failure


def _not_awaited(name: str, answer: object) -> TypeError:
    if inspect.iscoroutine(answer):
        answer.close()  # otherwise Python warns that it was never awaited
    return TypeError(f"strategy {name!r} returned an awaitable: use execute_async")
