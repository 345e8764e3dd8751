"""lib/shared_token_limiter.py without a server: its interface, and what it does without Redis.

The script itself is in tests/shared: ``make test-shared``.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conftest import FakeClock
from fake_redis import AuthenticationError, FakeRedis
from lib.client import Limits, MistralClient
from lib.pipeline import Pipeline
from lib.resilient_client import ResilientMistralClient
from lib.shared_token_limiter import RedisAccessError, SharedTokenLimiter, TokenLimitTimeoutError
from lib.token_limiter import TokenLimiter
from support import (
    Method,
    interrupt_everywhere,
    join_line,
    rejects,
    returns_when_interrupted,
)


class Ledger(FakeRedis):
    """The script of the ledger, in Python: nothing expires, and it keeps no places."""

    def __init__(self, clock: FakeClock, **connection: Any) -> None:
        super().__init__(clock, **connection)
        self.used: Counter[str] = Counter()
        self.callers: set[str] = set()
        self.paused_until = 0.0

    def run_script(self, key: str, *args: Any) -> list[Any]:
        _own_limit, limit, _window, step, *arguments = args
        has_room = getattr(self, step)(key, limit, *arguments)
        return [int(has_room or 0), 1, limit - self.used[key], b""]

    def reserve(self, key: str, limit: int, tokens: int, caller: str, asks_again: int) -> bool:
        has_room = self.used[key] + min(tokens, limit) <= limit
        has_room = has_room and self.clock.now >= self.paused_until
        self.used[key] += tokens if has_room else 0
        self.callers.discard(caller)
        if asks_again and not has_room:
            self.callers.add(caller)
        return has_room

    def leave(self, key: str, limit: int, caller: str) -> None:
        self.callers.discard(caller)

    def update(
        self, key: str, limit: int, bucket: int, freed: int, added: int, remaining: int, pause: int
    ) -> None:
        self.used[key] += added - freed
        self.used[key] += max(0, limit - self.used[key] - remaining)
        self.paused_until = max(self.paused_until, self.clock.now + pause / 1000)


@pytest.fixture
def redis() -> Ledger:
    """It has a clock of its own, which stands still; waits are real."""
    return Ledger(FakeClock())


def limiter(redis: FakeRedis, name: str = "api", **settings: Any) -> SharedTokenLimiter:
    return SharedTokenLimiter(redis, name, **{"max_tokens_per_minute": 100, **settings})


def during(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let ``act`` happen while a script runs, after its effect and before its reply."""
    run_script = redis.run_script

    def slow(*args: Any) -> list[Any]:
        reply = run_script(*args)
        act()
        return reply

    monkeypatch.setattr(redis, "run_script", slow)


class TestArguments:
    @pytest.mark.parametrize("wrong", [0, -1, 1.5, "100", None, True])
    def test_a_wrong_limit(self, wrong: Any, redis: Ledger) -> None:
        with pytest.raises(ValueError, match="max_tokens_per_minute must be an integer >= 1, got"):
            limiter(redis, max_tokens_per_minute=wrong)

    def test_a_wrong_client_name_or_share(self, redis: Ledger) -> None:
        with pytest.raises(ValueError, match="redis_client must have a socket_timeout"):
            limiter(Ledger(FakeClock(), socket_timeout=None))
        with pytest.raises(ValueError, match="name must be a non-empty string"):
            limiter(redis, "")
        with pytest.raises(ValueError, match="local_share must be a number > 0 and <= 1, got 2"):
            limiter(redis, local_share=2)

    @pytest.mark.parametrize("wrong", [-1, math.nan, "1"])
    def test_a_wrong_number_asks_nothing_of_redis(
        self, reserve: Method, wrong: Any, redis: Ledger
    ) -> None:
        shared = limiter(redis)
        for call in (
            lambda: reserve(shared, wrong),
            lambda: reserve(shared, 1, wrong),
            lambda: shared.pause(wrong),
        ):
            with pytest.raises(ValueError, match=r"must be .* >= 0, got"):
                call()
        assert redis.calls == []


class TestLedger:
    @pytest.mark.parametrize("used", [0, 70, 120])
    def test_settling_corrects_the_estimate(
        self, reserve: Method, used: int, redis: Ledger
    ) -> None:
        reservation = reserve(limiter(redis), 70)
        assert limiter(redis).available == 30
        reservation.settle(used)
        assert limiter(redis).available == 100 - used

    def test_a_call_costs_two_round_trips(self, reserve: Method, redis: Ledger) -> None:
        reserve(limiter(redis), 70).settle(50)
        assert len(redis.calls) == 2

    def test_a_reservation_is_settled_once(self, redis: Ledger) -> None:
        reservation = limiter(redis).reserve(70)
        reservation.settle(10)
        with pytest.raises(ValueError, match="already settled: settle each one once"):
            reservation.settle(10)
        assert limiter(redis).available == 90

    def test_it_takes_the_place_of_a_token_limiter(self, redis: Ledger) -> None:
        shared = limiter(redis)
        pipeline = Pipeline(token_limiter=shared)
        pipeline.call(lambda attempt: attempt.settle(30), tokens=50)
        assert shared.available == 70
        with MistralClient("any-key") as client:
            ResilientMistralClient(client, token_limiter=shared)
        public = {name for name in vars(TokenLimiter) if not name.startswith("_")}
        assert public <= set(vars(SharedTokenLimiter))


class TestTimeout:
    @pytest.mark.parametrize("timeout", [0, 0.05])
    def test_a_caller_that_gives_up_books_nothing_and_keeps_no_place(
        self, reserve: Method, timeout: float, redis: Ledger
    ) -> None:
        limiter(redis).reserve(60)
        shared = limiter(redis)
        with pytest.raises(TokenLimitTimeoutError, match=f"no room for 50 .* {timeout:g} s"):
            reserve(shared, 50, timeout)
        assert repr(shared) == "SharedTokenLimiter('api', 100, shared, waiting=0)"
        assert (shared.available, redis.callers) == (40, set())

    def test_a_caller_behind_others_gives_up_in_time(self, reserve: Method, redis: Ledger) -> None:
        shared = limiter(redis)
        first = shared.reserve(100)
        with ThreadPoolExecutor(1) as pool:
            second = join_line(pool, shared, 50)
            with pytest.raises(TokenLimitTimeoutError):
                reserve(shared, 0, 0.05)
            first.settle(0)
            second.result(timeout=10)


class TestWaiting:
    @pytest.mark.parametrize("change", ["settlement", "settlement elsewhere", "limit"])
    def test_a_caller_starts_when_there_is_room(
        self, reserve: Method, change: str, redis: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It asks Redis again now and then, and at once if the room is made in its process."""
        ask_again_after = 0.03 if change == "settlement elsewhere" else 60
        monkeypatch.setattr("lib.shared_token_limiter.ASK_AGAIN_AFTER", ask_again_after)
        shared, elsewhere = limiter(redis), limiter(redis)
        first, other = shared.reserve(50), elsewhere.reserve(50)
        make_room: dict[str, Callable[[], object]] = {
            "settlement": lambda: first.settle(0),
            "settlement elsewhere": lambda: other.settle(0),
            "limit": lambda: setattr(shared, "max_tokens_per_minute", 200),
        }
        threading.Timer(0.02, make_room[change]).start()
        assert 0 < reserve(shared, 40, 30).waited < 30
        assert len(redis.calls) < 20


class TestGivingUp:
    def test_a_task_that_is_cancelled_in_line_leaves_no_place(self, redis: Ledger) -> None:
        shared = limiter(redis)

        async def main() -> None:
            await shared.reserve_async(100)
            tasks = [asyncio.create_task(shared.reserve_async(50)) for _ in range(3)]
            while not redis.callers:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())
        assert (redis.callers, shared.available) == (set(), 0)
        assert "waiting=0" in repr(shared)

    def test_a_task_that_is_cancelled_while_redis_books_gives_its_tokens_back(
        self, redis: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared, booked, cancelled = limiter(redis), threading.Event(), threading.Event()

        def pass_time() -> None:
            booked.set()
            cancelled.wait(timeout=10)

        async def main() -> None:
            task = asyncio.create_task(shared.reserve_async(50))
            await asyncio.to_thread(booked.wait, 10)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            cancelled.set()

        during(redis, monkeypatch, pass_time)
        asyncio.run(main())
        assert shared.available == 100

    def test_ctrl_c_leaves_no_place(self, redis: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        shared, interruptions = limiter(redis), iter([KeyboardInterrupt])
        shared.reserve(100)

        def interrupt_once() -> None:
            for interruption in interruptions:
                raise interruption

        during(redis, monkeypatch, interrupt_once)
        with pytest.raises(KeyboardInterrupt):
            shared.reserve(50)
        assert redis.callers == set()
        assert "waiting=0" in repr(shared)

    def test_ctrl_c_anywhere_blocks_nobody_and_books_the_estimate_at_most(
        self, redis: Ledger
    ) -> None:
        shared, points = limiter(redis), 0

        def reserve_settle_and_give_up() -> None:
            shared.reserve(60).settle(50)
            rejects(shared, 60)

        with ThreadPoolExecutor(1) as pool:
            for points in interrupt_everywhere(reserve_settle_and_give_up):  # noqa: B007
                assert "waiting=0" in repr(shared)
                assert redis.callers == set()
                assert pool.submit(lambda: shared.available).result(timeout=10) >= 40
                redis.used.clear()
        assert points > 100


class TestPause:
    def test_it_holds_every_limiter_of_the_name(self, redis: Ledger) -> None:
        limiter(redis).pause(1.5)
        assert rejects(limiter(redis), 1)
        redis.clock.now += 1.5
        assert not rejects(limiter(redis), 1)

    @pytest.mark.parametrize("lost", ["long before", "before", "after"])
    def test_without_redis_it_holds_this_process(self, lost: str, redis: Ledger) -> None:
        shared, refused = limiter(redis, local_share=1), ConnectionError("refused")
        redis.error = refused if lost != "after" else None
        if lost == "long before":
            assert shared.available == 100
        for seconds in (30, 0):
            shared.pause(seconds)
        redis.error = refused
        assert rejects(shared, 1)


class TestObserve:
    def test_a_lower_limit_counts_as_long_as_the_server_says_so(self, redis: Ledger) -> None:
        shared = limiter(redis)
        for tokens_per_minute, limit in ((50, 50), (None, 50), (1000, 100)):
            shared.observe(Limits(tokens_per_minute=tokens_per_minute))
            assert shared.max_tokens_per_minute == limit

    def test_fewer_remaining_tokens_are_booked_for_all(self, redis: Ledger) -> None:
        for remaining, available in ((30, 30), (90, 30), (None, 30), (-5, 0)):
            limiter(redis).observe(Limits(remaining_tokens=remaining))
            assert limiter(redis).available == available


class TestEventLoop:
    def test_it_never_waits_for_redis(self, redis: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        shared, loop_goes_on, went_on = limiter(redis), threading.Event(), list[bool]()

        async def main() -> None:
            reservation = await shared.reserve_async(50)
            during(redis, monkeypatch, lambda: went_on.append(loop_goes_on.wait(timeout=5)))
            reservation.settle(10)
            shared.pause(0)
            shared.observe(Limits(remaining_tokens=80))
            task = asyncio.create_task(shared.reserve_async(10))
            await asyncio.sleep(0.05)
            loop_goes_on.set()
            await task

        asyncio.run(main())
        assert went_on == [True] * 4


class TestWithoutRedis:
    def test_the_share_of_a_process_is_one_token_at_least(self, redis: Ledger) -> None:
        redis.error = ConnectionError("refused")
        assert limiter(redis, max_tokens_per_minute=5, local_share=0.1).available == 1

    def test_each_process_limits_itself_to_its_share(self, reserve: Method, redis: Ledger) -> None:
        shared = limiter(redis, local_share=0.5)
        redis.error = ConnectionError("refused")
        reserve(shared, 50, 0)
        assert repr(shared) == "SharedTokenLimiter('api', 100, local, waiting=0)"
        with pytest.raises(TokenLimitTimeoutError):
            reserve(shared, 1, 0)

    def test_a_reservation_is_settled_where_it_was_booked(self, redis: Ledger) -> None:
        shared = limiter(redis, local_share=1)
        redis.error = ConnectionError("refused")
        shared.reserve(50).settle(10)
        assert shared.available == 90

    def test_what_all_had_used_counts_against_the_share(self, redis: Ledger) -> None:
        shared = limiter(redis, local_share=0.5)
        limiter(redis).reserve(60)
        assert shared.available == 40
        redis.error = ConnectionError("refused")
        assert not rejects(shared, 20)
        assert rejects(shared, 1)

    def test_what_was_used_meanwhile_is_booked_in_redis(
        self, redis: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lib.redis_script.RETRY_REDIS_AFTER", 0.0)
        shared = limiter(redis, local_share=0.5)
        limiter(redis).reserve(20)
        for _ in range(2):
            redis.error = ConnectionError("refused")
            shared.reserve(15)
            redis.error = None
            shared.reserve(5)
        assert limiter(redis).available == 100 - 20 - 2 * (15 + 5)
        assert "shared" in repr(shared)

    def test_a_rejected_password_is_an_error_and_no_outage(
        self, reserve: Method, redis: Ledger
    ) -> None:
        shared = limiter(redis)
        redis.error = AuthenticationError("invalid username-password pair")
        with pytest.raises(RedisAccessError, match=r"'api' \(invalid username-password pair\)"):
            reserve(shared, 1)
        assert repr(shared) == "SharedTokenLimiter('api', 100, shared, waiting=0)"


class TestSignalHandler:
    def test_the_state_can_be_read_at_any_moment(self, redis: Ledger) -> None:
        shared = limiter(redis)
        assert returns_when_interrupted(lambda: shared.reserve(1).settle(1), lambda: repr(shared))
