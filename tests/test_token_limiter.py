"""lib/token_limiter.py: within the limit, in order, and settled with what was used."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conftest import FakeClock
from examples.simulations.virtual_time import simulate
from lib.circuit_breaker import is_service_failure
from lib.client import Limits
from lib.retry import is_retryable
from lib.token_limiter import TokenLimiter, TokenLimitTimeoutError, estimate_tokens
from support import (
    Method,
    in_forked_child,
    interrupt_everywhere,
    join_line,
    most_in_any_window,
    rejects,
    run_in_threads,
    thread_paused_at_the_clock,
)


class TestLedger:
    def test_a_reservation_counts_for_60_seconds(self, reserve: Method, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        reserve(limiter, 70)
        clock.now += 59.9
        assert limiter.available == 30
        assert rejects(limiter, 31)
        clock.now += 0.1
        assert limiter.available == 100
        assert reserve(limiter, 100, 0).waited == 0

    @pytest.mark.parametrize("used", [0, 70, 120])
    def test_settling_corrects_the_estimate(self, used: int) -> None:
        limiter = TokenLimiter(100)
        limiter.reserve(70).settle(used)
        assert limiter.available == 100 - used

    def test_settled_tokens_count_from_the_settlement_on(self, clock: FakeClock) -> None:
        """The server may have booked them at any moment in between."""
        limiter = TokenLimiter(100)
        reservation, _ = limiter.reserve(60), limiter.reserve(40)
        clock.now += 20
        reservation.settle(50)
        clock.now += 40
        assert not rejects(limiter, 50)  # the other one counts no more
        for seconds, available in ((19.9, 0), (0.1, 50)):
            clock.now += seconds
            assert limiter.available == available

    def test_a_late_settlement_counts_what_was_used(self, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        first, second = limiter.reserve(50), limiter.reserve(50)
        clock.now += 100
        first.settle(40)
        limiter.reserve(10)
        second.settle(20)
        assert limiter.available == 30
        assert not rejects(limiter, 30)

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
        monkeypatch.setattr("lib.token_limiter.WINDOW", 0.05)
        limiter = TokenLimiter(100)
        limiter.reserve(60)
        assert limiter.reserve(60, timeout=10).waited >= 0.04

    @pytest.mark.parametrize("change", ["settlement", "limit", "header"])
    def test_room_wakes_the_first_caller(self, reserve: Method, change: str) -> None:
        limiter = TokenLimiter(100)
        limiter.observe(Limits(tokens_per_minute=80))
        first = limiter.reserve(60)
        make_room: dict[str, Callable[[], object]] = {
            "settlement": lambda: first.settle(0),
            "limit": lambda: setattr(limiter, "max_tokens_per_minute", 200),
            "header": lambda: limiter.observe(Limits(tokens_per_minute=100)),
        }
        threading.Timer(0.02, make_room[change]).start()
        assert reserve(limiter, 40, 30).waited < 30

    def test_a_caller_sleeps_until_there_is_room(
        self, reserve: Method, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It does not look again and again, which would use up a core."""
        limiter, monotonic, readings = TokenLimiter(100), time.monotonic, list[float]()
        first = limiter.reserve(100)
        for delay in (0.02, 0.04):
            threading.Timer(delay, limiter.observe, [Limits()]).start()
        threading.Timer(0.06, first.settle, [0]).start()

        def counted() -> float:
            readings.append(monotonic())
            return readings[-1]

        monkeypatch.setattr(time, "monotonic", counted)
        assert reserve(limiter, 80, 30).waited < 30
        assert len(readings) < 100


class TestTimeout:
    @pytest.mark.parametrize("timeout", [0, 0.05])
    def test_a_caller_that_gives_up_books_nothing(self, reserve: Method, timeout: float) -> None:
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
class TestFork:
    def test_the_child_waits_for_no_lock_of_the_parent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limiter, limits = TokenLimiter(100), Limits(remaining_tokens=90)
        with thread_paused_at_the_clock(monkeypatch, lambda: limiter.observe(limits)):
            assert in_forked_child(lambda: limiter.reserve(100).waited) == 0


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
        """And yours, if it is lower, or if you change it."""
        limiter = TokenLimiter(100)
        for tokens_per_minute, limit in ((50, 50), (None, 50), (0, 50), (70, 70), (1000, 100)):
            limiter.observe(Limits(tokens_per_minute=tokens_per_minute))
            assert limiter.max_tokens_per_minute == limit
        limiter.max_tokens_per_minute = 200
        assert limiter.available == 200

    def test_fewer_remaining_tokens_are_booked_for_a_minute(self, clock: FakeClock) -> None:
        limiter = TokenLimiter(100)
        for remaining_tokens, available in ((30, 30), (90, 30), (None, 30), (-5, 0)):
            limiter.observe(Limits(remaining_tokens=remaining_tokens))
            assert limiter.available == available
        clock.now += 60
        assert limiter.available == 100


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

    def test_a_reservation_is_settled_once(self) -> None:
        def settle() -> str:
            try:
                reservation.settle(20)
            except ValueError as error:
                return str(error)
            return "settled"

        for _ in range(10):
            limiter = TokenLimiter(100)
            reservation = limiter.reserve(10)
            outcomes = run_in_threads(4, settle, interleaved=True)
            assert (
                sorted(outcomes)
                == ["settled"] + ["this reservation is already settled: settle each one once"] * 3
            )
            assert limiter.available == 80

    def test_a_signal_handler_settles(self) -> None:
        limiter = TokenLimiter(100)
        other = limiter.reserve(50)

        def reserve_and_settle() -> None:
            limiter.reserve(20).settle(10)

        def settle_the_other() -> None:
            other.settle(5)

        for _ in interrupt_everywhere(reserve_and_settle, settle_the_other):
            assert rejects(limiter, 86)
            assert not rejects(limiter, 85)
            limiter = TokenLimiter(100)
            other = limiter.reserve(50)

    def test_observations(self, clock: FakeClock) -> None:
        limiter, limits = TokenLimiter(100), Limits(remaining_tokens=30)
        for _ in range(20):
            clock.now += 60
            run_in_threads(2, lambda: limiter.observe(limits), interleaved=True)
            assert limiter.available == 30

    def test_pauses(self, clock: FakeClock) -> None:
        limiter, pauses = TokenLimiter(100), itertools.cycle([2.0, 10.0])
        for _ in range(40):
            clock.now += 100
            run_in_threads(2, lambda: limiter.pause(next(pauses)), interleaved=True)
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
            {"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 9999}},
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
