"""lib/retry.py: what is retried, after which wait, how often, and what is raised in the end."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import random
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Call, FakeClock
from lib.retry import Retrier, RetryBudget
from support import interrupt_everywhere, run_in_threads


class BusyError(Exception):
    """A transient error, perhaps with the seconds that the server asked for."""

    retryable = True

    def __init__(self, retry_after: object = None) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


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


def always_busy() -> None:
    raise BusyError


def unlimited() -> RetryBudget:
    return RetryBudget(math.inf)


class TestResult:
    def test_a_success_is_returned_without_a_wait(self, call: Call, clock: FakeClock) -> None:
        operation = Failing()
        assert call(Retrier(), operation) == "result"
        assert (operation.calls, clock.waits) == (1, [])

    @pytest.mark.parametrize("result", [None, False, 0, "", [], BusyError()], ids=repr)
    def test_a_result_is_never_judged(self, call: Call, result: object) -> None:
        assert call(Retrier(), lambda: result) is result

    def test_what_is_raised_is_the_original_error_of_the_last_attempt(
        self, call: Call, clock: FakeClock
    ) -> None:
        errors = [BusyError(), BusyError(), BusyError()]
        with pytest.raises(BusyError) as raised:
            call(Retrier(max_attempts=3), Failing(*errors))
        assert raised.value is errors[2]
        assert raised.value.__cause__ is None

    @pytest.mark.parametrize("attempts", [1, 2, 50])
    def test_the_error_does_not_drag_earlier_attempts_along(
        self, attempts: int, clock: FakeClock
    ) -> None:
        with pytest.raises(BusyError) as raised:
            Retrier(max_attempts=attempts, budget=unlimited()).call(always_busy)
        assert raised.value.__context__ is None
        frames = traceback.extract_tb(raised.value.__traceback__)
        assert [frame.name for frame in frames[1:]] == ["call", "always_busy"]


class TestBackoff:
    def test_waits_double_up_to_max_delay(self, call: Call, clock: FakeClock) -> None:
        retrier = Retrier(max_attempts=8, base_delay=1, max_delay=30, jitter=False)
        assert call(retrier, Failing(*[BusyError() for _ in range(7)])) == "result"
        assert clock.waits == [1, 2, 4, 8, 16, 30, 30]

    @pytest.mark.parametrize("max_attempts", [1, 2, 5])
    def test_there_is_no_wait_after_the_last_attempt(
        self, call: Call, max_attempts: int, clock: FakeClock
    ) -> None:
        operation = Failing(*[BusyError() for _ in range(10)])
        with pytest.raises(BusyError):
            call(Retrier(max_attempts=max_attempts), operation)
        assert (operation.calls, len(clock.waits)) == (max_attempts, max_attempts - 1)

    def test_two_thousand_attempts_do_not_overflow(self, clock: FakeClock) -> None:
        with pytest.raises(BusyError):
            Retrier(max_attempts=2000, budget=unlimited()).call(always_busy)
        assert len(clock.waits) == 1999
        assert max(clock.waits) <= 30

    def test_the_wall_clock_is_not_used(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It jumps when it is set; monotonic time does not."""
        jumping = itertools.count(0, 10_000_000)
        monkeypatch.setattr(time, "time", lambda: next(jumping))
        Retrier(jitter=False, total_timeout=10).call(Failing(BusyError(), BusyError()))
        assert clock.waits == [1, 2]

    def test_zero_delays_are_allowed(self, call: Call, clock: FakeClock) -> None:
        assert call(Retrier(base_delay=0), Failing(BusyError())) == "result"
        assert clock.waits == [0]


class TestJitter:
    def test_full_jitter_spreads_each_wait_from_zero_to_its_ceiling(self, clock: FakeClock) -> None:
        random.seed(20)
        retrier = Retrier(max_attempts=3, base_delay=4, budget=unlimited())
        for _ in range(400):
            retrier.call(Failing(BusyError(), BusyError()))
        for waits, ceiling in [(clock.waits[::2], 4), (clock.waits[1::2], 8)]:
            assert 0 <= min(waits) < 0.05 * ceiling
            assert 0.95 * ceiling < max(waits) <= ceiling
            assert sum(waits) / len(waits) == pytest.approx(ceiling / 2, rel=0.1)

    def test_jitter_still_spreads_the_waits_at_max_delay(self, clock: FakeClock) -> None:
        """Jitter that is added before the cap vanishes there: all clients come back together."""
        random.seed(21)
        with pytest.raises(BusyError):
            Retrier(max_attempts=1000, max_delay=30, budget=unlimited()).call(always_busy)
        at_the_cap = clock.waits[5:]
        assert min(at_the_cap) < 1
        assert 29 < max(at_the_cap) <= 30
        assert sum(at_the_cap) / len(at_the_cap) == pytest.approx(15, rel=0.1)


class TestRetryAfter:
    @pytest.mark.parametrize("seconds", [0, 0.25, 7, 60, 60.0])
    def test_retry_after_takes_precedence_over_the_backoff(
        self, call: Call, seconds: float, clock: FakeClock
    ) -> None:
        call(Retrier(max_retry_after=60), Failing(BusyError(seconds), BusyError(seconds)))
        assert clock.waits == [seconds, seconds]

    @pytest.mark.parametrize("seconds", [60.001, 86400, 1e300, 10**400])
    def test_one_that_is_too_long_raises_the_error_at_once(
        self, call: Call, seconds: float, clock: FakeClock
    ) -> None:
        operation = Failing(error := BusyError(seconds))
        with pytest.raises(BusyError) as raised:
            call(Retrier(max_retry_after=60), operation)
        assert raised.value is error
        assert (operation.calls, clock.waits) == (1, [])

    @pytest.mark.parametrize(
        "value", [None, math.inf, -math.inf, math.nan, -1, "5", b"5", True, [5]], ids=repr
    )
    def test_what_is_not_a_number_of_seconds_counts_as_absent(
        self, value: object, clock: FakeClock
    ) -> None:
        assert Retrier(base_delay=3, jitter=False).call(Failing(BusyError(value))) == "result"
        assert clock.waits == [3]


class TestTotalTimeout:
    @pytest.mark.parametrize(("total_timeout", "waits"), [(6.9, [1, 2]), (7, [1, 2, 4]), (0, [])])
    def test_a_wait_that_would_end_after_it_is_not_begun(
        self, call: Call, total_timeout: float, waits: list[int], clock: FakeClock
    ) -> None:
        retrier = Retrier(10, jitter=False, total_timeout=total_timeout)
        with pytest.raises(BusyError):
            call(retrier, always_busy)
        assert clock.waits == waits

    def test_it_counts_from_the_start_of_the_call_and_includes_the_attempts(
        self, call: Call, clock: FakeClock
    ) -> None:
        retrier = Retrier(max_attempts=10, jitter=False, total_timeout=7)
        clock.now += 1000

        def slow() -> None:
            clock.now += 2.5
            raise BusyError

        with pytest.raises(BusyError):
            call(retrier, slow)
        assert clock.waits == [1]

    def test_a_retry_after_beyond_it_raises_the_error_at_once(self, clock: FakeClock) -> None:
        with pytest.raises(BusyError):
            Retrier(total_timeout=4).call(Failing(BusyError(5)))
        assert clock.waits == []


class TestRetryIf:
    @pytest.mark.parametrize(
        "error", [ValueError(), type("Permanent", (Exception,), {"retryable": False})()], ids=repr
    )
    def test_an_error_not_marked_retryable_is_raised_at_once(
        self, call: Call, error: Exception, clock: FakeClock
    ) -> None:
        operation = Failing(error)
        with pytest.raises(type(error)) as raised:
            call(Retrier(), operation)
        assert raised.value is error
        assert operation.calls == 1

    def test_retry_if_decides_for_errors_without_the_attribute(
        self, call: Call, clock: FakeClock
    ) -> None:
        retrier = Retrier(retry_if=lambda error: isinstance(error, ConnectionError))
        assert call(retrier, Failing(ConnectionError())) == "result"
        with pytest.raises(BusyError):
            call(retrier, always_busy)


class TestBudget:
    def test_a_retry_costs_a_token_and_an_empty_budget_ends_the_retries(
        self, call: Call, clock: FakeClock
    ) -> None:
        budget = RetryBudget(3, tokens_per_success=0, tokens_per_second=0)
        operation = Failing(*[BusyError() for _ in range(10)])
        with pytest.raises(BusyError):
            call(Retrier(max_attempts=10, budget=budget), operation)
        assert operation.calls == 1 + 3

    def test_successes_and_time_earn_tokens_up_to_the_maximum(self, clock: FakeClock) -> None:
        budget = RetryBudget(2, tokens_per_success=0.5, tokens_per_second=0.25)
        assert [budget.take(), budget.take(), budget.take()] == [True, True, False]
        budget.earn()
        assert not budget.take()
        budget.earn()
        assert [budget.take(), budget.take()] == [True, False]
        clock.now += 3.9
        assert not budget.take()
        clock.now += 0.1
        assert [budget.take(), budget.take()] == [True, False]
        clock.now += 1000
        assert [budget.take(), budget.take(), budget.take()] == [True, True, False]

    def test_a_retrier_earns_with_each_success(self, call: Call, clock: FakeClock) -> None:
        budget = RetryBudget(1, tokens_per_success=0.5, tokens_per_second=0)
        retrier = Retrier(2, budget=budget)
        assert budget.take()
        call(retrier, Failing())
        call(retrier, Failing())
        assert budget.take()

    def test_retriers_share_a_budget_only_if_they_are_given_the_same_one(self) -> None:
        shared = RetryBudget()
        assert Retrier(budget=shared).budget is Retrier(budget=shared).budget
        assert Retrier().budget is not Retrier().budget

    def test_threads_never_take_more_tokens_than_there_are(self) -> None:
        budget = RetryBudget(20, tokens_per_second=0)
        taken = run_in_threads(8, lambda: [budget.take() for _ in range(5)], interleaved=True)
        assert sum(map(sum, taken)) == 20

    def test_threads_that_succeed_lose_no_token(self) -> None:
        budget = RetryBudget(200, tokens_per_success=1, tokens_per_second=0)
        assert all(budget.take() for _ in range(200))

        def succeed_25_times() -> None:
            for _ in range(25):
                budget.earn()

        run_in_threads(8, succeed_25_times, interleaved=True)
        assert sum(budget.take() for _ in range(201)) == 200

    def test_it_is_on_by_default_and_the_hook_names_it(self, clock: FakeClock) -> None:
        reasons: list[str] = []
        retrier = Retrier(base_delay=0, on_give_up=lambda _a, _e, reason: reasons.append(reason))
        for _ in range(10):
            with pytest.raises(BusyError):
                retrier.call(always_busy)
        assert len(clock.waits) == 10
        assert reasons.count("attempts exhausted") == 5
        assert reasons.count("retry budget exhausted") == 5


class OverloadModel:
    """A service whose latency grows with its load, and clients that call it through a budget.

    Latency is 1 s and 10 ms more for each request in flight, the network adds an
    exponential 0.1 s, and a client gives up after 3 s, although the service works on.
    40 calls per second arrive, and 80 per second from t = 20 to 25 s.
    """

    END = 80.0

    def __init__(self, seed: int, clock: FakeClock, budget: RetryBudget) -> None:
        self._random = random.Random(seed)
        self._clock = clock
        self._retrier = Retrier(3, budget=budget)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._in_flight = 0
        self.arrivals: list[float] = []
        self.requests: list[float] = []
        self.successes: list[float] = []

    def run(self) -> OverloadModel:
        start = self._clock.now
        self._at(0.0, self._arrive)
        while self._events and self._events[0][0] < self.END:
            now, _, event, arguments = heapq.heappop(self._events)
            self._clock.now = start + now
            event(now, *arguments)
        return self

    def _at(self, moment: float, event: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (moment, next(self._order), event, arguments))

    def _arrive(self, now: float) -> None:
        self.arrivals.append(now)
        self._send(now, 1, self._clock.now)
        rate = 80 if 20 <= now < 25 else 40
        self._at(now + self._random.expovariate(rate), self._arrive)

    def _send(self, now: float, attempt: int, started_at: float) -> None:
        self.requests.append(now)
        latency = 1 + 0.01 * self._in_flight
        self._in_flight += 1
        response_time = latency + self._random.expovariate(10)
        self._at(now + response_time, self._finish)
        if response_time > 3:
            self._at(now + 3, self._time_out, attempt, started_at)
        else:
            self._at(now + response_time, self._succeed)

    def _finish(self, now: float) -> None:
        self._in_flight -= 1

    def _succeed(self, now: float) -> None:
        self.successes.append(now)
        self._retrier.budget.earn()

    def _time_out(self, now: float, attempt: int, started_at: float) -> None:
        delay = self._retrier._delay_after(BusyError(), attempt, started_at)
        if delay is not None:
            self._at(now + delay, self._send, attempt + 1, started_at)


def late(moments: list[float]) -> int:
    return sum(moment >= 60 for moment in moments)


class TestOverload:
    """The default budget ends a retry storm; without one, the service stays down."""

    def test_with_the_default_budget_the_service_recovers_from_a_spike_in_each_of_20_runs(
        self, clock: FakeClock
    ) -> None:
        random.seed(1)
        for seed in range(20):
            model = OverloadModel(seed, clock, RetryBudget()).run()
            assert late(model.requests) <= 1.15 * late(model.arrivals), seed
            assert late(model.successes) >= 0.9 * late(model.arrivals), seed

    def test_without_a_budget_most_runs_end_in_an_outage_that_lasts(self, clock: FakeClock) -> None:
        random.seed(1)
        runs = [OverloadModel(seed, clock, unlimited()).run() for seed in range(10)]
        stuck = [run for run in runs if late(run.requests) > 2 * late(run.arrivals)]
        assert len(stuck) >= 5

    def test_while_every_call_fails_the_load_is_at_most_1_15_times_the_calls(
        self, clock: FakeClock
    ) -> None:
        retrier = Retrier()
        operation = Failing(*[BusyError() for _ in range(10_000)])
        for _ in range(2000):
            clock.now += 1 / 40
            with pytest.raises(BusyError):
                retrier.call(operation)
            clock.now -= sum(clock.waits)  # the calls overlap: a wait delays no other call
            clock.waits.clear()
        assert operation.calls <= 1.15 * 2000

    @pytest.mark.parametrize("seed", range(5))
    def test_a_program_that_calls_once_per_second_keeps_its_retries(
        self, seed: int, clock: FakeClock
    ) -> None:
        """At 30 % failures for ten minutes, it loses at most 1 % of its successes."""

        def successes(budget: RetryBudget) -> int:
            chance, retrier, count = random.Random(seed), Retrier(jitter=False, budget=budget), 0

            def operation() -> None:
                if chance.random() < 0.3:
                    raise BusyError

            for _ in range(600):
                clock.now += 1
                try:
                    retrier.call(operation)
                    count += 1
                except BusyError:
                    pass
                clock.now -= sum(clock.waits)
                clock.waits.clear()
            return count

        assert successes(RetryBudget()) >= 0.99 * successes(unlimited())


class TestHooks:
    @staticmethod
    def retrier_with_hooks(events: list[tuple[Any, ...]], **settings: Any) -> Retrier:
        for name in ("on_attempt", "on_wait", "on_recovery", "on_give_up"):
            settings[name] = lambda *arguments, name=name: events.append((name, *arguments))
        return Retrier(jitter=False, **settings)

    def test_a_recovery(self, call: Call, clock: FakeClock) -> None:
        events: list[tuple[Any, ...]] = []
        errors = [BusyError(), BusyError(7)]
        call(self.retrier_with_hooks(events), Failing(*errors))
        assert events == [
            ("on_attempt", 1),
            ("on_wait", 1, errors[0], 1.0),
            ("on_attempt", 2),
            ("on_wait", 2, errors[1], 7),
            ("on_attempt", 3),
            ("on_recovery", 3),
        ]

    def test_a_success_at_the_first_attempt_is_not_a_recovery(self, call: Call) -> None:
        events: list[tuple[Any, ...]] = []
        call(self.retrier_with_hooks(events), Failing())
        assert events == [("on_attempt", 1)]

    @pytest.mark.parametrize(
        ("settings", "error", "reason"),
        [
            ({"max_attempts": 1}, BusyError(), "attempts exhausted"),
            ({}, ValueError(), "not retryable"),
            ({}, BusyError(61), "Retry-After too long"),
            ({"total_timeout": 0.5}, BusyError(), "total timeout"),
            (
                {"budget": RetryBudget(0, tokens_per_second=0)},
                BusyError(),
                "retry budget exhausted",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_giving_up_is_reported_once_with_its_reason(
        self, call: Call, settings: Any, error: Exception, reason: str, clock: FakeClock
    ) -> None:
        events: list[tuple[Any, ...]] = []
        with pytest.raises(type(error)):
            call(self.retrier_with_hooks(events, **settings), Failing(error))
        assert events == [("on_attempt", 1), ("on_give_up", 1, error, reason)]

    def test_a_wait_is_announced_before_it_begins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        events: list[str] = []
        monkeypatch.setattr(time, "sleep", lambda seconds: events.append("sleep"))
        Retrier(on_wait=lambda *_: events.append("on_wait")).call(Failing(BusyError()))
        assert events == ["on_wait", "sleep"]

    def test_each_wait_is_logged_at_info(
        self, call: Call, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, logger="lib.retry"):
            call(Retrier(jitter=False), Failing(BusyError(), BusyError()))
        assert caplog.messages == [
            "Attempt 1 of 3 failed (BusyError: busy), waiting 1.00 s",
            "Attempt 2 of 3 failed (BusyError: busy), waiting 2.00 s",
        ]


class TestDecorator:
    def test_a_function_and_an_async_function_are_retried(self, clock: FakeClock) -> None:
        operation, operation_async = Failing(BusyError()), Failing(BusyError())
        retrier = Retrier()

        @retrier
        def ask(prompt: str) -> str:
            """Ask."""
            return f"{prompt} {operation()}"

        @retrier
        async def ask_async(prompt: str) -> str:
            return f"{prompt} {operation_async()}"

        assert ask("a") == "a result"
        assert asyncio.run(ask_async("b")) == "b result"
        assert (ask.__name__, ask.__doc__) == ("ask", "Ask.")
        assert asyncio.iscoroutinefunction(ask_async)

    def test_a_generator_function_is_rejected(self) -> None:
        with pytest.raises(TypeError, match="decorate what it calls"):
            Retrier()(lambda: (yield))

    def test_call_rejects_an_awaitable_which_has_not_run(self) -> None:
        """Otherwise an un-awaited coroutine would be taken for a success."""

        async def never_awaited() -> None:
            raise AssertionError

        with pytest.raises(TypeError, match="use call_async"):
            Retrier().call(never_awaited)  # type: ignore[unused-coroutine]


class TestInterruption:
    @pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
    def test_ctrl_c_in_an_attempt_passes_through_even_if_marked_retryable(
        self, leaving: type[BaseException], clock: FakeClock
    ) -> None:
        error = type("Leaving", (leaving,), {"retryable": True})()
        gave_up: list[object] = []
        retrier = Retrier(on_give_up=lambda *event: gave_up.append(event))
        with pytest.raises(leaving) as raised:
            retrier.call(Failing(error))
        assert raised.value is error
        assert (clock.waits, gave_up) == ([], [])

    def test_a_cancelled_task_is_not_retried_and_leaves_no_task_behind(self) -> None:
        async def main() -> int:
            calls = 0

            async def operation() -> None:
                nonlocal calls
                calls += 1
                await asyncio.sleep(60)

            task = asyncio.create_task(Retrier().call_async(operation))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return calls

        assert asyncio.run(main()) == 1

    def test_at_any_point_it_leaves_no_lock_held(self) -> None:
        retrier = Retrier(base_delay=0, budget=RetryBudget(1000))
        points = 0
        for points in interrupt_everywhere(lambda: retrier.call(Failing(BusyError()))):  # noqa: B007
            assert not retrier.budget._lock.locked()
        assert points > 20


class TestSharing:
    def test_the_attempts_of_threads_that_share_a_retrier_are_their_own(self) -> None:
        """They go through their attempts in lockstep: a shared count would end them early."""
        threads, attempts = 8, 5
        barrier = threading.Barrier(threads)
        retrier = Retrier(max_attempts=attempts, base_delay=0, budget=unlimited())

        def fail_four_times() -> str:
            calls = 0

            def operation() -> str:
                nonlocal calls
                barrier.wait(timeout=30)
                calls += 1
                if calls < attempts:
                    raise BusyError
                return f"result {calls}"

            return retrier.call(operation)

        assert run_in_threads(threads, fail_four_times) == ["result 5"] * threads

    def test_a_thousand_tasks_wait_side_by_side_without_a_thread(self) -> None:
        retrier = Retrier(base_delay=0.1, jitter=False, budget=unlimited())
        before = threading.active_count()

        async def main() -> float:
            started_at = time.monotonic()

            async def ask(operation: Failing) -> str:
                async def awaited() -> str:
                    return operation()

                return await retrier.call_async(awaited)

            results = await asyncio.gather(*[ask(Failing(BusyError())) for _ in range(1000)])
            assert results == ["result"] * 1000
            assert threading.active_count() == before
            return time.monotonic() - started_at

        assert asyncio.run(main()) < 50  # one after the other they would take 100 s


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            *(({"max_attempts": value}, "max_attempts must be an integer >= 1, got ")
              for value in (0, -1, 2.0, math.inf, None, "3", True)),
            *(({name: value}, f"{name} must be a number of seconds >= 0, got ")
              for name in ("base_delay", "max_delay", "max_retry_after", "total_timeout")
              for value in (-1, math.nan, math.inf, "1", True)),
        ],
        ids=str,
    )  # fmt: skip
    def test_a_retrier(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Retrier(**arguments)

    @pytest.mark.parametrize("name", ["max_tokens", "tokens_per_success", "tokens_per_second"])
    @pytest.mark.parametrize("value", [-1, math.nan, "1", True])
    def test_a_budget(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"{name} must be a number >= 0, got "):
            RetryBudget(**{name: value})

    def test_all_but_the_first_are_keyword_only(self) -> None:
        with pytest.raises(TypeError):
            Retrier(3, 1.0)  # type: ignore[call-arg]
        assert repr(Retrier(4)) == "Retrier(4, base_delay=1, budget=RetryBudget(10, tokens=10.0))"
