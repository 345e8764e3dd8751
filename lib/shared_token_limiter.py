# SPDX-License-Identifier: MIT-0
"""Share one limit of tokens per minute between processes and machines, over Redis.

Workers need different numbers of tokens. If each gets a fixed part of the limit, the part of
an idle worker is unused. Here each worker takes what it needs while there is room:

    import redis
    client = redis.Redis.from_url(
        "redis://localhost:6379", socket_timeout=0.5, socket_connect_timeout=0.5
    )
    limiter = SharedTokenLimiter(client, "mistral", max_tokens_per_minute=500_000)
    reservation = limiter.reserve(estimate_tokens(messages, max_tokens=1000))
    completion = mistral.chat(messages, max_tokens=1000)
    reservation.settle(completion.usage.total_tokens)

Copy this file with redis_script.py, token_limiter.py and rate_limiter.py. It imports no Redis
library: you pass a client of the package redis (4.6 to 8) or valkey (6). The server must be
Redis 6 or newer, or Valkey.

A call needs two round trips to Redis: one to reserve, one to settle. While there is no room,
each process asks again five times per second.

After the sliding window counters that Nikrad Mahdi describes in "An alternative approach to
rate limiting" (Figma, 2017): a Redis hash with one counter for each sixtieth of the window.
Each counter here holds the tokens of one second.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from .rate_limiter import Caller, Line, as_seconds
from .redis_script import RedisAccessError, RedisScript, without_blocking
from .token_limiter import TokenLimiter, TokenLimitTimeoutError, TokenReservation, checked_tokens

__all__ = ["RedisAccessError", "SharedTokenLimiter", "TokenLimitTimeoutError"]

WINDOW = 60.0  # seconds
ASK_AGAIN_AFTER = 0.2  # seconds

# The key is a hash: the number of a second has its tokens, "caller:ID" what a waiting caller needs.
# Nobody takes the room that an earlier caller waits for. Times are in milliseconds.
LEDGER = """
local key, own_limit, limit, window = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local kind = redis.call('TYPE', key).ok
if kind ~= 'hash' and kind ~= 'none' then
    redis.call('DEL', key)
end
local fields, flat = {}, redis.call('HGETALL', key)
for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
end
local function number(text)
    return text and #text < 16 and tonumber(string.match(text, '^%d+$')) or 0
end

-- If the server's clock steps back, time goes on from the last step.
local clock = redis.call('TIME')
local time = clock[1] * 1000 + math.floor(clock[2] / 1000)
local stepped_back = math.max(number(fields.stepped_back), number(fields.last_step) - time)
local now = time + stepped_back
-- The first write of a step: a Redis that is full rejects it, and then runs nothing of the step.
redis.call('HSET', key, 'last_step', now, 'stepped_back', stepped_back, 'limit', own_limit)

local used, callers, bucket_of_now = 0, {}, math.floor(now / (window / 60))
for field, value in pairs(fields) do
    local bucket, tokens = tonumber(field), number(value)
    if bucket and tokens > 0 and bucket >= bucket_of_now - 60 and bucket <= bucket_of_now then
        used = used + tokens
    elseif bucket then
        redis.call('HDEL', key, field)
        fields[field] = nil
    elseif string.find(field, 'caller:', 1, true) == 1 then
        callers[field] = value
    end
end
local function book(bucket, tokens)
    if tokens ~= 0 then
        used = used + tokens
        redis.call('HINCRBY', key, bucket, tokens)
    end
end

local paused_until = number(fields.paused_until)
local function reserve(tokens, caller, asks_again)
    local needs, ahead = math.min(tokens, limit), 0
    local since = tonumber(string.match(callers[caller] or '', '^%d+')) or now
    for field, value in pairs(callers) do
        local their_since, asked, their_needs = string.match(value, '^(%d+) (%d+) (%d+)$')
        if their_since and now - asked > 2000 then  -- this caller was killed
            redis.call('HDEL', key, field)
        elseif their_since and tonumber(their_since) < since then
            ahead = ahead + their_needs
        end
    end
    local has_room = now >= paused_until and used + ahead + needs <= limit
    if has_room then
        book(bucket_of_now, tokens)
    end
    if asks_again and not has_room then
        redis.call('HSET', key, caller, string.format('%.0f %.0f %.0f', since, now, needs))
    else
        redis.call('HDEL', key, caller)
    end
    return has_room and 1 or 0
end

local function update(bucket, freed, added, remaining, pause)
    book(bucket, -math.min(freed, number(fields[bucket])))
    book(bucket_of_now, added)
    book(bucket_of_now, math.max(0, limit - used - remaining))
    paused_until = math.max(paused_until, now + pause)
    redis.call('HSET', key, 'paused_until', paused_until)
end

local has_room = 0
if ARGV[4] == 'reserve' then
    has_room = reserve(tonumber(ARGV[5]), 'caller:' .. ARGV[6], ARGV[7] == '1')
elseif ARGV[4] == 'leave' then
    redis.call('HDEL', key, 'caller:' .. ARGV[5])
else
    update(ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]))
end
redis.call('PEXPIRE', key, math.ceil(math.max(window * 62 / 60, paused_until - now)))
local other = number(fields.limit) > 0 and fields.limit ~= own_limit and fields.limit or ''
return {has_room, bucket_of_now, limit - used, other}
"""


class SharedTokenLimiter:
    """Let a call start when its tokens fit under the limit of all processes together.

    It has the interface of TokenLimiter. Limiters share a limit if they have the same ``name``
    and use the same Redis. The callers of one process start in the order in which they
    arrived. A process that waits for room keeps its place before processes that came later,
    even if they need fewer tokens. A process that is killed leaves the estimates of its calls
    in the ledger for a minute.

    While Redis can't be used (it refuses connections, is silent, read-only, restarting or full),
    each process limits itself to ``local_share`` of the limit, logs one warning, and tries
    Redis again once per second. Set the share to 1 / number of processes. A reservation that
    was booked in Redis and is settled in the meantime keeps its estimate for a minute.

    ``redis_client`` must have a socket_timeout, because a silent server blocks a caller for
    that long. It must make no retries, because a retry could book tokens twice.

    Thread-safe. Threads and asyncio tasks may share one limiter. Raises ValueError for a wrong
    argument. All methods raise RedisAccessError if Redis rejects the client.
    """

    def __init__(
        self,
        redis_client: Any,
        name: str,
        *,
        max_tokens_per_minute: int,
        local_share: float = 0.1,
    ) -> None:
        self._redis = RedisScript(
            redis_client, LEDGER, "token-limit", name,
            local_share=local_share, on_lost=self._start_locally, on_found=self._stop_locally,
        )  # fmt: skip
        self._line = Line()  # the callers of this process: only the first one asks Redis
        self.max_tokens_per_minute = max_tokens_per_minute
        self._last_available = max_tokens_per_minute  # in Redis, when it was last asked
        self._paused_until = -math.inf  # on the monotonic clock
        self._start_locally()

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
        """The tokens that can be reserved now. Reading it takes a round trip to Redis."""
        return self._last_available if self._update() else self._local.available

    def reserve(self, estimate: int, timeout: float | None = None) -> SharedTokenReservation:
        """Wait until there is room for ``estimate`` tokens, book them, return the reservation.

        ``timeout`` is in seconds; None means no limit. Raises TokenLimitTimeoutError if there
        is no room within ``timeout`` seconds, and ValueError for a wrong argument.
        """
        booking = SharedTokenReservation(checked_tokens("estimate", estimate), self._settle)
        caller = Caller(booking.seconds_to_wait, timeout)

        def ask(seconds: float) -> None:
            if booking.has_asked:
                caller.sleep(seconds)
            self._ask(booking, caller)

        try:
            booking.waited = self._line.wait(caller, ask)
        except BaseException:
            self._give_back(booking)
            raise
        return booking

    async def reserve_async(
        self, estimate: int, timeout: float | None = None
    ) -> SharedTokenReservation:
        """Do what ``reserve`` does, without blocking the event loop.

        The calls to Redis run in a thread, because the client is synchronous. A cancelled task
        leaves the line and books nothing.
        """
        booking = SharedTokenReservation(checked_tokens("estimate", estimate), self._settle)
        caller = Caller(booking.seconds_to_wait, timeout)

        async def ask(seconds: float) -> None:
            if booking.has_asked:
                await caller.sleep_async(seconds)
            await asyncio.to_thread(self._ask, booking, caller)

        try:
            booking.waited = await self._line.wait_async(caller, ask)
        except BaseException:
            without_blocking(lambda: self._give_back(booking))
            raise
        return booking

    def _ask(self, booking: SharedTokenReservation, caller: Caller) -> None:
        """Book the tokens in Redis, or without it, if there is room."""
        with booking.lock:
            booking.has_asked = True
            booking.asks_again = time.monotonic() < caller.gives_up_at
            arguments = booking.tokens, booking.caller_id, int(booking.asks_again)
            reply = self._run("reserve", *arguments)
            if reply is None:
                booking.book_locally(self._local)
            elif reply[0]:
                booking.bucket = reply[1]

    def _give_back(self, booking: SharedTokenReservation) -> None:
        """Free the tokens of a caller that has left, or its place, even if a thread books now."""
        with booking.lock:
            if booking.is_booked:
                booking.settle(0)
            elif booking.asks_again:
                self._run("leave", booking.caller_id)

    def _settle(self, booking: SharedTokenReservation, used: int) -> None:
        with self._line.lock:
            if booking.is_settled:
                raise ValueError("this reservation is already settled: settle each one once")
            booking.is_settled = True

        def settle() -> None:
            if booking.local:
                booking.local.settle(used)
            else:
                self._update(bucket=booking.bucket, freed=booking.tokens, added=used)
            self._line.wake_first()

        without_blocking(settle)

    def observe(self, limits: Any) -> None:
        """Follow the server's numbers (``completion.limits``), for all processes.

        ``limits.tokens_per_minute`` becomes the limit of this process, as long as it is lower
        than the one that you set. If ``limits.remaining_tokens`` is less than ``available``,
        other programs use the same account: the difference is booked for a minute. In an
        event loop, the call to Redis runs in a thread, as it does for ``settle`` and ``pause``.
        """
        self._server_limit = limits.tokens_per_minute or self._server_limit
        if limits.remaining_tokens is not None:
            remaining = max(0, limits.remaining_tokens)
            without_blocking(lambda: self._update(remaining=remaining))
        self._line.wake_first()

    def pause(self, seconds: float) -> None:
        """Block the new bookings of all processes for ``seconds``.

        Call it with the Retry-After of a 429. Without Redis, it blocks only this process.
        Raises ValueError for a wrong number.
        """
        end = time.monotonic() + as_seconds("seconds", seconds)
        self._paused_until = max(self._paused_until, end)
        self._local.pause(seconds)
        without_blocking(lambda: self._update(pause=seconds))

    def __repr__(self) -> str:
        state = "local" if self._redis.is_local else "shared"
        limit, waiting = self.max_tokens_per_minute, len(self._line.callers)
        return f"SharedTokenLimiter({self._redis.name!r}, {limit}, {state}, waiting={waiting})"

    def _update(
        self,
        *,
        bucket: int = 0,
        freed: int = 0,
        added: int = 0,
        remaining: int | None = None,
        pause: float = 0.0,
    ) -> list[Any] | None:
        if remaining is None:
            remaining = self.max_tokens_per_minute
        return self._run("update", bucket, freed, added, remaining, _milliseconds(pause))

    def _run(self, step: str, *arguments: int | str) -> list[Any] | None:
        limit, window = self.max_tokens_per_minute, _milliseconds(WINDOW)
        reply = self._redis.run(str(self._own_limit), limit, window, step, *arguments)
        if reply is not None:
            self._last_available = reply[2]
        return reply

    def _start_locally(self) -> None:
        """Begin with this process's share of what all processes together had used."""
        share, limit = self._redis.local_share, self.max_tokens_per_minute
        self._local = TokenLimiter(max(1, int(share * limit)))
        self._used_before = self._local.reserve(max(0, int(share * (limit - self._last_available))))
        self._local.pause(max(0.0, self._paused_until - time.monotonic()))

    def _stop_locally(self) -> None:
        """Book in Redis what this process has used without it."""
        if not self._used_before.is_settled:
            self._used_before.settle(0)  # Redis knows of it
        self._update(added=self._local.max_tokens_per_minute - self._local.available)


class SharedTokenReservation:
    """Tokens booked for one call. ``waited`` is the seconds that ``reserve`` waited."""

    waited, has_asked, asks_again, is_settled = 0.0, False, False, False

    def __init__(self, tokens: int, settle: Callable[[SharedTokenReservation, int], None]) -> None:
        self.tokens = tokens
        self.bucket = 0  # in Redis
        self.local: TokenReservation | None = None  # without it
        self.caller_id = os.urandom(8).hex()
        self.lock = threading.Lock()
        self._settle = settle

    @property
    def is_booked(self) -> bool:
        """Whether the tokens are in a ledger."""
        return self.bucket > 0 or self.local is not None

    def settle(self, used: int) -> None:
        """Replace the estimate with the tokens that the call used, more or fewer.

        A call that the server rejected used 0. Don't settle a call that timed out: the
        server may have done the work, so its estimate must keep counting for a minute.
        Raises ValueError if the reservation is already settled, or for a negative number.
        """
        self._settle(self, checked_tokens("used", used))

    def book_locally(self, limiter: TokenLimiter) -> None:
        """Book the tokens in the limiter of this process, if there is room."""
        with contextlib.suppress(TokenLimitTimeoutError):
            self.local = limiter.reserve(self.tokens, timeout=0)

    def seconds_to_wait(self, caller: Caller) -> float:
        """Return 0 if the tokens are booked, else the seconds until Redis is asked again."""
        now = time.monotonic()
        if self.is_booked:
            return 0.0
        if now >= caller.gives_up_at and (self.has_asked or caller.ahead):
            raise TokenLimitTimeoutError(caller.too_late(f"no room for {self.tokens} tokens"))
        return max(1e-6, min(ASK_AGAIN_AFTER, caller.gives_up_at - now))


def _milliseconds(seconds: float) -> int:
    return math.ceil(min(seconds * 1000, 2**53))  # above that, Lua's numbers are not exact
