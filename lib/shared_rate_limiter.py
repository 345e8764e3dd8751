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

Copy this file with rate_limiter.py. It imports no Redis library: you pass a client of the
package redis (4.6 to 8) or valkey (6). The server must be Redis 6 or newer, or Valkey.

Each start needs one round trip to Redis. A script, which Redis runs as one atomic step, books
the next free slot. It reads the clock of the Redis server, so a worker whose own clock is
wrong does no harm.

After the generic cell rate algorithm (GCRA) of ITU-T I.371, which stores only the time of the
next free slot. Brandur Leach's redis-cell keeps it in Redis
(https://brandur.org/rate-limiting). Here it allows no bursts: starts are evenly spaced.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
import threading
import time
from typing import Any

from .rate_limiter import PACE, OnWait, RateLimiter, RateLimitTimeoutError

_logger = logging.getLogger(__name__)

RETRY_REDIS_AFTER = 1.0  # seconds without Redis until one caller tries it again
MAX_SOCKET_TIMEOUT = 5.0  # seconds
FOREVER = 2**53  # microseconds; above that, Lua's numbers are not exact

# All times are in microseconds. The key holds the time of the next free slot, and expires then.
BOOK_SLOT = """
local delay, interval, max_wait = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local slot = math.max(now + delay, tonumber(redis.call('GET', KEYS[1]) or 0))
if slot - now > max_wait then
    return -1
end
local next_slot = slot + interval
redis.call('SET', KEYS[1], next_slot, 'PX', math.floor((next_slot - now) / 1000) + 1)
return slot - now
"""

# Exceptions of redis and valkey for a rejected login or command, by name because neither library
# is imported here.
ACCESS_ERRORS = {"AuthenticationError", "AuthorizationError", "NoPermissionError"}


class RedisAccessError(RuntimeError):
    """Redis rejects the client's password, or its user lacks a permission.

    It is not retryable, and says nothing about the service that the limit is for.
    """

    retryable = False


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
        _check_client(redis_client)
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a non-empty string, got {name!r}")
        if type(local_share) not in (int, float) or not 0 < local_share <= 1:
            raise ValueError(f"local_share must be a number > 0 and <= 1, got {local_share!r}")
        # The callers of this process. Redis makes the pace, so the line is a bit faster.
        self._line = RateLimiter(max_requests_per_minute)
        self._line.max_requests_per_minute /= PACE
        self.name = name
        self.max_requests_per_minute = max_requests_per_minute
        self.local_share = local_share
        self._interval = 60.0 / (max_requests_per_minute * PACE)
        self._keys = [f"rate-limit:{name}"]
        self._script = redis_client.register_script(BOOK_SLOT)
        self._is_local = False
        self._try_redis_at = -math.inf  # on the monotonic clock, like the next one
        self._next_local_slot = -math.inf
        self._lock = threading.Lock()

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

        Call it with the Retry-After of a 429. Without Redis, it blocks only this process. The
        call to Redis blocks: from async code, use ``asyncio.to_thread``.
        """
        self._line.pause(seconds)
        self._run_script(delay=seconds, interval=0.0, max_wait=math.inf)

    def __repr__(self) -> str:
        pace = "local" if self._is_local else "shared"
        return f"SharedRateLimiter({self.name!r}, {self.max_requests_per_minute:g}, {pace})"

    def _book(self, timeout: float | None, in_line: float) -> float:
        """Book a slot in Redis, or without it. Return the seconds until the slot."""
        max_wait = math.inf if timeout is None else max(0.0, timeout - in_line)
        wait = self._run_script(0.0, self._interval, max_wait)
        if wait is None:
            wait = self._book_locally(max_wait)
        if wait < 0:
            raise RateLimitTimeoutError(f"no request may start within {timeout:g} s")
        return wait

    def _book_locally(self, max_wait: float) -> float:
        """Return the seconds until this process's own slot, or -1 if that is too long."""
        with self._lock:
            now = time.monotonic()
            slot = max(now, self._next_local_slot)
            if slot - now > max_wait:
                return -1.0
            self._next_local_slot = slot + self._interval / self.local_share
        return slot - now

    def _run_script(self, delay: float, interval: float, max_wait: float) -> float | None:
        """Return the seconds until the slot, -1 if that is too long, None without Redis."""
        with self._lock:
            if self._is_local:
                if time.monotonic() < self._try_redis_at:
                    return None
                # This caller tries Redis; in the meantime, the others keep the local pace.
                self._try_redis_at = time.monotonic() + RETRY_REDIS_AFTER
        try:
            microseconds = self._script(
                self._keys, [_microseconds(delay), _microseconds(interval), _microseconds(max_wait)]
            )
        except Exception as error:
            if any(cls.__name__ in ACCESS_ERRORS for cls in type(error).__mro__):
                raise RedisAccessError(
                    f"Redis rejects the client of the limit {self.name!r} ({error}): check its "
                    "username and password, and that it may run EVALSHA, SCRIPT, GET and SET"
                ) from error
            self._go_local(error)
            return None
        if self._is_local:
            with self._lock:
                was_local, self._is_local = self._is_local, False  # the next outage is logged again
            if was_local:
                _logger.info("Redis can be used again; the limit %r is shared", self.name)
        return -1.0 if microseconds < 0 else float(microseconds / 1e6)

    def _go_local(self, error: Exception) -> None:
        with self._lock:
            self._try_redis_at = time.monotonic() + RETRY_REDIS_AFTER
            if self._is_local:
                return
            self._is_local = True
            # Random, because all processes lose Redis at the same moment.
            first_wait = random.random() * self._interval / self.local_share
            self._next_local_slot = max(self._next_local_slot, time.monotonic() + first_wait)
        _logger.warning(
            "Redis can't be used (%s: %s); until it can, this process paces itself at %g %% of "
            "the limit %r",
            type(error).__name__, error, 100 * self.local_share, self.name,
        )  # fmt: skip


def _microseconds(seconds: float) -> int:
    """Round up, so that the rate is never exceeded."""
    return math.ceil(min(seconds * 1e6, FOREVER))


def _check_client(redis_client: Any) -> None:
    pool = getattr(redis_client, "connection_pool", None)
    if pool is None or inspect.iscoroutinefunction(redis_client.execute_command):
        raise ValueError(
            "redis_client must be a redis.Redis or valkey.Valkey (not asyncio, not a cluster), "
            f"got {type(redis_client)}"
        )
    connection = pool.connection_class(**pool.connection_kwargs)  # this does not connect yet
    timeout, retries = connection.socket_timeout, connection.retry._retries
    if not 0 < (timeout or math.inf) <= MAX_SOCKET_TIMEOUT or retries:
        raise ValueError(
            f"redis_client must have a socket_timeout of at most {MAX_SOCKET_TIMEOUT:g} seconds "
            f"and no retries, got socket_timeout={timeout} and {retries} retries: create it with "
            "redis.Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5)"
        )
