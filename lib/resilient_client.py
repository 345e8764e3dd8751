# SPDX-License-Identifier: MIT-0
"""Call the Mistral API with all helpers combined: retry, circuit breaker, limiters and log.

    log( retry( breaker( limiters( call ))))

The helpers nest like this, and the order matters:

- The breaker is inside the retry, so it sees each attempt, and an open circuit ends the
  retries at once. If it wrapped the retries, it would see one failure per request: with 3
  attempts and a threshold of 5, 15 attempts would fail before it opened, instead of 5.
- The limiters are inside the retry, so each attempt waits for its turn. They are inside the
  breaker, so a rejected call uses no slot.
- The log is outside: it gets one line per request, however many attempts the request took.

If you use a fallback, put it around all of this.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict, TypeVar

from .circuit_breaker import CircuitBreaker
from .client import ChatCompletion, ChatStream, Limits, MistralClient, Usage
from .error_logger import ErrorLogger
from .errors import APIStatusError, InvalidRequestError, RateLimitError
from .retry import Retrier
from .token_limiter import TokenLimiter, TokenReservation, estimate_tokens

T = TypeVar("T")

MAX_REMEMBERED_ERRORS = 100
MIN_SECONDS_FOR_A_CALL = 0.01  # a timeout must be > 0


class RequestLimiter(Protocol):
    """The methods of RateLimiter and SharedRateLimiter that ResilientMistralClient calls."""

    def acquire(self, timeout: float | None = None) -> float:
        """Wait for a free slot and take it."""

    def pause(self, seconds: float) -> None:
        """Block all new starts for ``seconds``."""


class RememberedError(TypedDict):
    """One failed attempt; ``timestamp`` is in seconds since the epoch."""

    type: str
    message: str
    context: dict[str, Any]
    timestamp: float


class ResilientMistralClient:
    """Protect the calls of a MistralClient with the helpers. Thread-safe.

    You may pass your own helpers. By default there is no pacing: pass a ``limiter``
    (requests per minute), a ``token_limiter`` or both. The default ``logger`` writes to
    mistral_errors.log in the current folder.

    The retrier's ``total_timeout`` limits a request with all its attempts and waits: each
    attempt gets only the time that is left. Set it in a web handler. By default there is no
    such limit, and the worst case is half an hour: three attempts of up to 600 s, plus waits.

    ``error_log`` holds the last 100 failed attempts, including those of requests that
    succeeded in the end.
    """

    def __init__(
        self,
        client: MistralClient,
        *,
        retrier: Retrier | None = None,
        breaker: CircuitBreaker | None = None,
        limiter: RequestLimiter | None = None,
        token_limiter: TokenLimiter | None = None,
        logger: ErrorLogger | None = None,
    ) -> None:
        self.client = client
        self.retrier = retrier or Retrier()
        self.breaker = breaker or CircuitBreaker("mistral-api")
        self.limiter = limiter
        self.token_limiter = token_limiter
        self.logger = logger or ErrorLogger()
        self._errors: deque[RememberedError] = deque(maxlen=MAX_REMEMBERED_ERRORS)
        self._lock = threading.Lock()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str = "mistral-small-latest",
        max_tokens: int | None = None,
        **parameters: Any,
    ) -> ChatCompletion:
        """Call ``MistralClient.chat`` with all helpers. Raises the same errors as ``request``."""

        def operation(client: MistralClient) -> ChatCompletion:
            return client.chat(messages, model=model, max_tokens=max_tokens, **parameters)

        request = _Request(self, "chat", {"model": model})
        request.tokens = self._estimate(messages, max_tokens)
        with request.logged():
            return self._attempts(request, operation)

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str = "mistral-small-latest",
        max_tokens: int | None = None,
        **parameters: Any,
    ) -> Generator[str, None, None]:
        """Yield the completion's text piece by piece; the first ``next`` sends the request.

        A failure before the first piece is retried, as in ``chat``. A failure after it raises
        APIStreamBrokenError, since a retry would repeat text that the user has seen. When
        the stream ends, its tokens are settled and its log line is written. If you stop
        early, the log line is written, and the estimate of its tokens stays booked.
        """
        request = _Request(self, "stream", {"model": model})
        request.tokens = self._estimate(messages, max_tokens)

        def first_piece(client: MistralClient) -> tuple[ChatStream, str]:
            stream = client.stream(messages, model=model, max_tokens=max_tokens, **parameters)
            return stream, next(stream, "")

        with request.logged():
            stream, piece = self._attempts(request, first_piece)
            with contextlib.closing(stream):
                try:
                    while piece:
                        yield piece
                        piece = next(stream, "")
                except Exception as error:
                    request.remember(error)
                    with contextlib.suppress(Exception):
                        # The breaker counted a success at the first piece; report the failure.
                        self.breaker.call(_raising(error))
                    raise
                request.settle(stream.usage, stream.limits)

    def request(
        self,
        operation: Callable[[MistralClient], T],
        context: Mapping[str, Any] | None = None,
        *,
        type: str = "request",
    ) -> T:
        """Call ``operation(client)`` with all helpers and return its result.

        ``context`` is written to the log, with the number of attempts that were sent. Raises
        the last attempt's own error, CircuitOpenError while the circuit is open, or a
        limiter's timeout error if no slot is free within the retrier's total timeout.

        The operation must be complete when it returns; for a stream, call ``stream``.
        """
        request = _Request(self, type, dict(context or {}))
        with request.logged():
            return self._attempts(request, operation)

    @property
    def error_log(self) -> list[RememberedError]:
        """The last failed attempts, oldest first."""
        with self._lock:
            return list(self._errors)

    def __repr__(self) -> str:
        parts = (self.client, self.retrier, self.breaker, self.limiter, self.token_limiter)
        return f"ResilientMistralClient({', '.join(repr(part) for part in parts if part)})"

    def _attempts(self, request: _Request, operation: Callable[[MistralClient], T]) -> T:
        return self.retrier.call(lambda: self.breaker.call(lambda: request.attempt(operation)))

    def _estimate(self, messages: Sequence[Mapping[str, Any]], max_tokens: int | None) -> int:
        try:
            estimate = estimate_tokens(messages, max_tokens)
        except (AttributeError, TypeError):
            return 0  # the messages are invalid: the client will raise and say why
        # An invalid max_tokens (-100, 2.5) is for the API to reject, not for the limiter.
        return estimate if type(estimate) is int and estimate >= 0 else 0


class _Request:
    """One request: its attempts, its tokens, and its line in the log."""

    def __init__(self, owner: ResilientMistralClient, type: str, context: dict[str, Any]) -> None:
        self.tokens = 0
        self._owner = owner
        self._type = type
        self._context = context
        self._attempts_sent = 0
        self._reservation: TokenReservation | None = None
        total_timeout = owner.retrier.total_timeout
        self._deadline = None if total_timeout is None else time.monotonic() + total_timeout

    @contextlib.contextmanager
    def logged(self) -> Iterator[None]:
        """Log the request as one line when the block ends. After Ctrl-C, nothing is logged."""
        try:
            yield
        except GeneratorExit:  # the reader of a stream stopped early: not a failure
            self._log(None)
            raise
        except Exception as error:
            self._log(error)
            raise
        else:
            self._log(None)

    def attempt(self, operation: Callable[[MistralClient], T]) -> T:
        """Wait for the limiters, then call the operation."""
        owner = self._owner
        if owner.limiter is not None:
            owner.limiter.acquire(self._remaining())
        if owner.token_limiter is not None:
            self._reservation = owner.token_limiter.reserve(self.tokens, self._remaining())
        client, remaining = owner.client, self._remaining()
        if remaining is not None:
            client = client.with_options(total_timeout=max(remaining, MIN_SECONDS_FOR_A_CALL))
        self._attempts_sent += 1
        try:
            result = operation(client)
        except Exception as error:
            self.remember(error)
            self._after_error(error)
            raise
        if isinstance(result, ChatCompletion):
            self.settle(result.usage, result.limits)
        return result

    def settle(self, usage: Usage | None, limits: Limits) -> None:
        """Settle the reserved tokens; if the usage is unknown, the estimate stays booked."""
        if self._owner.token_limiter is None:
            return
        if usage is not None and self._reservation is not None:
            self._reservation.settle(max(0, usage.total_tokens))
        self._owner.token_limiter.observe(limits)

    def remember(self, error: Exception) -> None:
        """Add a failed attempt to the error log."""
        entry: RememberedError = {
            "type": error.__class__.__name__,
            "message": str(error),
            "context": self._context,
            "timestamp": time.time(),
        }
        with self._owner._lock:
            self._owner._errors.append(entry)

    def _log(self, error: Exception | None) -> None:
        context = {**self._context, "attempts": self._attempts_sent}
        self._owner.logger.log_request(self._type, error is None, error, context)

    def _after_error(self, error: Exception) -> None:
        """Free the tokens of a request that did no work. After a 429, pause all callers."""
        no_work = isinstance(error, (APIStatusError, InvalidRequestError))
        if no_work and self._reservation is not None:
            self._reservation.settle(0)
        if isinstance(error, RateLimitError) and 0 < (error.retry_after or 0) < math.inf:
            seconds = min(error.retry_after or 0, self._owner.retrier.max_retry_after)
            for limiter in (self._owner.limiter, self._owner.token_limiter):
                if limiter is not None:
                    limiter.pause(seconds)

    def _remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())


def _raising(error: Exception) -> Callable[[], None]:
    def operation() -> None:
        raise error

    return operation
