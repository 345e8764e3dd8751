# SPDX-License-Identifier: MIT-0
"""Put together: a client that retries, guards, paces and logs. A fallback goes around it.

    log( retry( breaker( limiter( call ))))

The order matters. Each attempt passes the breaker, so an open circuit ends the retries
at once. The limiter is inside the breaker, so a refused call uses no slot, and inside
the retry, so a retry waits for its turn like everybody. The log is outside: one line a
request, however many attempts it took.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from .circuit_breaker import CircuitBreaker
from .client import ChatCompletion, MistralClient
from .error_logger import ErrorLogger
from .errors import APIConnectionError, APIResponseValidationError, MistralError, RateLimitError
from .rate_limiter import RateLimiter
from .retry import Retrier

T = TypeVar("T")

MAX_REMEMBERED_ERRORS = 100


class RememberedError(TypedDict):
    """One failed attempt; ``timestamp`` is in seconds since the epoch."""

    type: str
    message: str
    context: dict[str, Any]
    timestamp: float


class ResilientMistralClient:
    """A client and its helpers, each of which you may bring yourself; safe for threads.

    ``error_log`` holds the last 100 failed attempts, the recovered ones too.
    """

    def __init__(
        self,
        client: MistralClient,
        *,
        retrier: Retrier | None = None,
        breaker: CircuitBreaker | None = None,
        limiter: RateLimiter | None = None,
        logger: ErrorLogger | None = None,
    ) -> None:
        self.client = client
        self.retrier = retrier or Retrier()
        self.breaker = breaker or CircuitBreaker("mistral-api", counts_as_failure=is_unhealthy)
        self.limiter = limiter or RateLimiter()
        self.logger = logger or ErrorLogger()
        self._errors: deque[RememberedError] = deque(maxlen=MAX_REMEMBERED_ERRORS)
        self._lock = threading.Lock()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str = "mistral-small-latest",
        **parameters: Any,
    ) -> ChatCompletion:
        """``MistralClient.chat``, made resilient. Raises what ``request`` raises."""
        return self.request(
            lambda client: client.chat(messages, model=model, **parameters),
            {"model": model},
            type="chat",
        )

    def request(
        self,
        operation: Callable[[MistralClient], T],
        context: Mapping[str, Any] | None = None,
        *,
        type: str = "request",
    ) -> T:
        """The result of ``operation(client)``, retried, guarded, paced and logged.

        ``context`` goes to the log, with the number of attempts that were sent. Raises
        the last attempt's own error, CircuitOpenError where the circuit is open, or
        TimeoutError where the limiter has no slot within the retrier's deadline.

        The operation must be over when it returns: of a stream, return the joined text.
        """
        attempts_sent = 0
        begun, deadline = time.monotonic(), self.retrier.total_timeout
        known: dict[str, Any] = dict(context or {})

        def call() -> T:
            nonlocal attempts_sent
            left = None if deadline is None else max(0.0, begun + deadline - time.monotonic())
            self.limiter.acquire(left)
            attempts_sent += 1
            try:
                return operation(self.client)
            except Exception as error:
                self._remember(error, known)
                if isinstance(error, RateLimitError):
                    self._pause(error.retry_after)
                raise

        try:
            result = self.retrier.call(lambda: self.breaker.call(call))
        except Exception as error:
            self.logger.log_request(type, False, error, {**known, "attempts": attempts_sent})
            raise
        self.logger.log_request(type, True, None, {**known, "attempts": attempts_sent})
        return result

    @property
    def error_log(self) -> list[RememberedError]:
        """The last failed attempts, the oldest first."""
        with self._lock:
            return list(self._errors)

    def _pause(self, seconds: float | None) -> None:
        """Hold back all who share the limit, so that they needn't be refused to learn of it."""
        if seconds is not None and 0 <= seconds < math.inf:
            self.limiter.pause(min(seconds, self.retrier.max_retry_after))

    def _remember(self, error: Exception, context: dict[str, Any]) -> None:
        entry: RememberedError = {
            "type": error.__class__.__name__,
            "message": str(error),
            "context": context,
            "timestamp": time.time(),
        }
        with self._lock:
            self._errors.append(entry)


def is_unhealthy(error: Exception) -> bool:
    """Does the error speak against the API? An HTML page with a 200 does, a 401 does not."""
    return isinstance(error, (APIConnectionError, APIResponseValidationError)) or (
        isinstance(error, MistralError) and error.retryable
    )
