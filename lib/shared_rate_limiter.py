# SPDX-License-Identifier: MIT-0
"""Share one rate limit between processes and machines, over Redis.

A rate limit applies to the whole account. Eight workers with a RateLimiter each send eight
times the limit. Eight workers with a SharedRateLimiter of the same name together send no
more than the limit.

    import redis
    client = redis.Redis.from_url(
        "redis://localhost:6379", socket_timeout=0.5, socket_connect_timeout=0.5
    )
    limiter = SharedRateLimiter(client, "mistral", max_requests_per_minute=600)
    limiter.acquire()

Copy this file with redis_script.py and rate_limiter.py. It imports no Redis library: you pass
a client of the package redis (4.6 to 8) or valkey (6). The server must be Redis 6 or newer, or
Valkey.

Each start needs one round trip to Redis: a script books the next free slot.

After the generic cell rate algorithm (GCRA) of ITU-T I.371, which stores only the time of the
next free slot. Brandur Leach's redis-cell keeps it in Redis
(https://brandur.org/rate-limiting). Here it allows no bursts: starts are evenly spaced.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Any

from .rate_limiter import PACE, OnWait, RateLimiter, RateLimitTimeoutError
from .redis_script import RedisAccessError, RedisScript, without_blocking

__all__ = ["RateLimitTimeoutError", "RedisAccessError", "SharedRateLimiter"]

FOREVER = 2**53  # microseconds; above that, Lua's numbers are not exact

# All times are in microseconds. The key holds the time of the next free slot, the time of the
# last step, and the limit. If the clock steps back, the slot goes back with it.
BOOK_SLOT = """
local limit, delay = ARGV[1], tonumber(ARGV[2])
local interval, max_wait = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local is_text = redis.call('TYPE', KEYS[1]).ok == 'string'
local value = is_text and redis.call('GET', KEYS[1]) or ''
local next_slot, last_step, other = string.match(value, '^(%d+) (%d+) ([%d.e+-]+)$')
local stepped_back = math.max(0, (tonumber(last_step) or 0) - now)
next_slot = (tonumber(next_slot) or 0) - stepped_back
local slot = math.max(now + delay, next_slot)
local wait = slot - now
if wait <= max_wait then
    next_slot = slot + interval
else
    wait = -1
end
redis.call('SET', KEYS[1], string.format('%.0f %.0f %s', next_slot, now, limit),
    'PX', math.floor((next_slot - now) / 1000) + 1)
return {wait, other and other ~= limit and other or ''}
"""


class SharedRateLimiter:
    """Let all processes together start ``max_requests_per_minute`` requests per minute.

    It has the interface of RateLimiter. Limiters share a limit if they have the same ``name``
    and use the same Redis. Each process keeps its callers in line and books a slot only for
    the first of them. So a process that is killed, or a task that is cancelled, wastes at most
    one slot. The pace is 98.5 % of the limit: at 100 %, one late start and the punctual ones
    after it would put more than the limit into one minute.

    While Redis can't be used (it refuses connections, is silent, read-only, restarting or full),
    each process paces itself at ``local_share`` of the limit, logs one warning, and tries Redis
    again once per second. Set the share to 1 / number of processes, so that all of them
    together stay under the limit. The default of 0.1 suits ten processes; with fewer, they
    stay further below the limit.

    ``redis_client`` must have a socket_timeout, because a silent server blocks a caller for
    that long. It must make no retries, because a retry could book a second slot.

    Thread-safe; threads and asyncio tasks may share one. Raises ValueError for a wrong
    argument. All methods raise RedisAccessError if Redis rejects the client.
    """

    def __init__(
        self,
        redis_client: Any,
        name: str,
        *,
        max_requests_per_minute: float,
        local_share: float = 0.1,
    ) -> None:
        self._redis = RedisScript(
            redis_client, BOOK_SLOT, "rate-limit", name,
            local_share=local_share, on_lost=self._start_locally,
        )  # fmt: skip
        self._line = RateLimiter()  # the callers of this process
        self.max_requests_per_minute = max_requests_per_minute
        self._next_local_slot = -math.inf  # on the monotonic clock

    @property
    def max_requests_per_minute(self) -> float:
        """The limit of all processes together. You may change it; do so in every process."""
        return self._limit

    @max_requests_per_minute.setter
    def max_requests_per_minute(self, limit: float) -> None:
        self._line.max_requests_per_minute = limit  # this checks the limit
        self._line.max_requests_per_minute /= PACE  # Redis keeps the pace: the line may be faster
        self._limit, self._interval = limit, 60 / (PACE * limit)
        self._local_interval = self._interval / self._redis.local_share

    def acquire(self, timeout: float | None = None, *, on_wait: OnWait = None) -> float:
        """Wait for a free slot and take it. Return the seconds waited.

        ``timeout`` is in seconds; None means no limit. If there is a wait, ``on_wait(seconds)``
        is called once, before it, with its expected length.

        Raises RateLimitTimeoutError as soon as it is clear that no slot comes within
        ``timeout`` seconds; no slot is booked then.
        """
        in_line = self._line.acquire(timeout, on_wait=on_wait)
        wait = self._book(timeout, in_line)
        if wait > 0:
            self._line.pause(wait)  # callers behind this one book no slot until its slot has come
            if on_wait is not None and not in_line:
                on_wait(wait)
            time.sleep(wait)
        return in_line + wait

    async def acquire_async(self, timeout: float | None = None, *, on_wait: OnWait = None) -> float:
        """Do what ``acquire`` does, without blocking the event loop.

        The call to Redis runs in a thread, because the client is synchronous.
        """
        in_line = await self._line.acquire_async(timeout, on_wait=on_wait)
        wait = await asyncio.to_thread(self._book, timeout, in_line)
        if wait > 0:
            self._line.pause(wait)
            if on_wait is not None and not in_line:
                on_wait(wait)
            await asyncio.sleep(wait)
        return in_line + wait

    def pause(self, seconds: float) -> None:
        """Block the new starts of all processes for ``seconds``; booked slots are kept.

        Call it with the Retry-After of a 429. Without Redis, it blocks only this process. In
        an event loop, the call to Redis runs in a thread, and ``pause`` returns at once.
        """
        self._line.pause(seconds)
        without_blocking(lambda: self._run_script(delay=seconds, interval=0.0, max_wait=math.inf))

    def __repr__(self) -> str:
        pace = "local" if self._redis.is_local else "shared"
        return f"SharedRateLimiter({self._redis.name!r}, {self.max_requests_per_minute:g}, {pace})"

    def _book(self, timeout: float | None, in_line: float) -> float:
        """Book a slot in Redis, or without it. Return the seconds until the slot."""
        max_wait = math.inf if timeout is None else max(0.0, timeout - in_line)
        wait = self._run_script(0.0, self._interval, max_wait)
        if wait is None:
            wait = self._book_locally(max_wait)
        if wait < 0:
            raise RateLimitTimeoutError(f"no request may start within {timeout:g} s")
        return wait

    def _run_script(self, delay: float, interval: float, max_wait: float) -> float | None:
        """Return the seconds until the slot, < 0 if that is too long, None without Redis."""
        limit = f"{self.max_requests_per_minute:.12g}"
        reply = self._redis.run(limit, *map(_microseconds, (delay, interval, max_wait)))
        return None if reply is None else float(reply[0] / 1e6)

    def _book_locally(self, max_wait: float) -> float:
        """Return the seconds until this process's own slot, or -1 if that is too long."""
        with self._redis.lock:
            now = time.monotonic()
            slot = max(now, self._next_local_slot)
            if slot - now > max_wait:
                return -1.0
            self._next_local_slot = slot + self._local_interval
        return slot - now

    def _start_locally(self) -> None:
        """Wait for a random part of an interval: all processes lose Redis at the same moment."""
        first_slot = time.monotonic() + random.random() * self._local_interval
        self._next_local_slot = max(self._next_local_slot, first_slot)


def _microseconds(seconds: float) -> int:
    """Round up, so that the rate is never exceeded."""
    return math.ceil(min(seconds * 1e6, FOREVER))
