"""lib/token_limiter.py: within the allowance, in order, and settled with what was used."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conftest import FakeClock
from lib.circuit_breaker import is_service_failure
from lib.client import Limits, MistralClient
from lib.mock_server import MockServer
from lib.mock_server.limits import SlidingWindow
from lib.retry import is_retryable
from lib.token_limiter import (
    TokenLimiter,
    TokenLimitTimeoutError,
    TokenReservation,
    estimate_tokens,
)
from support import interrupt_everywhere, run_in_threads

Reserve = Callable[..., TokenReservation]


@pytest.fixture(params=["reserve", "reserve_async"])
def reserve(request: pytest.FixtureRequest) -> Reserve:
    """Reserve tokens: once with ``reserve``, once with ``reserve_async``."""
    if request.param == "reserve":
        return lambda limiter, *arguments: limiter.reserve(*arguments)
    return lambda limiter, *arguments: asyncio.run(limiter.reserve_async(*arguments))


class TestLedger:
    def test_what_is_reserved_is_not_available_for_60_seconds(
        self, reserve: Reserve, clock: FakeClock
    ) -> None:
        limiter = TokenLimiter(100)
        reserve(limiter, 70)
        assert limiter.available == 30
        clock.now += 59.9
        assert limiter.available == 30
        clock.now += 0.1
        assert limiter.available == 100

    @pytest.mark.parametrize(("used", "available"), [(10, 90), (70, 30), (95, 5), (120, -20)])
    def test_settling_corrects_the_estimate_either_way(
        self, reserve: Reserve, used: int, available: int, clock: FakeClock
    ) -> None:
        limiter = TokenLimiter(100)
        reserve(limiter, 70).settle(used)
        assert limiter.available == available

    def test_settled_tokens_count_from_the_settlement(self, clock: FakeClock) -> None:
        """When in between the server booked them, nobody here knows."""
        limiter = TokenLimiter(100)
        reservation = limiter.reserve(70)
        clock.now += 20
        reservation.settle(50)
        clock.now += 50
        assert limiter.available == 50
        clock.now += 10
        assert limiter.available == 100

    def test_a_late_settlement_counts_what_was_used(self, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        reservation = limiter.reserve(70)
        clock.now += 100
        reservation.settle(40)
        assert limiter.available == 60

    def test_a_reservation_that_is_never_settled_stays_spent_for_a_minute(
        self, clock: FakeClock
    ) -> None:
        limiter = TokenLimiter(100)
        limiter.reserve(100)
        with pytest.raises(TokenLimitTimeoutError):
            limiter.reserve(1, timeout=0)
        clock.now += 60
        assert limiter.reserve(1, timeout=0).waited == 0

    def test_threads_lose_no_token(self) -> None:
        limiter = TokenLimiter(1000)

        def reserve_and_settle() -> None:
            for _ in range(10):
                limiter.reserve(1).settle(2)
                limiter.observe(Limits(remaining_tokens=1000))

        run_in_threads(8, reserve_and_settle, interleaved=True)
        assert limiter.available == 1000 - 160
        assert TokenLimiter(1).available == 1

    def test_it_is_settled_once(self) -> None:
        reservation = TokenLimiter(100).reserve(70)
        reservation.settle(10)
        with pytest.raises(ValueError, match="settled before"):
            reservation.settle(10)


class TestWaiting:
    def test_a_settlement_makes_room_for_a_waiting_thread(self) -> None:
        limiter = TokenLimiter(100)
        first = limiter.reserve(90)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(limiter.reserve, 50)
            while not limiter._line:
                time.sleep(0.001)
            first.settle(20)
            assert waiting.result(timeout=10).tokens == 50
        assert limiter.available == 30

    def test_a_settlement_makes_room_for_a_waiting_task(self) -> None:
        limiter = TokenLimiter(100)

        async def main() -> None:
            first = await limiter.reserve_async(90)
            task = asyncio.create_task(limiter.reserve_async(50))
            await asyncio.sleep(0.01)
            assert not task.done()
            first.settle(20)
            assert (await asyncio.wait_for(task, 10)).tokens == 50

        asyncio.run(main())

    def test_a_large_request_is_not_overtaken_by_small_ones(self) -> None:
        limiter, order = TokenLimiter(100), list[int]()
        first = limiter.reserve(60)

        def start(tokens: int) -> None:
            limiter.reserve(tokens)
            order.append(tokens)

        with ThreadPoolExecutor(3) as pool:
            for number, tokens in enumerate((80, 10, 5)):
                pool.submit(start, tokens)
                while len(limiter._line) <= number:
                    time.sleep(0.001)
            first.settle(0)
        assert order == [80, 10, 5]

    def test_more_than_the_whole_limit_waits_until_the_ledger_is_empty(
        self, clock: FakeClock
    ) -> None:
        limiter = TokenLimiter(100)
        limiter.reserve(1)
        with pytest.raises(TokenLimitTimeoutError):
            limiter.reserve(500, timeout=0)
        clock.now += 60
        limiter.reserve(500, timeout=0)

    @pytest.mark.parametrize("timeout", [0, 0.05])
    def test_giving_up_books_nothing(self, reserve: Reserve, timeout: float) -> None:
        limiter = TokenLimiter(100)
        limiter.reserve(60)
        with pytest.raises(TokenLimitTimeoutError, match=f"no room for 50 .* {timeout:g} s"):
            reserve(limiter, 50, timeout)
        assert limiter.available == 40
        assert len(limiter._line) == 0

    def test_its_timeout_is_neither_retried_nor_counted_against_the_service(self) -> None:
        error = TokenLimitTimeoutError()
        assert isinstance(error, TimeoutError)
        assert not is_retryable(error)
        assert not is_service_failure(error)

    def test_cancelled_tasks_leave_the_line(self) -> None:
        limiter = TokenLimiter(100)

        async def main() -> None:
            first = await limiter.reserve_async(100)
            tasks = [asyncio.create_task(limiter.reserve_async(100)) for _ in range(5)]
            last = asyncio.create_task(limiter.reserve_async(100))
            await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            first.settle(0)
            await asyncio.wait_for(last, 10)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())
        assert limiter.available == 0

    def test_ctrl_c_at_any_point_leaves_no_lock_held_and_nobody_in_line(
        self, clock: FakeClock
    ) -> None:
        limiter, points = TokenLimiter(100), 0

        def reserve_settle_and_give_up() -> None:
            limiter.reserve(60).settle(50)
            with contextlib.suppress(TokenLimitTimeoutError):
                limiter.reserve(60, timeout=0)

        for points in interrupt_everywhere(reserve_settle_and_give_up):  # noqa: B007
            assert not limiter._lock.locked()
            assert len(limiter._line) == 0
            clock.now += 100
            assert limiter.available == 100
        assert points > 40


class TestPause:
    def test_nothing_is_booked_during_a_pause(self, reserve: Reserve, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        limiter.pause(10)
        limiter.pause(2)
        with pytest.raises(TokenLimitTimeoutError):
            reserve(limiter, 1, 0)
        clock.now += 10
        reserve(limiter, 1, 0)


class TestObserve:
    """The server's own numbers are taken over where they are tighter."""

    def test_a_lower_limit(self) -> None:
        limiter = TokenLimiter(100)
        limiter.observe(Limits(tokens_per_minute=50))
        limiter.observe(Limits(tokens_per_minute=1000))
        assert limiter.max_tokens_per_minute == 50

    def test_fewer_remaining_tokens_are_booked_for_a_minute(self, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        limiter.observe(Limits(remaining_tokens=30))
        assert limiter.available == 30
        limiter.observe(Limits(remaining_tokens=90))
        limiter.observe(Limits())
        assert limiter.available == 30
        clock.now += 60
        assert limiter.available == 100


class TestEstimate:
    def test_it_grows_with_the_prompt_and_the_answer_that_is_allowed(self) -> None:
        short = estimate_tokens([{"role": "user", "content": "Hello!"}], 10)
        longer = estimate_tokens([{"role": "user", "content": "Hello! " * 100}], 10)
        assert 10 < short < 30
        assert 100 < longer - short < 400
        assert estimate_tokens([], None) > estimate_tokens([], 100)


class Traffic:
    """16 clients that call without a pause, on a virtual clock, through one TokenLimiter.

    A call needs 50 to 400 tokens, of which its estimate knows only the upper bound, and
    takes 0.2 to 2 s. The server debits what it used when it comes, over a sliding window.
    """

    LIMIT = 20_000

    def __init__(self, clock: FakeClock, *, settling: bool) -> None:
        self._clock, self._settling = clock, settling
        self._random = random.Random(29)
        self._limiter = TokenLimiter(self.LIMIT)
        self._server = SlidingWindow(self.LIMIT)
        self.rejected = 0
        self.used: list[tuple[float, int]] = []

    def run(self, seconds: float) -> Traffic:
        start, order = self._clock.now, iter(range(10**9))
        events: list[tuple[float, int, Any]] = [(start, next(order), None) for _ in range(16)]
        heapq.heapify(events)
        while events[0][0] < start + seconds:
            self._clock.now, _, ended = heapq.heappop(events)
            if ended is not None and self._settling:
                reservation, tokens = ended
                reservation.settle(tokens)
            try:
                reservation = self._limiter.reserve(450, timeout=0)
            except TokenLimitTimeoutError:
                heapq.heappush(events, (self._clock.now + 0.05, next(order), None))
                continue
            tokens = self._random.randrange(50, 400)
            if self._server.seconds_until_room(self._clock.now, tokens):
                self.rejected += 1
            else:
                self._server.add(self._clock.now, tokens)
                self.used.append((self._clock.now - start, tokens))
            end = self._clock.now + self._random.uniform(0.2, 2)
            heapq.heappush(events, (end, next(order), (reservation, tokens)))
        return self

    def share(self, seconds: float) -> float:
        return sum(tokens for _, tokens in self.used) / (self.LIMIT * seconds / 60)


class TestAllowance:
    def test_16_clients_use_95_percent_of_it_without_a_429_over_three_windows(
        self, clock: FakeClock
    ) -> None:
        traffic = Traffic(clock, settling=True).run(180)
        assert traffic.rejected == 0
        assert traffic.share(180) >= 0.95

    def test_without_settling_half_of_it_is_wasted(self, clock: FakeClock) -> None:
        assert Traffic(clock, settling=False).run(180).share(180) < 0.6

    def test_threads_against_a_server_that_limits_tokens_get_no_429(self) -> None:
        limiter = TokenLimiter(400)
        with MockServer(tokens_per_minute=400) as server:

            def call() -> None:
                with MistralClient("k", base_url=server.url) as client:
                    for _ in range(4):
                        messages = [{"role": "user", "content": "word " * 2}]
                        try:
                            reservation = limiter.reserve(estimate_tokens(messages, 20), timeout=1)
                        except TokenLimitTimeoutError:
                            return
                        usage = client.chat(messages, max_tokens=20).usage
                        assert usage is not None
                        reservation.settle(usage.total_tokens)

            run_in_threads(16, call)
            assert {request.outcome for request in server.log} == {"200"}
            assert len(server.log) > 40


class TestArguments:
    @pytest.mark.parametrize("value", [0, -1, 1.5, "100", None, True])
    def test_a_wrong_limit(self, value: Any) -> None:
        with pytest.raises(ValueError, match="max_tokens_per_minute must be an integer >= 1, got "):
            TokenLimiter(value)

    @pytest.mark.parametrize("value", [-1, 1.5, "5", None, True])
    def test_a_wrong_number_of_tokens_books_nothing(self, reserve: Reserve, value: Any) -> None:
        limiter = TokenLimiter(100)
        with pytest.raises(ValueError, match="estimate must be an integer >= 0, got "):
            reserve(limiter, value)
        with pytest.raises(ValueError, match="used must be an integer >= 0, got "):
            limiter.reserve(10).settle(value)
        assert limiter.available == 90

    @pytest.mark.parametrize("value", [-1, math.nan, "1"])
    def test_a_wrong_time(self, reserve: Reserve, value: Any) -> None:
        with pytest.raises(ValueError, match="timeout must be a number of seconds >= 0, got "):
            reserve(TokenLimiter(100), 1, value)
        with pytest.raises(ValueError, match="seconds must be a number of seconds >= 0, got "):
            TokenLimiter(100).pause(value)

    def test_the_repr_shows_the_state(self) -> None:
        assert repr(TokenLimiter(100)) == "TokenLimiter(100, available=100, waiting=0)"

    def test_no_thread_is_started(self) -> None:
        before = threading.active_count()
        TokenLimiter(100).reserve(10)
        assert threading.active_count() == before
