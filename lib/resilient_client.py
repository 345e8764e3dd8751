# SPDX-License-Identifier: MIT-0
"""Call the Mistral API with all helpers combined: a MistralClient in a Pipeline.

    with MistralClient(api_key) as client:
        resilient = ResilientMistralClient(client)
        print(resilient.chat([{"role": "user", "content": "Hello!"}]).content)

``pipeline.py`` says how the helpers nest and why. This file adds two things: each attempt gets the
time that is left, and the failed attempts are remembered.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Protocol, TypedDict, TypeVar

from .circuit_breaker import CircuitBreaker
from .client import ChatCompletion, ChatStream, MistralClient
from .error_logger import ErrorLogger
from .pipeline import Attempt, Pipeline, RequestLimiter, TokensLimiter
from .retry import Retrier
from .token_limiter import estimate_tokens

T = TypeVar("T")

MAX_REMEMBERED_ERRORS = 100


class RememberedError(TypedDict):
    """One failed attempt; ``timestamp`` is in UTC, in the format of the log file."""

    type: str
    message: str
    context: dict[str, Any]
    timestamp: str


class ResilientMistralClient:
    """Protect the calls of a MistralClient with the helpers. Thread-safe.

    You may pass your own helpers. By default there are three attempts and a circuit breaker,
    but no pacing and no log: pass a ``limiter`` (requests per minute), a ``token_limiter`` or
    both, and a ``logger``.

    The retrier's ``total_timeout`` limits a call with all its attempts and waits. Each attempt
    gets the time that is left, or the client's own total timeout if that is shorter. Set it in
    a web handler. By default there is no such limit, and the worst case is half an hour: three
    attempts of up to 600 s, plus waits.

    ``error_log`` holds the last 100 failed attempts, including those of calls that succeeded
    in the end.
    """

    def __init__(
        self,
        client: MistralClient,
        *,
        retrier: Retrier | None = None,
        breaker: CircuitBreaker | None = None,
        limiter: RequestLimiter | None = None,
        token_limiter: ObservingTokensLimiter | None = None,
        logger: ErrorLogger | None = None,
    ) -> None:
        self.client = client
        self.retrier = retrier or Retrier()
        self.breaker = breaker or CircuitBreaker("mistral-api")
        self.limiter = limiter
        self.token_limiter = token_limiter
        self.logger = logger
        self._pipeline = Pipeline(
            retrier=self.retrier,
            breaker=self.breaker,
            limiter=limiter,
            token_limiter=token_limiter,
            logger=logger,
        )
        self._errors: deque[RememberedError] = deque(maxlen=MAX_REMEMBERED_ERRORS)

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

        tokens = _estimate(messages, max_tokens)
        return self._call(operation, "chat", {"model": model}, tokens)

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
        context = {"model": model}

        def pieces(attempt: Attempt) -> Iterator[str]:
            client = self._client_for(attempt)
            with (
                self._remembering(context),
                client.stream(messages, model=model, max_tokens=max_tokens, **parameters) as stream,
            ):
                yield from stream
                self._settle(attempt, stream)

        tokens = _estimate(messages, max_tokens)
        return self._pipeline.stream(pieces, name="stream", tokens=tokens, context=context)

    def request(
        self,
        operation: Callable[[MistralClient], T],
        context: Mapping[str, Any] | None = None,
        *,
        type: str = "request",
    ) -> T:
        """Call ``operation(client)`` with all helpers and return its result.

        ``context`` is written to the log, with the number of attempts that were sent. Raises
        the last attempt's own error. If nothing was sent, it raises CircuitOpenError, or the
        timeout error of a limiter that had no slot within the retrier's total timeout.

        The operation must be complete when it returns; for a stream, call ``stream``.
        """
        return self._call(operation, type, dict(context or {}), tokens=0)

    @property
    def error_log(self) -> list[RememberedError]:
        """The last failed attempts, oldest first."""
        return list(self._errors.copy())  # in one step, while other threads append

    def __repr__(self) -> str:
        parts = (self.client, self.retrier, self.breaker, self.limiter, self.token_limiter)
        return f"ResilientMistralClient({', '.join(repr(part) for part in parts if part)})"

    def _call(
        self,
        operation: Callable[[MistralClient], T],
        name: str,
        context: dict[str, Any],
        tokens: int,
    ) -> T:
        def one_attempt(attempt: Attempt) -> T:
            with self._remembering(context):
                result = operation(self._client_for(attempt))
            if isinstance(result, ChatCompletion):
                self._settle(attempt, result)
            return result

        return self._pipeline.call(one_attempt, name=name, tokens=tokens, context=context)

    def _client_for(self, attempt: Attempt) -> MistralClient:
        """Return the client with the time that is left, if that is shorter than its own."""
        if attempt.remaining is None:
            return self.client
        shorter = min(attempt.remaining, self.client.total_timeout)
        return self.client.with_options(total_timeout=shorter)

    def _settle(self, attempt: Attempt, result: ChatCompletion | ChatStream) -> None:
        """Settle the tokens, and adopt the limits that the server reported."""
        if result.usage is not None:
            attempt.settle(max(0, result.usage.total_tokens))
        if self.token_limiter is not None:
            self.token_limiter.observe(result.limits)

    @contextlib.contextmanager
    def _remembering(self, context: dict[str, Any]) -> Iterator[None]:
        """Add an attempt that fails to the error log."""
        try:
            yield
        except Exception as error:
            self._errors.append(
                {
                    "type": type(error).__name__,
                    "message": _text(error),
                    "context": context,
                    "timestamp": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                }
            )
            raise


def _estimate(messages: Sequence[Mapping[str, Any]], max_tokens: int | None) -> int:
    try:
        estimate = estimate_tokens(messages, max_tokens)
    except (AttributeError, TypeError):
        return 0  # the messages are invalid: the client will raise and say why
    # An invalid max_tokens (-100, 2.5) is for the API to reject, not for the limiter.
    return estimate if type(estimate) is int and estimate >= 0 else 0


def _text(error: Exception) -> str:
    with contextlib.suppress(Exception):
        return str(error)
    return "<unreadable>"


class ObservingTokensLimiter(TokensLimiter, Protocol):
    """A TokenLimiter or SharedTokenLimiter."""

    def observe(self, limits: Any) -> None:
        """Follow the server's numbers (``completion.limits``)."""
