"""lib/shared_rate_limiter.py without a server: its arguments, and its pace without Redis.

The rest is in tests/shared: ``make test-shared``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import FakeClock
from fake_redis import AuthenticationError, FakeRedis
from lib.circuit_breaker import is_service_failure
from lib.pipeline import RequestLimiter
from lib.rate_limiter import RateLimitTimeoutError
from lib.retry import is_retryable
from lib.shared_rate_limiter import RedisAccessError, SharedRateLimiter
from support import Method, in_forked_child, run_in_threads

INTERVAL = 1 / 0.985  # seconds between two starts at 60 per minute
LOCAL_INTERVAL = 10 * INTERVAL


class Slots(FakeRedis):
    """The script that books slots, in Python."""

    def __init__(self, clock: FakeClock, **connection: Any) -> None:
        super().__init__(clock, **connection)
        self.next_slots: dict[str, float] = {}
        self.limits: dict[str, str] = {}

    def run_script(self, key: str, *args: Any) -> list[Any]:
        limit, delay, interval, max_wait = args
        now, other = self.clock.now * 1e6, self.limits.get(key, limit)
        self.limits[key] = limit
        slot = max(now + delay, self.next_slots.get(key, 0))
        fits = slot - now <= max_wait
        if fits:
            self.next_slots[key] = slot + interval
        return [int(slot - now) if fits else -1, other.encode() if other != limit else b""]


@pytest.fixture
def redis(clock: FakeClock) -> Slots:
    return Slots(clock)


def limiter(redis: Slots, name: str = "api", **settings: Any) -> SharedRateLimiter:
    return SharedRateLimiter(redis, name, **{"max_requests_per_minute": 60, **settings})


def seconds(*values: float) -> Any:
    return pytest.approx(list(values), abs=1e-4)


class TestArguments:
    @pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, "60", None, True])
    def test_a_wrong_rate_at_construction_or_later(self, wrong: Any, redis: Slots) -> None:
        shared = limiter(redis)
        with pytest.raises(ValueError, match="max_requests_per_minute must be a number > 0, got"):
            limiter(redis, max_requests_per_minute=wrong)
        with pytest.raises(ValueError, match="max_requests_per_minute must be a number > 0, got"):
            shared.max_requests_per_minute = wrong
        assert shared.max_requests_per_minute == 60

    @pytest.mark.parametrize(
        ("setting", "values", "sentence"),
        [
            ("local_share", [0, -0.1, 1.1, math.nan, "0.1", True], "must be a number > 0 and <= 1"),
            ("name", ["", None, 1], "must be a non-empty string"),
        ],
    )
    def test_a_wrong_share_or_name(
        self, setting: str, values: list[Any], sentence: str, redis: Slots
    ) -> None:
        for wrong in values:
            with pytest.raises(ValueError, match=f"{setting} {sentence}, got"):
                limiter(redis, **{setting: wrong})

    @pytest.mark.parametrize("wrong", [-1, math.nan, "1"])
    def test_a_wrong_timeout_or_pause(self, wrong: Any, redis: Slots) -> None:
        with pytest.raises(ValueError, match="timeout must be a number of seconds >= 0, got"):
            limiter(redis).acquire(wrong)
        with pytest.raises(ValueError, match="seconds must be a number of seconds >= 0, got"):
            limiter(redis).pause(wrong)
        assert redis.calls == []

    def test_a_client_that_could_block_for_long(self, clock: FakeClock) -> None:
        for socket_timeout in (None, 0, 6):
            with pytest.raises(ValueError, match="must have a socket_timeout of at most 5 seconds"):
                limiter(Slots(clock, socket_timeout=socket_timeout))
        with pytest.raises(ValueError, match="and 3 retries: create it with"):
            limiter(Slots(clock, retry=SimpleNamespace(_retries=3)))

    @pytest.mark.parametrize("wrong", [None, "redis://localhost", SimpleNamespace()])
    def test_what_is_not_a_client(self, wrong: Any) -> None:
        with pytest.raises(ValueError, match=r"redis_client must be a redis\.Redis or"):
            limiter(wrong)


class TestPace:
    def test_starts_are_evenly_spaced_at_one_round_trip_each(
        self, acquire: Method, redis: Slots
    ) -> None:
        shared = limiter(redis)
        assert [acquire(shared) for _ in range(4)] == seconds(0, INTERVAL, INTERVAL, INTERVAL)
        assert len(redis.calls) == 4

    def test_it_can_be_changed(self, acquire: Method, redis: Slots) -> None:
        """With Redis and without it, it applies from the slot after the next one."""
        shared = limiter(redis, local_share=1)
        acquire(shared)
        shared.max_requests_per_minute = 6000
        assert [acquire(shared) for _ in range(2)] == seconds(INTERVAL, INTERVAL / 100)
        redis.error = ConnectionError("refused")
        assert acquire(shared) < INTERVAL / 50
        assert acquire(shared) == pytest.approx(INTERVAL / 100, abs=1e-4)

    def test_limiters_of_one_name_share_their_slots(self, redis: Slots) -> None:
        one, other, unrelated = limiter(redis), limiter(redis), limiter(redis, "other")
        waits = [one.acquire(), other.acquire(), one.acquire(), unrelated.acquire()]
        assert waits == seconds(0, INTERVAL, INTERVAL, 0)

    def test_a_wait_is_told_once(self, acquire: Method, redis: Slots) -> None:
        """For the slot, or for the place in line, whichever comes first."""
        shared, told = limiter(redis), list[float]()
        for _ in range(3):
            acquire(shared, on_wait=told.append)
        limiter(redis).pause(5)
        acquire(limiter(redis), on_wait=told.append)
        assert told == pytest.approx([1, 1, 5], abs=0.02)

    def test_it_takes_the_place_of_a_rate_limiter(self, redis: Slots) -> None:
        its_place: RequestLimiter = limiter(redis)
        assert its_place.acquire(timeout=1) == 0
        assert repr(its_place) == "SharedRateLimiter('api', 60, shared)"

    @pytest.mark.parametrize("timeout", [0, 0.5, 1.01])
    def test_a_caller_that_cannot_start_in_time_books_nothing(
        self, acquire: Method, timeout: float, redis: Slots
    ) -> None:
        limiter(redis).acquire()
        with pytest.raises(RateLimitTimeoutError, match=f"within {timeout:g} s"):
            acquire(limiter(redis), timeout)
        assert limiter(redis).acquire() == pytest.approx(INTERVAL, abs=1e-4)

    def test_time_in_line_counts(self, acquire: Method, redis: Slots) -> None:
        """Callers of one process wait a second for each other, then for the pause in Redis."""
        shared = limiter(redis)
        shared.acquire()
        limiter(redis).pause(3)
        with pytest.raises(RateLimitTimeoutError):
            acquire(shared, 2.9)
        assert acquire(shared, 2.1) == pytest.approx(2, abs=1e-3)

    def test_a_pause_holds_every_limiter_of_the_name(self, acquire: Method, redis: Slots) -> None:
        limiter(redis).pause(5)
        assert acquire(limiter(redis)) == pytest.approx(5, abs=1e-4)


class TestOneLimitPerName:
    def test_another_limit_of_the_name_is_told_once(
        self, acquire: Method, redis: Slots, caplog: pytest.LogCaptureFixture
    ) -> None:
        slow, fast = limiter(redis), limiter(redis, max_requests_per_minute=7.5e9)
        for shared in (slow, limiter(redis, "another name"), slow, fast, fast, slow, fast, slow):
            acquire(shared)
        assert [record.message for record in caplog.records] == [
            f"The limit 'api' is {mine} per minute in this process and {theirs} in another: give "
            "all processes that use the name the same limit"
            for mine, theirs in (("7500000000", "60"), ("60", "7500000000"))
        ]

    def test_a_pause_is_no_other_limit(
        self, redis: Slots, caplog: pytest.LogCaptureFixture
    ) -> None:
        limiter(redis).acquire()
        limiter(redis).pause(1)
        limiter(redis).acquire()
        assert caplog.records == []


class TestEventLoop:
    def test_a_pause_does_not_wait_for_redis(
        self, redis: Slots, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop_goes_on, went_on = threading.Event(), list[bool]()

        def slow(*args: Any) -> list[Any]:
            went_on.append(loop_goes_on.wait(timeout=5))
            return [0, b""]

        async def main() -> None:
            limiter(redis).pause(1)
            loop_goes_on.set()

        monkeypatch.setattr(redis, "run_script", slow)
        asyncio.run(main())
        assert went_on == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
class TestFork:
    def test_the_child_waits_for_no_lock_of_the_parent(
        self, redis: Slots, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread of the parent is about to lose Redis: it holds the lock."""
        shared = limiter(redis, max_requests_per_minute=6e6)
        redis.error = ConnectionError("refused")
        losing, forked = threading.Event(), threading.Event()

        def interrupted() -> float:
            losing.set()
            forked.wait(timeout=10)
            return 0.0

        monkeypatch.setattr("random.random", interrupted)
        with ThreadPoolExecutor(1) as pool:
            lost = pool.submit(shared.acquire)
            assert losing.wait(timeout=10)
            monkeypatch.setattr("random.random", lambda: 0.0)
            assert in_forked_child(shared.acquire) >= 0
            forked.set()
            lost.result(timeout=10)


class TestWithoutRedis:
    def test_each_process_paces_itself_at_its_share(self, acquire: Method, redis: Slots) -> None:
        shared = limiter(redis)
        redis.error = ConnectionError("refused")
        first, *others = [acquire(shared) for _ in range(4)]
        assert 0 <= first <= LOCAL_INTERVAL  # at random, so that processes don't start together
        assert others == seconds(*[LOCAL_INTERVAL] * 3)
        assert repr(shared) == "SharedRateLimiter('api', 60, local)"

    def test_processes_that_lose_redis_together_do_not_start_together(self, redis: Slots) -> None:
        redis.error = ConnectionError("refused")
        waits = {limiter(redis).acquire() for _ in range(20)}
        assert len(waits) == 20
        assert INTERVAL < max(waits) < LOCAL_INTERVAL

    def test_a_timeout_holds_and_books_nothing(self, acquire: Method, redis: Slots) -> None:
        shared = limiter(redis)
        redis.error = ConnectionError("refused")
        shared.acquire()
        with pytest.raises(RateLimitTimeoutError, match="within 1 s"):
            acquire(shared, 1)
        assert 1 < acquire(shared, 2 * LOCAL_INTERVAL) < LOCAL_INTERVAL + 1e-4

    def test_redis_is_tried_once_per_second(self, clock: FakeClock, redis: Slots) -> None:
        shared = limiter(redis, max_requests_per_minute=6000)
        redis.error = ConnectionError("refused")
        begin = clock.now
        while clock.now < begin + 4.9:
            shared.acquire()
        assert len(redis.calls) == 5

    def test_one_caller_tries_redis_and_the_others_go_on(
        self, clock: FakeClock, redis: Slots, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared = limiter(redis, max_requests_per_minute=600)
        redis.error = ConnectionError("refused")
        shared.acquire()
        clock.now += 1.1
        meanwhile = list[float]()

        def slow(*args: Any) -> list[Any]:
            meanwhile.append(shared.acquire())
            return [0, b""]

        redis.error = None
        monkeypatch.setattr(redis, "run_script", slow)
        shared.acquire()
        assert len(meanwhile) == 1

    def test_it_comes_back_by_itself_and_each_outage_is_logged_once(
        self, clock: FakeClock, redis: Slots, caplog: pytest.LogCaptureFixture
    ) -> None:
        shared = limiter(redis)
        with caplog.at_level(logging.INFO):
            for _ in range(2):
                redis.error = ConnectionError("refused")
                for _ in range(5):
                    shared.acquire()
                    clock.now += 1.1
                redis.error = None
                assert shared.acquire() == 0
                assert repr(shared) == "SharedRateLimiter('api', 60, shared)"
                clock.now += 1.1
        assert [record.message for record in caplog.records] == [
            "Redis can't be used (ConnectionError: refused); until it can, this process paces "
            "itself at 10 % of the limit 'api'",
            "Redis can be used again; the limit 'api' is shared",
        ] * 2

    def test_no_local_slot_is_booked_twice_by_threads(self, clock: FakeClock, redis: Slots) -> None:
        shared = limiter(redis)
        redis.error = ConnectionError("refused")
        shared.acquire()
        begin = clock.now
        run_in_threads(4, lambda: [shared.acquire() for _ in range(10)], interleaved=True)
        assert clock.now - begin >= 39 * LOCAL_INTERVAL

    def test_an_outage_that_comes_and_goes_gives_no_more_than_the_share(
        self, clock: FakeClock, redis: Slots
    ) -> None:
        shared, started_at, slots = limiter(redis), clock.now, list[float]()
        for _ in range(20):
            redis.error = ConnectionError("refused")
            shared.acquire()
            slots.append(clock.now)
            clock.now += 1.1
            redis.error = None
            shared.acquire()
        assert slots[-1] - started_at >= 19 * LOCAL_INTERVAL

    def test_a_pause_holds_this_process(self, acquire: Method, redis: Slots) -> None:
        shared = limiter(redis, local_share=1)
        redis.error = ConnectionError("refused")
        shared.pause(5)
        assert acquire(shared) >= 5

    @pytest.mark.parametrize(
        "error",
        [
            AuthenticationError("invalid username-password pair"),
            Exception("ACL failure in script: User u has no permissions to run the 'get' command"),
            Exception("The user executing the script can't run this command or subcommand"),
        ],
    )
    def test_a_client_that_redis_rejects_is_an_error_and_no_outage(
        self, acquire: Method, error: Exception, redis: Slots
    ) -> None:
        shared = limiter(redis)
        redis.error = error
        with pytest.raises(RedisAccessError, match=f"'api' \\({error}\\): check its username"):
            acquire(shared)
        assert repr(shared) == "SharedRateLimiter('api', 60, shared)"

    def test_it_is_neither_retried_nor_counted_against_the_service(self) -> None:
        assert not is_retryable(RedisAccessError())
        assert not is_service_failure(RedisAccessError())
