# SPDX-License-Identifier: MIT-0
"""Fall back: when the best way to an answer fails, take the next best.

Copy this file alone: it needs the standard library only.

    >>> def ask_the_api(context):
    ...     raise ConnectionError("the service is down")
    >>> handler = FallbackHandler()
    >>> handler.add_strategy("api", ask_the_api, priority=10)
    >>> handler.add_strategy("apology", lambda context: "Please try again later.")
    >>> handler.execute({"prompt": "Hello!"})
    'Please try again later.'

What fails on the way is told to ``logging``, as a warning. The idea is graceful
degradation; see "Release It!" by Michael Nygard (2007).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

Strategy = Callable[[dict[str, Any]], Any]

_logger = logging.getLogger(__name__)


class AllStrategiesFailedError(Exception):
    """No strategy gave an answer. ``errors``: every strategy's exception, by its name."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        causes = "; ".join(f"{name}: {error}" for name, error in self.errors.items())
        return f"All fallback strategies failed: {causes or 'none gave an answer'}"


def is_client_error(error: Exception) -> bool:
    """Is it marked ``retryable = False``: mostly a bad key or request, which a fallback would hide?

    A missing model or an unreadable answer is marked so, too. Where another strategy may
    help with these, give the handler a ``stop_on`` of your own.
    """
    return getattr(error, "retryable", None) is False


class FallbackHandler:
    """Tries strategies, the highest priority first, until one gives an answer.

    An error for which ``stop_on(error)`` is true ends the fall: it is raised as it
    is, and no further strategy is tried. Safe to share between threads.
    """

    def __init__(self, stop_on: Callable[[Exception], bool] = is_client_error) -> None:
        self._stop_on = stop_on
        self._strategies: dict[str, tuple[float, Strategy]] = {}
        self._lock = threading.Lock()

    def add_strategy(self, name: str, strategy: Strategy, priority: float = 0) -> None:
        """Add a way to an answer: called with the context, it returns one or None or raises.

        Of equal priorities the one added first goes first. Raises ValueError for a
        name that is taken, since errors are told by name, or a priority that is NaN.
        """
        if priority != priority:
            raise ValueError("priority must be a number")
        with self._lock:
            if name in self._strategies:
                raise ValueError(f"there is a strategy named {name!r} already")
            strategies = {**self._strategies, name: (priority, strategy)}
            order = sorted(strategies.items(), key=lambda item: -item[1][0])
            self._strategies = dict(order)  # a new dict: who iterates over the old one may go on

    def execute(self, context: dict[str, Any] | None = None) -> Any:
        """The first answer that is not None: 0, "" and False are answers.

        Raises AllStrategiesFailedError when there is none, with every cause in its
        ``errors``. Ctrl-C passes through.
        """
        errors: dict[str, Exception] = {}
        for name, (_, strategy) in self._strategies.items():
            try:
                answer = strategy({} if context is None else context)
            except Exception as error:
                if self._stop_on(error):
                    raise
                errors[name] = error
                _logger.warning("Fallback strategy '%s' failed: %s", name, error)
            else:
                if answer is not None:
                    _logger.info("Fallback strategy '%s' succeeded", name)
                    return answer
        raise AllStrategiesFailedError(errors) from next(reversed(errors.values()), None)
