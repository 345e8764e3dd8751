"""lib/retry.py: which errors are retried, how long it waits, and when it gives up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import math
import os
import random
import threading
import time
import traceback
import weakref
from typing import Any

import pytest

from conftest import Call, FakeClock
from examples.simulations.virtual_time import simulate
from lib.retry import Retrier, RetryBudget, jitter_random
from support import (
    in_forked_child,
    interrupt_everywhere,
    returns_when_interrupted,
    run_in_threads,
    thread_paused_at_the_clock,
)


class TransientError(Exception):
    """A retryable error, perhaps with the seconds that the server asked for."""

    retryable = True

    def __init__(self, retry_after: object = None) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


class PermanentError(Exception):
    retryable = False


class Failing:
    """An operation that raises the given errors, one per call, then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = errors
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= len(self.errors):
            raise self.errors[self.calls - 1]
        return "result"


def always_fails() -> None:
    raise TransientError


def unlimited() -> RetryBudget:
    return RetryBudget(math.inf)


class TestResult:
    def test_a_success_is_returned_without_a_wait(self, call: Call, clock: FakeClock) -> None:
        operation = Failing()
        assert call(Retrier(), operation) == "result"
        assert (operation.calls, clock.waits) == (1, [])

    def test_any_return_value_is_a_success(self, call: Call) -> None:
        results = [None, False, TransientError()]
        remaining = iter(results)
        assert [call(Retrier(), lambda: next(remaining)) for _ in results] == results

    def test_the_error_of_the_last_attempt_is_raised(self, call: Call, clock: FakeClock) -> None:
        errors = [TransientError(), TransientError(), TransientError()]
        with pytest.raises(TransientError) as raised:
            call(Retrier(max_attempts=3), Failing(*errors))
        assert raised.value is errors[2]
        assert (raised.value.__cause__, raised.value.__context__) == (None, None)

    def test_its_traceback_does_not_grow(self, call: Call, clock: FakeClock) -> None:
        def frames(max_attempts: int) -> list[str]:
            with pytest.raises(TransientError) as raised:
                call(Retrier(max_attempts, budget=unlimited()), always_fails)
            return [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]

        assert frames(50) == frames(1)


class TestBackoff:
    def test_waits_double_up_to_max_delay(self, call: Call, clock: FakeClock) -> None:
        retrier = Retrier(max_attempts=8, base_delay=1, max_delay=30, jitter=False)
        assert call(retrier, Failing(*[TransientError() for _ in range(7)])) == "result"
        assert clock.waits == [1, 2, 4, 8, 16, 30, 30]

    def test_no_wait_after_the_last_attempt(self, call: Call, clock: FakeClock) -> None:
        operation = Failing(*[TransientError() for _ in range(10)])
        with pytest.raises(TransientError):
            call(Retrier(max_attempts=4), operation)
        assert (operation.calls, len(clock.waits)) == (4, 3)

    def test_two_thousand_attempts_do_not_overflow(self, clock: FakeClock) -> None:
        with pytest.raises(TransientError):
            Retrier(max_attempts=2000, budget=unlimited()).call(always_fails)
        assert len(clock.waits) == 1999
        assert max(clock.waits) <= 30


class TestJitter:
    def test_full_jitter_spreads_each_wait_from_zero_to_its_ceiling(self, clock: FakeClock) -> None:
        jitter_random.seed(20)
        retrier = Retrier(max_attempts=3, base_delay=4, budget=unlimited())
        for _ in range(400):
            retrier.call(Failing(TransientError(), TransientError()))
        for waits, ceiling in [(clock.waits[::2], 4), (clock.waits[1::2], 8)]:
            assert 0 <= min(waits) < 0.05 * ceiling
            assert 0.95 * ceiling < max(waits) <= ceiling
            assert sum(waits) / len(waits) == pytest.approx(ceiling / 2, rel=0.1)

    def test_jitter_spreads_the_waits_at_max_delay_too(self, clock: FakeClock) -> None:
        """Jitter that is added before the cap vanishes there: all clients come back together."""
        jitter_random.seed(21)
        with pytest.raises(TransientError):
            Retrier(max_attempts=1000, max_delay=30, budget=unlimited()).call(always_fails)
        at_the_cap = clock.waits[5:]
        assert min(at_the_cap) < 1
        assert 29 < max(at_the_cap) <= 30
        assert sum(at_the_cap) / len(at_the_cap) == pytest.approx(15, rel=0.1)


class TestRetryAfter:
    @pytest.mark.parametrize(("retry_after", "wait"), [(0, 2), (1.5, 2), (60.0, 60)])
    def test_without_jitter_the_longer_of_it_and_the_backoff_is_waited(
        self, retry_after: float, wait: float, call: Call, clock: FakeClock
    ) -> None:
        retrier = Retrier(base_delay=2, max_retry_after=60, jitter=False)
        call(retrier, Failing(TransientError(retry_after)))
        assert clock.waits == [wait]

    @pytest.mark.parametrize("retry_after", [0, 2, 60])
    def test_it_is_the_earliest_moment_and_the_jitter_comes_on_top(
        self, retry_after: float, clock: FakeClock
    ) -> None:
        """Otherwise all clients that got the same header come back in the same millisecond."""
        jitter_random.seed(22)
        retrier = Retrier(base_delay=4, budget=unlimited())
        for _ in range(400):
            retrier.call(Failing(TransientError(retry_after)))
        jitter = [wait - retry_after for wait in clock.waits]
        assert 0 <= min(jitter) < 0.2
        assert 3.8 < max(jitter) <= 4

    def test_one_that_is_too_long_is_not_waited_for(self, call: Call, clock: FakeClock) -> None:
        operation = Failing(TransientError(60.001))
        with pytest.raises(TransientError):
            call(Retrier(max_retry_after=60), operation)
        assert (operation.calls, clock.waits) == (1, [])

    def test_anything_but_a_number_of_seconds_is_ignored(self, clock: FakeClock) -> None:
        errors = [TransientError(value) for value in (None, -1, math.inf, math.nan, "5", True)]
        Retrier(max_attempts=7, base_delay=3, max_delay=3, jitter=False).call(Failing(*errors))
        assert clock.waits == [3] * 6


class TestTotalTimeout:
    @pytest.mark.parametrize(("total_timeout", "waits"), [(6.9, [1, 2]), (7, [1, 2, 4])])
    def test_no_wait_ends_after_it(
        self, total_timeout: float, waits: list[int], clock: FakeClock
    ) -> None:
        with pytest.raises(TransientError):
            Retrier(10, jitter=False, total_timeout=total_timeout).call(always_fails)
        assert clock.waits == waits

    def test_it_counts_from_the_start_of_the_call(self, call: Call, clock: FakeClock) -> None:
        retrier = Retrier(max_attempts=10, jitter=False, total_timeout=7)
        clock.now += 1000

        def slow() -> None:
            clock.now += 2.5
            raise TransientError

        with pytest.raises(TransientError):
            call(retrier, slow)
        assert clock.waits == [1]

    def test_a_retry_after_beyond_it_is_not_waited_for(self, clock: FakeClock) -> None:
        with pytest.raises(TransientError):
            Retrier(total_timeout=4).call(Failing(TransientError(5)))
        assert clock.waits == []


class TestRetryIf:
    @pytest.mark.parametrize("error", [ValueError(), PermanentError()], ids=repr)
    def test_an_error_not_marked_retryable_is_raised(self, call: Call, error: Exception) -> None:
        operation = Failing(error)
        with pytest.raises(type(error)) as raised:
            call(Retrier(), operation)
        assert raised.value is error
        assert operation.calls == 1

    def test_it_decides_in_place_of_the_attribute(self, call: Call, clock: FakeClock) -> None:
        retrier = Retrier(retry_if=lambda error: isinstance(error, ConnectionError))
        assert call(retrier, Failing(ConnectionError())) == "result"
        with pytest.raises(TransientError):
            call(retrier, Failing(TransientError()))


class TestRetryBudget:
    def test_each_retry_costs_a_token(self, clock: FakeClock) -> None:
        budget = RetryBudget(3, tokens_per_success=0, tokens_per_second=0)
        operation = Failing(*[TransientError() for _ in range(10)])
        with pytest.raises(TransientError):
            Retrier(max_attempts=10, budget=budget).call(operation)
        assert operation.calls == 1 + 3

    def test_successes_and_time_earn_tokens_up_to_the_maximum(self, clock: FakeClock) -> None:
        budget = RetryBudget(2, tokens_per_success=0.5, tokens_per_second=0.25)
        assert [budget.take() for _ in range(3)] == [True, True, False]
        budget.earn()
        assert not budget.take()
        budget.earn()
        assert [budget.take(), budget.take()] == [True, False]
        clock.now += 3.9
        assert not budget.take()
        clock.now += 0.1
        assert [budget.take(), budget.take()] == [True, False]
        clock.now += 1000
        assert [budget.take() for _ in range(3)] == [True, True, False]

    def test_retriers_share_a_budget_only_if_they_are_given_the_same_one(self) -> None:
        shared = RetryBudget()
        assert Retrier(budget=shared).budget is shared
        assert Retrier().budget is not Retrier().budget

    def test_by_default_ten_successes_earn_one_retry(self, call: Call, clock: FakeClock) -> None:
        budget = RetryBudget(tokens_per_second=0)
        assert [budget.take() for _ in range(11)] == [True] * 10 + [False]
        for _ in range(9):
            call(Retrier(budget=budget), Failing())
        assert not budget.take()
        for _ in range(2):  # one more for rounding: ten times 0.1 is less than 1
            call(Retrier(budget=budget), Failing())
        assert [budget.take(), budget.take()] == [True, False]

    def test_a_service_that_is_down_gets_ten_retries_and_one_every_50_seconds(
        self, clock: FakeClock
    ) -> None:
        retrier, operation = Retrier(base_delay=0), Failing(*[TransientError()] * 1000)
        for _ in range(400):
            clock.now += 0.5
            with pytest.raises(TransientError):
                retrier.call(operation)
        assert 10 + 3 <= operation.calls - 400 <= 10 + 4

    @pytest.mark.parametrize("failures", [1, 2])
    def test_a_call_that_succeeds_gives_back_the_tokens_of_its_retries(
        self, failures: int, call: Call, clock: FakeClock
    ) -> None:
        budget = RetryBudget(2, tokens_per_success=0, tokens_per_second=0)
        for _ in range(5):
            call(Retrier(budget=budget), Failing(*[TransientError()] * failures))
        assert [budget.take() for _ in range(3)] == [True, True, False]

    def test_a_call_that_fails_gives_back_none(self, call: Call, clock: FakeClock) -> None:
        budget = RetryBudget(2, tokens_per_success=0, tokens_per_second=0)
        with pytest.raises(PermanentError):
            call(Retrier(budget=budget), Failing(TransientError(), PermanentError()))
        assert [budget.take() for _ in range(2)] == [True, False]

    def test_a_program_whose_service_fails_at_random_keeps_its_retries(
        self, clock: FakeClock
    ) -> None:
        """Of 100 calls per second, 20 % of the attempts fail. An endless budget saves 99.2 %."""
        failures, retrier = random.Random(1), Retrier(base_delay=0)

        def operation() -> None:
            if failures.random() < 0.2:
                raise TransientError

        succeeded = 0
        for _ in range(5000):
            clock.now += 0.01
            with contextlib.suppress(TransientError):
                retrier.call(operation)
                succeeded += 1
        assert succeeded >= 0.985 * 5000

    def test_a_batch_with_a_token_for_each_possible_retry_loses_nothing_to_a_blip(self) -> None:
        """The number that lib/README advises: (max_attempts - 1) times the concurrency."""

        async def batch(max_tokens: float) -> int:
            retrier = Retrier(5, budget=RetryBudget(max_tokens))
            slots = asyncio.Semaphore(50)

            async def operation() -> None:
                await asyncio.sleep(0.5)
                if 5 <= time.monotonic() < 7:
                    raise TransientError

            async def call() -> bool:
                async with slots:
                    with contextlib.suppress(TransientError):
                        await retrier.call_async(operation)
                        return True
                    return False

            return (await asyncio.gather(*(call() for _ in range(1500)))).count(False)

        assert simulate(lambda: batch(4 * 50), seed=1) == 0
        assert simulate(lambda: batch(10), seed=1) > 100

    def test_threads_never_take_more_tokens_than_there_are(self) -> None:
        budget = RetryBudget(20, tokens_per_second=0)
        taken = run_in_threads(8, lambda: [budget.take() for _ in range(5)], interleaved=True)
        assert sum(map(sum, taken)) == 20

    def test_threads_that_succeed_lose_no_token(self) -> None:
        budget = RetryBudget(100, tokens_per_success=1, tokens_per_second=0)
        assert all(budget.take() for _ in range(100))

        def succeed_25_times() -> None:
            for _ in range(25):
                budget.earn()

        run_in_threads(4, succeed_25_times, interleaved=True)
        assert sum(budget.take() for _ in range(101)) == 100


def retrier_with_hooks(events: list[tuple[Any, ...]], **settings: Any) -> Retrier:
    for name in ("on_attempt", "on_wait", "on_recovery", "on_give_up"):
        settings[name] = lambda *arguments, name=name: events.append((name, *arguments))
    return Retrier(jitter=False, **settings)


class TestHooks:
    def test_attempts_waits_and_recoveries_are_reported(self, call: Call, clock: FakeClock) -> None:
        events: list[tuple[Any, ...]] = []
        errors = [TransientError(), TransientError(7)]
        call(retrier_with_hooks(events), Failing(*errors))
        assert events == [
            ("on_attempt", 1),
            ("on_wait", 1, errors[0], 1.0),
            ("on_attempt", 2),
            ("on_wait", 2, errors[1], 7),
            ("on_attempt", 3),
            ("on_recovery", 3),
        ]

    def test_a_first_success_is_no_recovery(self, call: Call) -> None:
        events: list[tuple[Any, ...]] = []
        call(retrier_with_hooks(events), Failing())
        assert events == [("on_attempt", 1)]

    def test_what_a_hook_raises_reaches_the_caller(self, clock: FakeClock) -> None:
        def on_wait(attempt: int, error: Exception, delay: float) -> None:
            raise LookupError

        with pytest.raises(LookupError):
            Retrier(on_wait=on_wait).call(always_fails)
        assert clock.waits == []  # a wait is reported before it begins


class TestGaveUp:
    """The error that is raised in the end carries the reason."""

    @pytest.mark.parametrize(
        ("reason", "error", "settings"),
        [
            ("not retryable", ValueError(), {}),
            ("attempts exhausted", TransientError(), {"max_attempts": 1}),
            ("Retry-After too long", TransientError(61), {}),
            ("total timeout", TransientError(), {"total_timeout": 0.5}),
            ("retry budget exhausted", TransientError(), {"budget": RetryBudget(0)}),
        ],
    )
    def test_the_reason_is_an_attribute_of_the_error_and_reported_once(
        self, reason: str, error: Exception, settings: Any, call: Call
    ) -> None:
        events: list[tuple[Any, ...]] = []
        with pytest.raises(type(error)) as raised:
            call(retrier_with_hooks(events, **settings), Failing(error))
        assert raised.value.gave_up == reason  # type: ignore[attr-defined]
        assert events == [("on_attempt", 1), ("on_give_up", 1, error, reason)]

    def test_an_error_that_allows_no_attribute_is_raised_all_the_same(self, call: Call) -> None:
        class FrozenError(Exception):
            def __setattr__(self, name: str, value: object) -> None:
                raise LookupError

        with pytest.raises(FrozenError):
            call(Retrier(), Failing(FrozenError()))


class TestLogging:
    """One line per decision: the error's class and status, not its text, a secret perhaps."""

    def test_waits_and_giving_up_also_of_an_error_that_has_no_text(
        self, call: Call, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        class BrokenError(TransientError):
            status_code = 503

            def __str__(self) -> str:
                raise AttributeError

        caplog.set_level(logging.INFO, logger="lib.retry")
        with pytest.raises(BrokenError):
            call(Retrier(2, jitter=False), Failing(TransientError(), BrokenError()))
        assert {record.levelname for record in caplog.records} == {"INFO"}
        assert caplog.messages == [
            "Waiting 1.00 s after attempt 1 of 2 (TransientError)",
            "Giving up after attempt 2 of 2 (BrokenError, status 503): attempts exhausted",
        ]


class TestInterruption:
    @pytest.mark.parametrize("leaving", [KeyboardInterrupt, asyncio.CancelledError])
    def test_ctrl_c_passes_through(self, leaving: type[BaseException], clock: FakeClock) -> None:
        error = type("Leaving", (leaving,), {"retryable": True})()
        events: list[tuple[Any, ...]] = []
        with pytest.raises(leaving) as raised:
            retrier_with_hooks(events).call(Failing(error))
        assert raised.value is error
        assert events == [("on_attempt", 1)]

    def test_a_cancelled_task_is_not_retried_and_leaves_no_task_behind(self) -> None:
        attempts: list[int] = []

        async def main() -> None:
            retrier = Retrier(on_attempt=attempts.append)
            task = asyncio.create_task(retrier.call_async(asyncio.Event().wait))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())
        assert attempts == [1]

    def test_ctrl_c_at_any_point_leaves_no_lock_held(self) -> None:
        retrier, points = Retrier(base_delay=0, budget=RetryBudget(1000)), 0

        def retry() -> None:
            retrier.call(Failing(TransientError()))

        for points in interrupt_everywhere(retry):  # noqa: B007
            assert run_in_threads(1, retrier.budget.take) == [True]
        assert points > 20


class TestSignalHandler:
    def test_one_that_asks_a_budget_returns_wherever_it_strikes(self) -> None:
        budget = RetryBudget(1000)

        def use() -> None:
            budget.take()
            budget.earn()

        assert returns_when_interrupted(use, lambda: (repr(budget), budget.take()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
class TestFork:
    def test_a_child_can_use_a_budget_that_another_thread_was_using(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        budget = RetryBudget()
        with thread_paused_at_the_clock(monkeypatch, budget.take):
            assert in_forked_child(budget.take)

    def test_a_child_has_jitter_of_its_own(self) -> None:
        jitter_random.seed(1)
        assert in_forked_child(jitter_random.random) != in_forked_child(jitter_random.random)


class TestMemory:
    def test_a_call_that_ended_leaves_nothing_behind(self, clock: FakeClock) -> None:
        class Prompt:
            pass

        def call_with_prompt(retrier: Retrier) -> weakref.ref[Prompt]:
            prompt, attempts = Prompt(), itertools.count(1)

            def ask() -> Prompt:
                if next(attempts) == 1:
                    raise TransientError
                return prompt

            with contextlib.suppress(TransientError):
                retrier.call(ask)
            return weakref.ref(prompt)

        gc.disable()
        try:
            ended = [call_with_prompt(Retrier(attempts)) for attempts in (1, 2)]
            assert [prompt() for prompt in ended] == [None, None]
        finally:
            gc.enable()


class TestSharing:
    def test_threads_that_share_a_retrier_count_their_own_attempts(self) -> None:
        """They fail in lockstep: an attempt count that they shared would end them early."""
        barrier = threading.Barrier(8)
        retrier = Retrier(max_attempts=5, base_delay=0, budget=unlimited())

        def fail_four_times() -> str:
            failing = Failing(*[TransientError() for _ in range(4)])

            def operation() -> str:
                barrier.wait(timeout=30)
                return failing()

            return f"{retrier.call(operation)} {failing.calls}"

        assert run_in_threads(8, fail_four_times) == ["result 5"] * 8

    def test_a_thousand_tasks_wait_together_without_a_thread(self) -> None:
        retrier = Retrier(2, base_delay=0.1, jitter=False, budget=unlimited())
        before = threading.active_count()

        async def fail() -> None:
            raise TransientError

        async def main() -> None:
            calls = [retrier.call_async(fail) for _ in range(1000)]
            await asyncio.gather(*calls, return_exceptions=True)
            assert threading.active_count() == before

        started_at = time.monotonic()
        asyncio.run(main())
        assert time.monotonic() - started_at < 50  # one after another: 100 s


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("max_attempts", 0, "an integer >= 1"),
            ("max_attempts", 2.0, "an integer >= 1"),
            ("max_attempts", True, "an integer >= 1"),
            ("base_delay", -1, "a number of seconds >= 0"),
            ("base_delay", True, "a number of seconds >= 0"),
            ("max_delay", math.nan, "a number of seconds >= 0"),
            ("max_retry_after", math.inf, "a number of seconds >= 0"),
            ("total_timeout", "1", "a number of seconds >= 0"),
        ],
    )
    def test_a_wrong_argument_of_a_retrier(self, name: str, value: Any, expected: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must be {expected}, got {value!r}"):
            Retrier(**{name: value})

    def test_a_number_or_a_class_is_no_budget(self) -> None:
        for budget in (5, RetryBudget):
            with pytest.raises(ValueError, match="budget must be a RetryBudget or have its meth"):
                Retrier(budget=budget)  # type: ignore[arg-type]

    def test_a_budget_of_your_own(self) -> None:
        class NoRetries:
            def take(self) -> bool:
                return False

            def earn(self, *, retries: int) -> None:
                pass

        error = TransientError()
        with pytest.raises(TransientError):
            Retrier(budget=NoRetries()).call(Failing(error))  # type: ignore[arg-type]
        assert error.gave_up == "retry budget exhausted"  # type: ignore[attr-defined]

    def test_a_wrong_argument_of_a_budget(self) -> None:
        for name in ("max_tokens", "tokens_per_success", "tokens_per_second"):
            with pytest.raises(ValueError, match=f"{name} must be a number >= 0, got -1"):
                RetryBudget(**{name: -1})

    def test_zero_seconds_are_allowed(self, clock: FakeClock) -> None:
        retrier = Retrier(base_delay=0, max_delay=0, max_retry_after=0, total_timeout=0)
        assert retrier.call(Failing(TransientError(), TransientError(0))) == "result"
        assert clock.waits == [0, 0]

    def test_the_repr_shows_the_settings_and_the_budget(self) -> None:
        assert repr(Retrier(4)) == "Retrier(4, base_delay=1, budget=RetryBudget(10, tokens=10.0))"
