"""lib/token_limiter.py: within the limit, in order, and settled with what was used."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from conftest import FakeClock
from examples.simulations.virtual_time import simulate
from lib.circuit_breaker import is_service_failure
from lib.client import Limits, MistralClient
from lib.mock_server import MockServer
from lib.retry import is_retryable
from lib.token_limiter import (
    TokenLimiter,
    TokenLimitTimeoutError,
    TokenReservation,
    estimate_tokens,
)
from support import in_forked_child, interrupt_everywhere, most_in_any_window, run_in_threads

Reserve = Callable[..., TokenReservation]


@pytest.fixture(params=["reserve", "reserve_async"])
def reserve(request: pytest.FixtureRequest) -> Reserve:
    """Reserve tokens: once with ``reserve``, once with ``reserve_async``."""
    if request.param == "reserve":
        return lambda limiter, *arguments: limiter.reserve(*arguments)
    return lambda limiter, *arguments: asyncio.run(limiter.reserve_async(*arguments))


def join_line(
    pool: ThreadPoolExecutor, limiter: TokenLimiter, tokens: int
) -> Future[TokenReservation]:
    """Let a thread call ``reserve``, and return when it is in line."""
    before = repr(limiter)
    future = pool.submit(limiter.reserve, tokens)
    while repr(limiter) == before and not future.done():
        time.sleep(0.001)
    return future


def rejects(limiter: TokenLimiter, tokens: int) -> bool:
    """Return True if there is no room for the tokens now; else they are booked."""
    try:
        limiter.reserve(tokens, timeout=0)
    except TokenLimitTimeoutError:
        return True
    return False


def pause_for_next(limiter: TokenLimiter, seconds: Iterator[float]) -> None:
    limiter.pause(next(seconds))


class TestLedger:
    def test_a_reservation_counts_for_60_seconds(self, reserve: Reserve, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        reserve(limiter, 70)
        clock.now += 59.9
        assert limiter.available == 30
        assert rejects(limiter, 31)
        clock.now += 0.1
        assert limiter.available == 100
        assert reserve(limiter, 100, 0).waited == 0

    @pytest.mark.parametrize("used", [0, 70, 120])
    def test_settling_corrects_the_estimate(self, reserve: Reserve, used: int) -> None:
        limiter = TokenLimiter(100)
        reserve(limiter, 70).settle(used)
        assert limiter.available == 100 - used

    def test_settled_tokens_count_from_the_settlement_on(self, clock: FakeClock) -> None:
        """The server may have booked them at any moment in between."""
        limiter = TokenLimiter(100)
        reservation = limiter.reserve(70)
        clock.now += 20
        reservation.settle(50)
        for seconds, available in ((59.9, 50), (0.1, 100)):
            clock.now += seconds
            assert limiter.available == available

    def test_a_late_settlement_counts_what_was_used(self, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        reservation = limiter.reserve(70)
        clock.now += 100
        reservation.settle(40)
        assert limiter.available == 60

    def test_a_reservation_is_settled_once(self) -> None:
        limiter = TokenLimiter(100)
        reservation = limiter.reserve(70)
        reservation.settle(10)
        with pytest.raises(ValueError, match="already settled: settle each one once"):
            reservation.settle(10)
        assert limiter.available == 90

    def test_calls_use_the_whole_limit_and_never_more(self, clock: FakeClock) -> None:
        """The server books a call's tokens at a moment between its start and its end."""
        chance, limiter, calls = random.Random(29), TokenLimiter(1000), deque[Any]()
        booked: list[float] = []  # by the server: one entry per token
        for _ in range(3000):
            clock.now += 0.1
            with contextlib.suppress(TokenLimitTimeoutError):
                calls.append((limiter.reserve(45, timeout=0), clock.now))
            if calls and calls[0][1] <= clock.now - 2:
                reservation, started_at = calls.popleft()
                used = chance.randrange(5, 40)
                reservation.settle(used)
                booked += [chance.uniform(started_at, clock.now)] * used
        assert most_in_any_window(booked, seconds=60) <= 1000
        assert len(booked) > 0.9 * 1000 * 300 / 60


class TestFirstComeFirstServed:
    def test_a_large_request_is_not_overtaken_by_small_ones(self) -> None:
        limiter = TokenLimiter(100)
        first = limiter.reserve(60)
        with ThreadPoolExecutor(3) as pool:
            for tokens in (80, 10, 5):
                join_line(pool, limiter, tokens)
            assert repr(limiter) == "TokenLimiter(100, available=40, waiting=3)"
            first.settle(0)
        assert repr(limiter) == "TokenLimiter(100, available=5, waiting=0)"

    def test_more_than_the_limit_waits_until_the_ledger_is_empty(self, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        limiter.reserve(1)
        assert rejects(limiter, 500)
        clock.now += 60
        assert not rejects(limiter, 500)


class TestWaiting:
    def test_a_caller_waits_until_enough_tokens_expire_and_a_pause_is_over(self) -> None:
        async def main() -> None:
            limiter = TokenLimiter(100)
            for _ in range(3):
                await limiter.reserve_async(30)
                await asyncio.sleep(10)
            assert (await limiter.reserve_async(50)).waited == 40  # the first two expire
            limiter.pause(90)
            assert (await limiter.reserve_async(0)).waited == 90

        simulate(main, seed=1)

    def test_a_thread_waits_until_enough_tokens_expire(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lib.token_limiter.WINDOW", 0.1)
        limiter = TokenLimiter(100)
        limiter.reserve(60)
        assert limiter.reserve(60, timeout=10).waited >= 0.09

    @pytest.mark.parametrize("change", ["settlement", "limit", "header"])
    def test_room_wakes_the_first_caller(self, reserve: Reserve, change: str) -> None:
        limiter = TokenLimiter(100)
        limiter.observe(Limits(tokens_per_minute=80))
        first = limiter.reserve(60)
        make_room: dict[str, Callable[[], object]] = {
            "settlement": lambda: first.settle(0),
            "limit": lambda: setattr(limiter, "max_tokens_per_minute", 200),
            "header": lambda: limiter.observe(Limits(tokens_per_minute=100)),
        }
        threading.Timer(0.05, make_room[change]).start()
        assert reserve(limiter, 40, 30).waited < 30

    def test_a_caller_sleeps_until_there_is_room(
        self, reserve: Reserve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It does not look again and again, which would use up a core."""
        limiter, monotonic, readings = TokenLimiter(100), time.monotonic, list[float]()
        first = limiter.reserve(100)
        for delay in (0.05, 0.1):
            threading.Timer(delay, limiter.observe, [Limits()]).start()
        threading.Timer(0.15, first.settle, [0]).start()

        def counted() -> float:
            readings.append(monotonic())
            return readings[-1]

        monkeypatch.setattr(time, "monotonic", counted)
        assert reserve(limiter, 80, 30).waited < 30
        assert len(readings) < 100


class TestTimeout:
    @pytest.mark.parametrize("timeout", [0, 0.05])
    def test_a_caller_that_gives_up_books_nothing(self, reserve: Reserve, timeout: float) -> None:
        limiter = TokenLimiter(100)
        limiter.reserve(60)
        with pytest.raises(TokenLimitTimeoutError, match=f"no room for 50 .* {timeout:g} s"):
            reserve(limiter, 50, timeout)
        assert repr(limiter) == "TokenLimiter(100, available=40, waiting=0)"

    def test_its_error_is_neither_retried_nor_a_failure_of_the_service(self) -> None:
        error = TokenLimitTimeoutError()
        assert isinstance(error, TimeoutError)
        assert not is_retryable(error)
        assert not is_service_failure(error)
        assert not hasattr(error, "status_code")


class TestGivingUp:
    def test_cancelled_tasks_leave_the_line_and_the_others_move_up(self) -> None:
        limiter = TokenLimiter(100)

        async def main() -> None:
            first = await limiter.reserve_async(100)
            tasks = [asyncio.create_task(limiter.reserve_async(100)) for _ in range(5)]
            last = asyncio.create_task(limiter.reserve_async(100))
            await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert not last.done()
            first.settle(0)
            await asyncio.wait_for(last, 10)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())
        assert limiter.available == 0

    def test_ctrl_c_anywhere_leaves_nobody_in_line_and_a_true_ledger(
        self, clock: FakeClock
    ) -> None:
        limiter, points = TokenLimiter(100), 0

        def reserve_settle_and_give_up() -> None:
            limiter.reserve(60).settle(50)
            rejects(limiter, 60)

        with ThreadPoolExecutor(1) as pool:
            for points in interrupt_everywhere(reserve_settle_and_give_up):  # noqa: B007
                clock.now += 100
                assert repr(limiter) == "TokenLimiter(100, available=100, waiting=0)"
                assert pool.submit(limiter.reserve, 100, timeout=0).result(timeout=10)
                assert rejects(limiter, 1)
                clock.now += 100
        assert points > 40

    def test_a_task_whose_event_loop_is_closed_blocks_nobody(self) -> None:
        limiter, loop = TokenLimiter(100), asyncio.new_event_loop()
        first = limiter.reserve(100)
        task = loop.create_task(limiter.reserve_async(10))
        loop.run_until_complete(asyncio.sleep(0))
        with ThreadPoolExecutor(1) as pool:
            second = join_line(pool, limiter, 10)
            loop.close()
            first.settle(0)
            assert second.result(timeout=10).tokens == 10
        task.get_coro().close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]


class TestPause:
    def test_nothing_is_booked_during_a_pause(self, reserve: Reserve, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        for seconds in (10, 2, 0):
            limiter.pause(seconds)
        clock.now += 9.9
        with pytest.raises(TokenLimitTimeoutError):
            reserve(limiter, 1, 0)
        clock.now += 0.1
        reserve(limiter, 1, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
class TestFork:
    def test_the_child_keeps_the_ledger_and_starts_with_an_empty_line(self) -> None:
        limiter = TokenLimiter(100)
        first = limiter.reserve(100)
        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                join_line(pool, limiter, 50)

            def settle_and_reserve() -> str:
                first.settle(0)
                limiter.reserve(50)
                return repr(limiter)

            before, after = (
                in_forked_child(lambda: repr(limiter)),
                in_forked_child(settle_and_reserve),
            )
            first.settle(0)
        assert before == "TokenLimiter(100, available=0, waiting=0)"
        assert after == "TokenLimiter(100, available=50, waiting=0)"


class TestSignalHandler:
    def test_the_state_can_be_read_while_the_ledger_changes(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handler runs between any two steps of the code that it interrupts."""
        limiter, seen = TokenLimiter(100), list[str]()
        limiter.reserve(60)

        def interrupted() -> float:
            with ThreadPoolExecutor(1) as pool:  # another thread: no lock helps it
                monkeypatch.setattr(time, "monotonic", clock.monotonic)
                seen.append(pool.submit(repr, limiter).result(timeout=10))
            return clock.now

        monkeypatch.setattr(time, "monotonic", interrupted)
        limiter.pause(0)
        assert seen == ["TokenLimiter(100, available=40, waiting=0)"]


class TestObserve:
    """The server's own numbers count where they are lower."""

    def test_a_lower_limit_counts_as_long_as_the_server_says_so(self) -> None:
        limiter = TokenLimiter(100)
        for tokens_per_minute, limit in ((50, 50), (None, 50), (0, 50), (1, 1), (70, 70)):
            limiter.observe(Limits(tokens_per_minute=tokens_per_minute))
            assert limiter.max_tokens_per_minute == limit

    def test_a_higher_limit_than_yours_does_not_count(self) -> None:
        limiter = TokenLimiter(100)
        for tokens_per_minute in (1, 1000):
            limiter.observe(Limits(tokens_per_minute=tokens_per_minute))
        assert limiter.max_tokens_per_minute == 100
        limiter.max_tokens_per_minute = 200
        assert limiter.available == 200

    def test_fewer_remaining_tokens_are_booked_for_a_minute(self, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        for remaining_tokens in (30, 90, None):
            limiter.observe(Limits(remaining_tokens=remaining_tokens))
            assert limiter.available == 30
        clock.now += 60
        assert limiter.available == 100

    def test_a_negative_number_of_remaining_tokens_means_none(self) -> None:
        limiter = TokenLimiter(100)
        limiter.observe(Limits(remaining_tokens=-5))
        assert limiter.available == 0


class TestSharing:
    """What threads do at the same time is not lost, and not done twice."""

    def test_reservations_and_settlements(self) -> None:
        limiter = TokenLimiter(1000)

        def reserve_and_settle() -> None:
            for _ in range(5):
                limiter.reserve(1).settle(2)
                assert limiter.available < 1000

        run_in_threads(8, reserve_and_settle, interleaved=True)
        assert limiter.available == 1000 - 80

    def test_one_reservation_is_settled_by_one_thread(self) -> None:
        def settle() -> bool:
            with contextlib.suppress(ValueError):
                reservation.settle(10)
                return True
            return False

        for _ in range(20):
            reservation = TokenLimiter(100).reserve(10)
            assert run_in_threads(4, settle, interleaved=True).count(True) == 1

    def test_tokens_that_expire(self, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        for _ in range(20):
            for tokens, seconds in ((10, 0), (10, 0), (10, 30), (20, 30)):
                limiter.reserve(tokens)
                clock.now += seconds
            assert run_in_threads(4, lambda: limiter.available, interleaved=True) == [80] * 4

    def test_observations(self, clock: FakeClock) -> None:
        limiter, limits = TokenLimiter(100), Limits(remaining_tokens=30)
        for _ in range(20):
            clock.now += 60
            run_in_threads(2, lambda: limiter.observe(limits), interleaved=True)
            assert limiter.available == 30

    def test_pauses(self, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        for _ in range(40):
            clock.now += 100
            pauses = iter([2.0, 10.0])
            run_in_threads(2, partial(pause_for_next, limiter, pauses), interleaved=True)
            clock.now += 9
            assert rejects(limiter, 1)


class TestEstimate:
    def test_it_counts_the_prompt_and_the_completion_that_is_allowed(self) -> None:
        messages: list[dict[str, Any]] = [{"content": "Hello! " * 9}, {"content": None}]
        assert estimate_tokens(messages, 10) == 63 // 4 + 1 + 2 * 4 + 10
        assert estimate_tokens(messages) == 63 // 4 + 1 + 2 * 4 + 500

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "image_url", "image_url": "https://example.com/cat.png"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}},
            {"type": "image", "source": {"type": "base64", "data": "A" * 400_000}},
            {"type": "input_audio", "input_audio": "A" * 400_000},
            {"type": "document_url", "document_url": "data:application/pdf;base64," + "A" * 9999},
        ],
        ids=lambda part: str(part["type"]),
    )
    def test_a_file_costs_what_an_image_costs_however_long_its_url(self, part: Any) -> None:
        content = [{"type": "text", "text": "What is this?"}, part]
        assert 3000 <= estimate_tokens([{"role": "user", "content": content}], 0) < 3020

    def test_tool_calls_and_the_parts_of_a_content_count_as_text(self) -> None:
        call = {"id": "x", "function": {"name": "f", "arguments": "a" * 40_000}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        assert 10_000 < estimate_tokens([answer], 0) < 10_020
        parts = [{"type": "text", "text": "a" * 40_000}] * 2
        assert 20_000 < estimate_tokens([{"role": "user", "content": parts}], 0) < 20_020


class TestAgainstAServer:
    def test_threads_that_share_a_token_limiter_get_no_429(self) -> None:
        limiter = TokenLimiter(400)
        messages = [{"role": "user", "content": "word " * 2}]

        def call(url: str) -> None:
            with MistralClient("k", base_url=url) as client:
                for _ in range(4):
                    try:
                        reservation = limiter.reserve(estimate_tokens(messages, 20), timeout=1)
                    except TokenLimitTimeoutError:
                        return
                    usage = client.chat(messages, max_tokens=20).usage
                    assert usage is not None
                    reservation.settle(usage.total_tokens)

        with MockServer(tokens_per_minute=400) as server:
            run_in_threads(16, lambda: call(server.url))
            assert {request.outcome for request in server.log} == {"200"}
            assert len(server.log) > 40


class TestArguments:
    @pytest.mark.parametrize("value", [0, 1.5, True])
    def test_a_wrong_limit(self, value: Any) -> None:
        with pytest.raises(ValueError, match="max_tokens_per_minute must be an integer >= 1, got "):
            TokenLimiter(value)
        assert TokenLimiter(1).available == 1

    @pytest.mark.parametrize("value", [-1, 1.5, True])
    def test_a_wrong_number_of_tokens_books_nothing(self, value: Any) -> None:
        limiter = TokenLimiter(100)
        with pytest.raises(ValueError, match="estimate must be an integer >= 0, got "):
            limiter.reserve(value)
        with pytest.raises(ValueError, match="used must be an integer >= 0, got "):
            limiter.reserve(10).settle(value)
        assert limiter.available == 90

    @pytest.mark.parametrize("value", [-1, math.nan, "1"])
    def test_a_wrong_timeout_or_pause(self, value: Any) -> None:
        with pytest.raises(ValueError, match="timeout must be a number of seconds >= 0, got "):
            TokenLimiter(100).reserve(1, value)
        with pytest.raises(ValueError, match="seconds must be a number of seconds >= 0, got "):
            TokenLimiter(100).pause(value)
