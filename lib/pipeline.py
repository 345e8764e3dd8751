# SPDX-License-Identifier: MIT-0
"""All helpers in the right order around any operation: plain, async or streamed.

    log( retry( breaker( limiters( call ))))

    >>> pipeline = Pipeline(retrier=Retrier(3), breaker=CircuitBreaker("api"))
    >>> pipeline.call(lambda attempt: f"answer of attempt {attempt.number}")
    'answer of attempt 1'

The order matters:

- The breaker is inside the retry, so it sees each attempt, and an open circuit ends the
  retries at once. If it wrapped the retries, it would see one failure per call: with 3
  attempts and a threshold of 5, 15 attempts would fail before it opened, instead of 5.
- The limiters are inside the retry, so each attempt waits for its turn. They are inside the
  breaker, so a rejected call uses no slot.
- The log is outside: it gets one line per call, however many attempts the call took.

If you use a fallback, put it around all of this. Copy this file with the helpers: it imports
``sdk_errors``, ``retry``, ``circuit_breaker``, ``rate_limiter``, ``token_limiter`` and
``error_logger``, and no SDK.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from .circuit_breaker import CircuitBreaker, CircuitOpenError
from .error_logger import ErrorLogger
from .rate_limiter import RateLimitTimeoutError
from .retry import GiveUpReason, Retrier
from .sdk_errors import mark
from .token_limiter import TokenLimitTimeoutError

P = TypeVar("P")
T = TypeVar("T")
Stream = Iterable[P] | AbstractContextManager[Iterable[P]]
AsyncStream = AsyncIterable[P] | AbstractAsyncContextManager[AsyncIterable[P]]

REJECTIONS = (CircuitOpenError, RateLimitTimeoutError, TokenLimitTimeoutError)
"""Nothing was sent, because one of your own helpers rejected the call: ``except REJECTIONS``."""

TIMEOUT_STATUSES = (408, 504, 524)  # the server may have done the work all the same
MIN_TIMEOUT = 0.01  # seconds; many libraries reject a timeout of 0
END = object()  # follows the last piece of a stream

# What each argument must be, and what no other helper has: so a mix-up is found early.
HELPERS = {
    "retrier": ("a Retrier", "total_timeout"),
    "breaker": ("a CircuitBreaker", "check"),
    "limiter": ("a RateLimiter", "acquire"),
    "token_limiter": ("a TokenLimiter", "reserve"),
    "logger": ("an ErrorLogger", "log_request"),
}

# Where a result says how many tokens were used: where its usage is, and the counts to add.
USAGE = (("usage",), ("usage_metadata",), ("data", "usage"))
TOTALS = (("total_tokens",), ("input_tokens", "output_tokens"))


class Pipeline:
    """Protect operations with the helpers that you pass. A helper that you don't pass is left out.

    Your operation gets an Attempt, and is called once per attempt. An error that it raises is
    marked (see ``sdk_errors.mark``), so that the helpers understand it, whichever library it
    comes from. Switch the library's own retries off.

    The retrier's ``total_timeout`` limits a call with all its attempts and waits, including the
    waits for the limiters. Give your library ``attempt.remaining`` as its timeout. Once the
    circuit has opened, the call waits no longer. If one of your helpers ends the retries, the call
    raises the error of its last attempt. A 429 with a Retry-After pauses all callers that
    share the limiters.

    Thread-safe. Threads and asyncio tasks may share one pipeline. Raises ValueError if an
    argument is not the helper that its name says.
    """

    def __init__(
        self,
        *,
        retrier: Retrier | None = None,
        breaker: CircuitBreaker | None = None,
        limiter: RequestLimiter | None = None,
        token_limiter: TokensLimiter | None = None,
        logger: ErrorLogger | None = None,
    ) -> None:
        self.retrier = retrier or Retrier(max_attempts=1)
        self.breaker = breaker
        self.limiter = limiter
        self.token_limiter = token_limiter
        self.logger = logger
        for name, (kind, attribute) in HELPERS.items():
            helper = getattr(self, name)
            is_right = hasattr(helper, attribute) and not isinstance(helper, type)
            if helper is not None and not is_right:
                raise ValueError(f"{name} must be {kind} or have its methods, got {helper!r}")
        # What is left out lets everything through.
        self._breaker = breaker or _Absent()
        self._limiter = limiter or _Absent()
        self._token_limiter = token_limiter or _Absent()
        self._log = logger or _Absent()

    def call(
        self,
        operation: Callable[[Attempt], T],
        *,
        name: str = "call",
        tokens: int = 0,
        context: Mapping[str, Any] | None = None,
    ) -> T:
        """Call ``operation(attempt)`` with all helpers and return its result.

        ``tokens`` is the estimate that each attempt reserves at the token limiter. A result
        with a ``usage`` settles it; the operation may call ``attempt.settle(used)`` instead.
        ``name`` and ``context`` are written to the log.

        Raises the last attempt's own error, or one of REJECTIONS if nothing was sent, and
        TypeError if the operation returns an awaitable.
        """
        call = _Call(name, tokens, context, self.retrier.total_timeout)

        def limited() -> T:
            with self._attempt(call, self._wait(call)) as attempt:
                return _settle(attempt, operation(attempt))

        with self._logged(call):
            return self._retry(call, lambda: self._breaker.call(limited))

    async def call_async(
        self,
        operation: Callable[[Attempt], Awaitable[T]],
        *,
        name: str = "call",
        tokens: int = 0,
        context: Mapping[str, Any] | None = None,
    ) -> T:
        """Do what ``call`` does, for an async operation. A cancelled task leaves nothing behind."""
        call = _Call(name, tokens, context, self.retrier.total_timeout)

        async def limited() -> T:
            with self._attempt(call, await self._wait_async(call)) as attempt:
                return _settle(attempt, await operation(attempt))

        with self._logged(call):
            return await self._retry_async(call, lambda: self._breaker.call_async(limited))

    def stream(
        self,
        open_stream: Callable[[Attempt], Stream[P]],
        *,
        name: str = "stream",
        tokens: int = 0,
        context: Mapping[str, Any] | None = None,
    ) -> Generator[P, None, None]:
        """Yield the pieces of ``open_stream(attempt)``; the first ``next`` opens the stream.

        The stream may be a generator, any other iterable, or a context manager that gives one. It
        is closed at its end, after an error, and when you stop early.

        A failure before the first piece is retried as in ``call``. After it, a retry would repeat
        text that the user has seen. So a later failure is raised, and counts as a failure for the
        breaker. The tokens are settled at the end, with the ``usage`` of the stream or of its last
        piece. If you stop early, the estimate stays booked.
        """
        call = _Call(name, tokens, context, self.retrier.total_timeout)
        with self._logged(call), contextlib.ExitStack() as opened:

            def limited() -> _Opened:
                with self._attempt(call, self._wait(call)) as attempt:
                    return _open(opened, attempt, open_stream(attempt))

            attempt, stream, pieces, piece = self._retry(call, lambda: self._breaker.call(limited))
            last = piece
            with self._committed():
                while piece is not END:
                    last = piece
                    yield piece
                    piece = next(pieces, END)
            _settle(attempt, stream)
            _settle(attempt, last)

    async def stream_async(
        self,
        open_stream: Callable[[Attempt], AsyncStream[P] | Awaitable[AsyncStream[P]]],
        *,
        name: str = "stream",
        tokens: int = 0,
        context: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[P, None]:
        """Do what ``stream`` does, for an async stream.

        If you stop early, close it: ``async with contextlib.aclosing(pipeline.stream_async(...))``.
        """
        call = _Call(name, tokens, context, self.retrier.total_timeout)
        with self._logged(call):
            async with contextlib.AsyncExitStack() as opened:

                async def limited() -> _Opened:
                    with self._attempt(call, await self._wait_async(call)) as attempt:
                        return await _open_async(opened, attempt, open_stream(attempt))

                attempt, stream, pieces, piece = await self._retry_async(
                    call, lambda: self._breaker.call_async(limited)
                )
                last = piece
                with self._committed():
                    while piece is not END:
                        last = piece
                        yield piece
                        piece = await anext(pieces, END)
                _settle(attempt, stream)
                _settle(attempt, last)

    def __repr__(self) -> str:
        parts = (self.retrier, self.breaker, self.limiter, self.token_limiter, self.logger)
        return f"Pipeline({', '.join(repr(part) for part in parts if part)})"

    def _wait(self, call: _Call) -> TokensReservation:
        """Wait for tokens and for a slot. The tokens are freed if there is no slot."""
        reservation = self._token_limiter.reserve(call.tokens, call.remaining)
        try:
            self._limiter.acquire(call.remaining)
            self._breaker.check()  # it may have opened meanwhile
        except BaseException:
            reservation.settle(0)
            raise
        return reservation

    async def _wait_async(self, call: _Call) -> TokensReservation:
        reservation = await self._token_limiter.reserve_async(call.tokens, call.remaining)
        try:
            await self._limiter.acquire_async(call.remaining)
            self._breaker.check()
        except BaseException:
            reservation.settle(0)
            raise
        return reservation

    @contextlib.contextmanager
    def _attempt(self, call: _Call, reservation: TokensReservation) -> Iterator[Attempt]:
        """Mark the attempt's error, free the tokens if it did no work, and obey a Retry-After."""
        call.attempts += 1
        attempt = Attempt(call.attempts, call.deadline, reservation)
        try:
            yield attempt
        except Exception as error:
            call.error = mark(error)
            if _did_no_work(error):
                attempt.settle(0)
            if seconds := _pause_after(error):
                self._limiter.pause(min(seconds, self.retrier.max_retry_after))
                self._token_limiter.pause(min(seconds, self.retrier.max_retry_after))
            raise

    def _retry(self, call: _Call, protected: Callable[[], T]) -> T:
        """Call with retries. If a helper ends them, raise the error of the last attempt."""
        try:
            return self.retrier.call(protected, stop=self._stop)
        except REJECTIONS as rejection:
            call.reject(rejection)
        raise call.error

    async def _retry_async(self, call: _Call, protected: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self.retrier.call_async(protected, stop=self._stop)
        except REJECTIONS as rejection:
            call.reject(rejection)
        raise call.error

    def _stop(self, error: Exception) -> GiveUpReason | None:
        if isinstance(error, CircuitOpenError):
            return "circuit open"
        if isinstance(error, REJECTIONS):  # of a limiter
            return "total timeout"
        has_opened = self._breaker.state == "open"
        return "circuit open" if has_opened and self.retrier.retry_if(error) else None

    @contextlib.contextmanager
    def _committed(self) -> Iterator[None]:
        """Tell the breaker of a stream's failure: it has counted the first piece as a success."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):
                self._breaker.call(functools.partial(_raise, mark(error)))
            raise

    @contextlib.contextmanager
    def _logged(self, call: _Call) -> Iterator[None]:
        """Log the call as one line when the block ends. After Ctrl-C, nothing is logged."""
        try:
            yield
        except GeneratorExit:  # the reader of a stream stopped early: this is not a failure
            self._write(call, None)
            raise
        except Exception as error:
            self._write(call, error)
            raise
        else:
            self._write(call, None)
        finally:
            call.error = None  # its traceback refers to the call

    def _write(self, call: _Call, error: Exception | None) -> None:
        context = {**call.context, "attempts": call.attempts}
        self._log.log_request(call.name, error is None, error, context)


class Attempt:
    """One attempt at a call: what your operation gets. ``number`` counts from 1."""

    def __init__(self, number: int, deadline: float, reservation: TokensReservation) -> None:
        self.number = number
        self._deadline = deadline
        self._reservation: TokensReservation | None = reservation

    @property
    def remaining(self) -> float | None:
        """The seconds of the total timeout that are left, at least 0.01; None without one."""
        return _remaining(self._deadline)

    def settle(self, used: int) -> None:
        """Book the tokens that were used instead of the estimate. Only the first call counts."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            reservation.settle(used)


class RequestLimiter(Protocol):
    """What a Pipeline calls of a RateLimiter or SharedRateLimiter."""

    def acquire(self, timeout: float | None = None) -> float:
        """Wait for a free slot and take it."""

    async def acquire_async(self, timeout: float | None = None) -> float:
        """Do what ``acquire`` does, without blocking the event loop."""

    def pause(self, seconds: float) -> None:
        """Block all new starts for ``seconds``."""


class TokensLimiter(Protocol):
    """What a Pipeline calls of a TokenLimiter or SharedTokenLimiter."""

    def reserve(self, estimate: int, timeout: float | None = None) -> TokensReservation:
        """Wait for room, book the tokens and return the reservation."""

    async def reserve_async(self, estimate: int, timeout: float | None = None) -> TokensReservation:
        """Do what ``reserve`` does, without blocking the event loop."""

    def pause(self, seconds: float) -> None:
        """Block all new bookings for ``seconds``."""


class TokensReservation(Protocol):
    """What a Pipeline calls of a TokenReservation."""

    def settle(self, used: int) -> None:
        """Replace the estimate with the tokens that were used."""


class _Call:
    """One call: what it was given, and what became of its attempts."""

    def __init__(
        self,
        name: str,
        tokens: int,
        context: Mapping[str, Any] | None,
        total_timeout: float | None,
    ) -> None:
        if type(tokens) is not int or tokens < 0:
            raise ValueError(f"tokens must be an integer >= 0, got {tokens!r}")
        self.name = name
        self.tokens = tokens
        self.context = dict(context or {})
        self.deadline = math.inf if total_timeout is None else time.monotonic() + total_timeout
        self.attempts = 0
        self.error: Any = None  # of the last attempt

    def reject(self, rejection: Any) -> None:
        """Note that a helper refused an attempt. The error of the one before says more."""
        self.error = self.error or rejection
        with contextlib.suppress(Exception):  # some classes allow no new attribute
            self.error.gave_up = rejection.gave_up

    @property
    def remaining(self) -> float | None:
        return _remaining(self.deadline)


class _Opened(NamedTuple):
    """A stream after its first piece."""

    attempt: Attempt
    stream: Any
    pieces: Any
    first: Any


class _Absent:
    """Stands for each helper that is left out. It lets everything through."""

    state = "closed"

    def call(self, operation: Callable[[], T]) -> T:
        return operation()

    async def call_async(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await operation()

    def check(self) -> None:
        pass

    def acquire(self, timeout: float | None = None) -> float:
        return 0.0

    async def acquire_async(self, timeout: float | None = None) -> float:
        return 0.0

    def reserve(self, estimate: int, timeout: float | None = None) -> TokensReservation:
        return self

    async def reserve_async(self, estimate: int, timeout: float | None = None) -> TokensReservation:
        return self

    def settle(self, used: int) -> None:
        pass

    def pause(self, seconds: float) -> None:
        pass

    def log_request(self, *facts: object) -> None:
        pass


def _remaining(deadline: float) -> float | None:
    return None if deadline == math.inf else max(deadline - time.monotonic(), MIN_TIMEOUT)


def _raise(error: Exception) -> None:
    raise error


def _did_no_work(error: Exception) -> bool:
    """Return True if the server rejected the request, or if it was not sent."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status >= 400 and status not in TIMEOUT_STATUSES
    return getattr(error, "retryable", None) is False


def _pause_after(error: Exception) -> float:
    """Return the seconds for which a 429 asks all callers to wait, or 0."""
    seconds: Any = getattr(error, "retry_after", None)
    is_usable = type(seconds) in (int, float) and 0 < seconds < math.inf
    return seconds if is_usable and getattr(error, "status_code", None) == 429 else 0.0


def _settle(attempt: Attempt, result: T) -> T:
    """Settle the attempt's tokens if the result says how many were used; return the result."""
    for path in USAGE:
        usage = functools.reduce(_field, path, result)
        if usage is None:
            continue
        for names in TOTALS:
            counts = [_field(usage, name) for name in names]
            if {type(count) for count in counts} == {int}:
                attempt.settle(max(0, sum(counts)))
    return result


def _field(source: Any, name: str) -> Any:
    """Return a field or an attribute, or None if there is none or its property fails."""
    with contextlib.suppress(Exception):
        return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _open(opened: contextlib.ExitStack, attempt: Attempt, stream: Any) -> _Opened:
    """Read the stream's first piece. Close it together with ``opened``, or now if that fails."""
    with contextlib.ExitStack() as opening:
        if hasattr(stream, "__enter__"):
            stream = opening.enter_context(stream)
        elif hasattr(stream, "close"):
            opening.callback(stream.close)
        pieces = iter(stream)
        first = next(pieces, END)
        opened.push(opening.pop_all())
        return _Opened(attempt, stream, pieces, first)


async def _open_async(opened: contextlib.AsyncExitStack, attempt: Attempt, stream: Any) -> _Opened:
    async with contextlib.AsyncExitStack() as opening:
        if inspect.isawaitable(stream):
            stream = await stream
        if hasattr(stream, "__aenter__"):
            stream = await opening.enter_async_context(stream)
        elif hasattr(stream, "aclose"):
            opening.push_async_callback(stream.aclose)
        pieces = aiter(stream)
        first = await anext(pieces, END)
        opened.push_async_exit(opening.pop_all())
        return _Opened(attempt, stream, pieces, first)
