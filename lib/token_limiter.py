# SPDX-License-Identifier: MIT-0
"""Stay under a limit of tokens per minute: reserve an estimate, settle what was used.

Copy this file with rate_limiter.py: they share the line of waiting callers.

    >>> limiter = TokenLimiter(max_tokens_per_minute=20_000)
    >>> messages = [{"role": "user", "content": "Hello!"}]
    >>> reservation = limiter.reserve(estimate_tokens(messages, max_tokens=1000))
    >>> limiter.available
    18994
    >>> reservation.settle(40)      # completion.usage.total_tokens
    >>> limiter.available
    19960

A token is a piece of text, about four characters of English. An LLM API limits tokens as
well as requests, but how many a call uses is known only when its response has arrived. If a
limiter always books the worst case, most of the limit is unused. If it books nothing until
the response arrives, all threads start together and exceed the limit. This one books an
estimate; settling the reservation replaces the estimate with the tokens that the call used.

After the sliding window log, as described by Nikrad Mahdi in "An alternative approach to
rate limiting" (Figma, 2017): each entry here is a number of tokens instead of a request.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .rate_limiter import Caller, Line, as_seconds

WINDOW = 60.0  # seconds
CHARACTERS_PER_TOKEN = 4  # in English; other languages need up to one token per character
TOKENS_PER_MESSAGE = 4  # for the role and the separators
TOKENS_PER_FILE = 3000  # the most that one image costs
FILES = ("image", "audio", "document", "file")  # these words in a part's type mean a file
ASSUMED_COMPLETION_TOKENS = 500  # if the request sets no max_tokens


class TokenLimitTimeoutError(TimeoutError):
    """There was no room for the tokens within the timeout, so no request was sent.

    The error comes from your own limiter, not from the service, so it is not retryable, and a
    circuit breaker does not count it as a failure.
    """

    retryable = False


class TokenLimiter:
    """Let a call start when its tokens fit under the limit for the last 60 seconds.

    The limiter keeps a ledger of bookings, as the server does. A reservation counts until 60
    seconds after it was settled, or after it was booked if it is never settled. Callers
    start in the order in which they arrived. A call that needs more tokens than the whole
    limit waits until the ledger is empty.

    Thread-safe. Threads and asyncio tasks may share one limiter. Raises ValueError for a
    wrong argument.
    """

    def __init__(self, max_tokens_per_minute: int) -> None:
        self._ledger: OrderedDict[TokenReservation, int] = OrderedDict()  # oldest first
        self._used, self._paused_until = 0, -math.inf  # the sum of the ledger; a time
        self._line = Line()
        self.max_tokens_per_minute = max_tokens_per_minute

    @property
    def max_tokens_per_minute(self) -> int:
        """The limit that you set, or the server's if that is lower. You may change it."""
        return min(self._own_limit, self._server_limit)

    @max_tokens_per_minute.setter
    def max_tokens_per_minute(self, limit: int) -> None:
        self._own_limit = self._server_limit = checked_tokens("max_tokens_per_minute", limit, 1)
        self._line.wake_first()

    @property
    def available(self) -> int:
        """The tokens that can be reserved now; negative if calls used more than estimated."""
        start = time.monotonic() - WINDOW
        used = sum(self._ledger.get(one, 0) for one in list(self._ledger) if one.booked_at > start)
        return self.max_tokens_per_minute - used

    def reserve(self, estimate: int, timeout: float | None = None) -> TokenReservation:
        """Wait until there is room for ``estimate`` tokens, book them, return the reservation.

        ``timeout`` is in seconds; None means no limit. Raises TokenLimitTimeoutError if there
        is no room within ``timeout`` seconds, and ValueError for a wrong argument.
        """
        booking = TokenReservation(checked_tokens("estimate", estimate), self._settle)
        caller = Caller(lambda caller: self._try_book(booking, caller), timeout)
        booking.waited = self._line.wait(caller, caller.sleep)
        return booking

    async def reserve_async(self, estimate: int, timeout: float | None = None) -> TokenReservation:
        """Do what ``reserve`` does, without blocking the event loop.

        A cancelled task leaves the line and books nothing.
        """
        booking = TokenReservation(checked_tokens("estimate", estimate), self._settle)
        caller = Caller(lambda caller: self._try_book(booking, caller), timeout)
        booking.waited = await self._line.wait_async(caller, caller.sleep_async)
        return booking

    def _try_book(self, booking: TokenReservation, caller: Caller) -> float:
        """Book and return 0 if there is room; else return the seconds until there is."""
        now, limit, tokens = time.monotonic(), self.max_tokens_per_minute, booking.tokens
        while (oldest := self._oldest()) and oldest.booked_at <= now - WINDOW:
            self._used -= self._ledger[oldest]
            del self._ledger[oldest]
        has_room = self._used + min(tokens, limit) <= limit
        frees_at = now if has_room else oldest.booked_at + WINDOW
        ready_at = math.inf if caller.ahead else max(frees_at, self._paused_until)
        if ready_at <= now:
            self._book(booking, tokens)
            return 0.0
        if now >= caller.gives_up_at:
            raise TokenLimitTimeoutError(caller.too_late(f"no room for {tokens} tokens"))
        return min(ready_at, caller.gives_up_at) - now

    def _settle(self, booking: TokenReservation, used: int) -> None:
        with self._line.lock:
            if booking.is_settled:
                raise ValueError("this reservation is already settled: settle each one once")
            booking.is_settled = True
            self._book(booking, used)  # for a minute from now: the server booked them earlier
        self._line.wake_first()

    def observe(self, limits: Any) -> None:
        """Follow the server's numbers (``completion.limits``).

        ``limits.tokens_per_minute`` becomes the limit, as long as it is lower than the one
        that you set. If ``limits.remaining_tokens`` is less than ``available``, other programs
        use the same account: the difference is booked for a minute.
        """
        with self._line.lock:
            self._server_limit = limits.tokens_per_minute or self._server_limit
            if limits.remaining_tokens is not None:
                others = max(0, self.available - max(0, limits.remaining_tokens))
                self._book(TokenReservation(others, self._settle), others)
        self._line.wake_first()

    def pause(self, seconds: float) -> None:
        """Block all new bookings for ``seconds``. Raises ValueError for a wrong number.

        Call it with the Retry-After of a 429.
        """
        end = time.monotonic() + as_seconds("seconds", seconds)
        with self._line.lock:
            self._paused_until = max(self._paused_until, end)

    def __repr__(self) -> str:
        limit, available = self.max_tokens_per_minute, self.available
        return f"TokenLimiter({limit}, available={available}, waiting={len(self._line.callers)})"

    def _oldest(self) -> Any:
        for booking in self._ledger:  # next(iter(...)) fails if a signal handler settles in it
            return booking
        return None

    def _book(self, booking: TokenReservation, tokens: int) -> None:
        """Count ``tokens`` for the booking, for a minute from now, in place of those before."""
        booking.booked_at = time.monotonic()
        more = tokens - self._ledger.get(booking, 0)
        self._used += more  # no call in this line: a signal handler may settle during one
        self._ledger[booking] = tokens
        self._ledger.move_to_end(booking)


class TokenReservation:
    """Tokens booked for one call. ``waited`` is the seconds that ``reserve`` waited."""

    waited, booked_at, is_settled = 0.0, -math.inf, False

    def __init__(self, tokens: int, settle: Callable[[TokenReservation, int], None]) -> None:
        self.tokens, self._settle = tokens, settle

    def settle(self, used: int) -> None:
        """Replace the estimate with the tokens that the call used, more or fewer.

        A call that the server rejected used 0. Don't settle a call that timed out: the
        server may have done the work, so its estimate must keep counting for a minute.
        Raises ValueError if the reservation is already settled, or for a negative number.
        """
        self._settle(self, checked_tokens("used", used))


def estimate_tokens(messages: Iterable[Mapping[str, Any]], max_tokens: int | None = None) -> int:
    """Estimate the tokens that a chat call can use: its prompt plus ``max_tokens``.

    The prompt's tokens are a rough guess: the length of its text and tool calls, and 3,000
    tokens for each image, recording or document. Settling corrects it. Without
    ``max_tokens``, a completion of 500 tokens is assumed.
    """
    parts = [(message.get("content"), message.get("tool_calls")) for message in messages]
    prompt = int(_tokens_in(parts)) + 1 + len(parts) * TOKENS_PER_MESSAGE
    return prompt + (ASSUMED_COMPLETION_TOKENS if max_tokens is None else max_tokens)


def _tokens_in(part: Any) -> float:
    if isinstance(part, Mapping):
        is_file = any(word in str(part.get("type")) for word in FILES)
        return TOKENS_PER_FILE if is_file else sum(map(_tokens_in, part.values()))
    if isinstance(part, (list, tuple)):
        return sum(map(_tokens_in, part))
    return len(str(part or "")) / CHARACTERS_PER_TOKEN


def checked_tokens(name: str, value: int, at_least: int = 0) -> int:
    """Return the value; raise ValueError if it is not a number of tokens."""
    if type(value) is not int or value < at_least:
        raise ValueError(f"{name} must be an integer >= {at_least}, got {value!r}")
    return value
