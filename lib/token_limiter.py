# SPDX-License-Identifier: MIT-0
"""Stay under a limit of tokens per minute: reserve an estimate, settle what was used.

Copy this file alone: it needs the standard library only.

    >>> limiter = TokenLimiter(max_tokens_per_minute=20_000)
    >>> messages = [{"role": "user", "content": "Hello!"}]
    >>> reservation = limiter.reserve(estimate_tokens(messages, max_tokens=1000))
    >>> limiter.available
    18994
    >>> reservation.settle(40)      # completion.usage.total_tokens
    >>> limiter.available
    19960

A token is a piece of text, about four characters of English. An LLM API limits tokens as
well as requests, but how many a call uses is known only when its response has arrived. A
limiter that books the worst case and never corrects it wastes most of the limit. One that
books nothing until the response arrives lets every thread start at once. This one books an
estimate; settling the reservation replaces the estimate with the tokens really used.

After the sliding window log, as described by Nikrad Mahdi in "An alternative approach to
rate limiting" (Figma, 2017): each entry here is a number of tokens instead of a request.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

WINDOW = 60.0  # seconds
CHARACTERS_PER_TOKEN = 4  # in English; other languages need up to one token per character
TOKENS_PER_MESSAGE = 4  # for the role and the separators
ASSUMED_COMPLETION_TOKENS = 500  # if the request sets no max_tokens


class TokenLimitTimeoutError(TimeoutError):
    """There was no room for the tokens within the timeout, so no request was sent.

    The error comes from your own limiter, not from the service. It is not retryable, and its
    ``status_code`` is 429, so a circuit breaker does not count it as a failure.
    """

    retryable = False
    status_code = 429


def estimate_tokens(messages: Iterable[Mapping[str, Any]], max_tokens: int | None = None) -> int:
    """Estimate the tokens that a chat call can use: its prompt plus ``max_tokens``.

    The prompt's tokens are a rough guess from the length of its text; settling corrects it.
    Without ``max_tokens``, a completion of 500 tokens is assumed.
    """
    characters = messages_count = 0
    for message in messages:
        characters += len(str(message.get("content") or ""))
        messages_count += 1
    prompt = characters // CHARACTERS_PER_TOKEN + 1 + messages_count * TOKENS_PER_MESSAGE
    return prompt + (ASSUMED_COMPLETION_TOKENS if max_tokens is None else max_tokens)


class TokenReservation:
    """Tokens booked for one call. ``waited`` is the seconds that ``reserve`` waited."""

    def __init__(self, limiter: TokenLimiter, entry: _Entry, waited: float) -> None:
        self.tokens = entry.tokens
        self.waited = waited
        self._limiter = limiter
        self._entry = entry

    def settle(self, used: int) -> None:
        """Replace the estimate with the tokens that the call used, more or fewer.

        A call that the server rejected used 0. Don't settle a call that timed out: the
        server may have done the work, so its estimate must keep counting for a minute.
        Raises ValueError if the reservation was settled before, or for a negative number.
        """
        if type(used) is not int or used < 0:
            raise ValueError(f"used must be an integer >= 0, got {used!r}")
        self._limiter._settle(self._entry, used)


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
        if type(max_tokens_per_minute) is not int or max_tokens_per_minute < 1:
            raise ValueError(
                f"max_tokens_per_minute must be an integer >= 1, got {max_tokens_per_minute!r}"
            )
        self.max_tokens_per_minute = max_tokens_per_minute
        self._ledger: deque[_Entry] = deque()  # oldest first
        self._used = 0  # the sum of the ledger
        self._paused_until = -math.inf
        self._line: deque[_Waiter] = deque()
        self._lock = threading.Lock()

    @property
    def available(self) -> int:
        """The tokens that can be reserved now; negative if calls used more than estimated."""
        with self._lock:
            self._expire(time.monotonic())
            return self.max_tokens_per_minute - self._used

    def reserve(self, estimate: int, timeout: float | None = None) -> TokenReservation:
        """Wait until there is room for ``estimate`` tokens, book them, return the reservation.

        Raises TokenLimitTimeoutError if there is no room within ``timeout`` seconds, and
        ValueError for a wrong argument.
        """
        waiter = _Waiter(estimate, timeout)
        try:
            while (wait := self._try_book(waiter)) > 0:
                waiter.notified.wait(min(wait, threading.TIMEOUT_MAX))
        except BaseException:
            try:
                self._leave(waiter)
            finally:
                self._leave(waiter)  # again, in case Ctrl-C interrupted the first call
            raise
        return TokenReservation(self, waiter.entry, waiter.waited)

    async def reserve_async(self, estimate: int, timeout: float | None = None) -> TokenReservation:
        """Do what ``reserve`` does, without blocking the event loop.

        A cancelled task leaves the line and books nothing.
        """
        waiter = _TaskWaiter(estimate, timeout)
        try:
            while (wait := self._try_book(waiter)) > 0:
                await waiter.wait(wait)
        except BaseException:
            try:
                self._leave(waiter)
            finally:
                self._leave(waiter)  # again, as above
            raise
        return TokenReservation(self, waiter.entry, waiter.waited)

    def pause(self, seconds: float) -> None:
        """Block all new bookings for ``seconds``. Call it with the Retry-After of a 429."""
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be a number of seconds >= 0, got {seconds!r}")
        with self._lock:
            self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def observe(self, limits: Any) -> None:
        """Adopt the server's numbers (``completion.limits``) where they are stricter.

        A smaller ``limits.tokens_per_minute`` becomes the limit. If
        ``limits.remaining_tokens`` is less than ``available``, other programs use the same
        account: the difference is booked for a minute.
        """
        with self._lock:
            now = time.monotonic()
            self._expire(now)
            if limits.tokens_per_minute is not None and limits.tokens_per_minute >= 1:
                self.max_tokens_per_minute = min(
                    self.max_tokens_per_minute, limits.tokens_per_minute
                )
            if limits.remaining_tokens is not None:
                available = self.max_tokens_per_minute - self._used
                if limits.remaining_tokens < available:
                    self._book(now, available - max(0, limits.remaining_tokens))

    def __repr__(self) -> str:
        return (
            f"TokenLimiter({self.max_tokens_per_minute}, available={self.available}, "
            f"waiting={len(self._line)})"
        )

    def _try_book(self, waiter: _Waiter) -> float:
        """Book and return 0 if it is the waiter's turn and there is room; else seconds to wait."""
        waiter.notified.clear()  # before the check, so that no later notification is lost
        with self._lock:
            now = time.monotonic()
            if waiter.joined_at is None:
                waiter.joined_at = now
                self._line.append(waiter)
            give_up_at = waiter.joined_at + waiter.timeout
            ready_at = math.inf  # unknown while others are ahead
            if self._line[0] is waiter:
                self._expire(now)
                ready_at = self._room_at(now, waiter.tokens)
                if ready_at <= now:
                    waiter.entry = self._book(now, waiter.tokens)
                    waiter.waited = now - waiter.joined_at
                    self._line.popleft()
                    self._notify_first()
                    return 0.0
            if now >= give_up_at:
                raise TokenLimitTimeoutError(
                    f"no room for {waiter.tokens} tokens within {waiter.timeout:g} s"
                )
            return min(ready_at, give_up_at) - now

    def _room_at(self, now: float, tokens: int) -> float:
        """Return when the ledger will have room, if nothing is settled before that."""
        excess = self._used + tokens - self.max_tokens_per_minute
        ready_at = now
        for entry in self._ledger:
            if excess <= 0:
                break
            excess -= entry.tokens
            ready_at = entry.booked_at + WINDOW
        return max(ready_at, self._paused_until)

    def _settle(self, entry: _Entry, used: int) -> None:
        with self._lock:
            if entry.is_settled:
                raise ValueError("this reservation has been settled before")
            entry.is_settled = True
            now = time.monotonic()
            self._expire(now)
            self._remove(entry)
            # Booked as of now: when the server booked it is unknown, but it was before now.
            self._book(now, used)
            self._notify_first()

    def _book(self, now: float, tokens: int) -> _Entry:
        entry = _Entry(now, tokens)
        self._used += tokens
        self._ledger.append(entry)
        return entry

    def _remove(self, entry: _Entry) -> None:
        """Free an entry's tokens; a second call for the same entry frees nothing."""
        self._used -= entry.tokens
        entry.tokens = 0

    def _expire(self, now: float) -> None:
        while self._ledger and self._ledger[0].booked_at <= now - WINDOW:
            self._remove(self._ledger[0])
            self._ledger.popleft()

    def _leave(self, waiter: _Waiter) -> None:
        """Remove a waiter that gave up from the line, wherever it was interrupted."""
        with self._lock:
            if waiter in self._line:
                self._line.remove(waiter)
            self._notify_first()

    def _notify_first(self) -> None:
        while self._line:
            try:
                self._line[0].notify()
                return
            except RuntimeError:  # its event loop is closed, so it will never start
                self._line.popleft()


class _Entry:
    """One booking in the ledger."""

    def __init__(self, booked_at: float, tokens: int) -> None:
        self.booked_at = booked_at  # on the monotonic clock
        self.tokens = tokens
        self.is_settled = False


class _Waiter:
    """A thread in line. It is notified when it is first, and when settling made room."""

    entry: _Entry

    def __init__(self, tokens: int, timeout: float | None) -> None:
        if type(tokens) is not int or tokens < 0:
            raise ValueError(f"estimate must be an integer >= 0, got {tokens!r}")
        if timeout is not None and (type(timeout) not in (int, float) or not timeout >= 0):
            raise ValueError(f"timeout must be a number of seconds >= 0, got {timeout!r}")
        self.tokens = tokens
        self.timeout = math.inf if timeout is None else timeout
        self.joined_at: float | None = None
        self.waited = 0.0
        self.notified = threading.Event()

    def notify(self) -> None:
        self.notified.set()


class _TaskWaiter(_Waiter):
    """An asyncio task in line. A thread other than that of its event loop may notify it."""

    notified: asyncio.Event  # type: ignore[assignment]

    def __init__(self, tokens: int, timeout: float | None) -> None:
        super().__init__(tokens, timeout)
        self._loop = asyncio.get_running_loop()
        self.notified = asyncio.Event()

    def notify(self) -> None:
        self._loop.call_soon_threadsafe(self.notified.set)

    async def wait(self, seconds: float) -> None:
        if seconds == math.inf:
            await self.notified.wait()
            return
        timer = self._loop.call_later(seconds, self.notified.set)
        try:
            await self.notified.wait()
        finally:
            timer.cancel()
