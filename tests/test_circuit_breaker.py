"""lib/circuit_breaker.py: what opens the circuit, which call is the probe, what callers learn."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import logging
import math
import os
import pickle
import random
import threading
import traceback
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import Call, FakeClock
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError, is_service_failure
from support import (
    in_forked_child,
    interrupt_everywhere,
    returns_when_interrupted,
    run_in_threads,
    thread_paused_at_the_clock,
)

Operation = Callable[[], object]


class StatusError(Exception):
    def __init__(self, status_code: object) -> None:
        super().__init__(status_code)
        self.status_code = status_code


class ResponseError(Exception):
    """An error as requests and httpx raise it."""

    def __init__(self, status_code: int) -> None:
        super().__init__(status_code)
        self.response = SimpleNamespace(status_code=status_code)


def succeed() -> str:
    return "result"


def fail() -> None:
    raise ConnectionError("the service is down")


def not_found() -> None:
    raise StatusError(404)  # it says nothing about the service's health


def unavailable() -> None:
    raise StatusError(503)


def interrupt() -> None:
    raise KeyboardInterrupt


def fail_times(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError):
            breaker.call(fail)


def open_breaker(
    failure_threshold: int = 3, recovery_timeout: float = 60, **settings: Any
) -> CircuitBreaker:
    settings |= {"failure_threshold": failure_threshold, "recovery_timeout": recovery_timeout}
    breaker = CircuitBreaker("api", **settings)
    fail_times(breaker, failure_threshold)
    return breaker


def state_of(breaker: CircuitBreaker) -> str:
    """The state, read again each time: mypy believes that a property stays what it was."""
    return breaker.state


def failures_until_open(breaker: CircuitBreaker) -> int:
    """The number of failures in a row that opens the circuit from now on."""
    assert state_of(breaker) == "closed"
    failures = 0
    while state_of(breaker) == "closed":
        fail_times(breaker, 1)
        failures += 1
    return failures


def rejection(breaker: CircuitBreaker) -> CircuitOpenError:
    """The error of a call, which must be rejected."""
    with pytest.raises(CircuitOpenError) as rejected:
        breaker.call(succeed)
    return rejected.value


class CallUnderWay:
    """A call through the breaker that has started, and ends as ``ending`` does in ``end``."""

    def __init__(self, breaker: CircuitBreaker, ending: Operation) -> None:
        async def operation() -> object:
            await self
            return ending()

        self._call = breaker.call_async(operation)
        contextvars.copy_context().run(self._call.send, None)  # a context of its own, as a task

    def __await__(self) -> Generator[None, None, None]:
        yield

    def end(self) -> None:
        with contextlib.suppress(StopIteration, ConnectionError):
            self._call.send(None)


def run_together(*jobs: Operation) -> None:
    """Run each job in a thread of its own, their steps interleaved."""
    waiting = iter(jobs)
    run_in_threads(len(jobs), lambda: next(waiting)(), interleaved=True)


class TestClosed:
    def test_it_returns_the_result_or_raises_the_original_error(self, call: Call) -> None:
        breaker = CircuitBreaker("api")
        assert call(breaker, succeed) == "result"
        with pytest.raises(ConnectionError) as raised:
            call(breaker, fail)
        assert traceback.extract_tb(raised.value.__traceback__)[-1].name == "fail"
        assert raised.value.__context__ is None

    def test_a_success_ends_a_row_of_failures(self, call: Call, clock: FakeClock) -> None:
        breaker = CircuitBreaker("api", failure_threshold=3)
        fail_times(breaker, 2)
        call(breaker, succeed)
        clock.now += 60
        assert failures_until_open(breaker) == 3


class TestOpen:
    @pytest.mark.parametrize("threshold", [1, 3])
    def test_consecutive_failures_open_the_circuit(self, call: Call, threshold: int) -> None:
        """The call that opens it raises its own error; the next one is not made."""
        breaker = CircuitBreaker("api", failure_threshold=threshold)
        for _ in range(threshold):
            with pytest.raises(ConnectionError):
                call(breaker, fail)
        with pytest.raises(CircuitOpenError):
            call(breaker, succeed)

    @pytest.mark.parametrize("operation", [not_found, interrupt])
    def test_some_errors_neither_add_nor_reset(self, call: Call, operation: Operation) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2)
        fail_times(breaker, 1)
        for _ in range(3):
            with pytest.raises((StatusError, KeyboardInterrupt)):
                call(breaker, operation)
        assert failures_until_open(breaker) == 1

    def test_counts_as_failure_decides_but_is_not_asked_about_a_rejection(self, call: Call) -> None:
        asked: list[type[Exception]] = []

        def counts(error: Exception) -> bool:
            asked.append(type(error))
            return isinstance(error, StatusError)

        breaker = CircuitBreaker("api", failure_threshold=1, counts_as_failure=counts)
        fail_times(breaker, 1)
        with pytest.raises(StatusError):
            call(breaker, not_found)
        with pytest.raises(CircuitOpenError):
            call(breaker, succeed)
        assert asked == [ConnectionError, StatusError]


class TestRecentCalls:
    """A row of failures opens the circuit only if at least half of the recent calls failed."""

    @pytest.mark.parametrize(("successes", "state"), [(2, "open"), (3, "open"), (4, "closed")])
    def test_fewer_failures_than_successes_do_not_open_it(
        self, successes: int, state: str, call: Call, clock: FakeClock
    ) -> None:
        breaker = CircuitBreaker("api", failure_threshold=3)
        for _ in range(successes):
            call(breaker, succeed)
        fail_times(breaker, 3)
        assert state_of(breaker) == state

    def test_a_success_loses_half_of_its_weight_every_five_seconds(self, clock: FakeClock) -> None:
        breaker = CircuitBreaker("api", failure_threshold=3)
        for _ in range(12):
            breaker.call(succeed)
        clock.now += 10
        fail_times(breaker, 2)
        assert failures_until_open(breaker) == 1

    def test_so_does_a_failure(self, clock: FakeClock) -> None:
        breaker = CircuitBreaker("api", failure_threshold=3)
        for _ in range(3):
            fail_times(breaker, 1)
            breaker.call(succeed)
        clock.now += 60
        assert failures_until_open(breaker) == 3

    def test_many_failures_within_seconds_are_as_good_as_a_row(self, clock: FakeClock) -> None:
        breaker = CircuitBreaker("api", failure_threshold=3)
        for operation in (fail, succeed, fail, succeed, fail):
            with contextlib.suppress(ConnectionError):
                breaker.call(operation)
        assert failures_until_open(breaker) == 1

    @pytest.mark.parametrize("calls_per_second", [10, 100, 1000])
    def test_one_failure_in_five_at_random_does_not_open_it_but_an_outage_does(
        self, calls_per_second: int, clock: FakeClock
    ) -> None:
        """At 1,000 calls per second, five of them fail in a row every four seconds."""
        breaker, chance = CircuitBreaker("api"), random.Random(1)

        def call_at(failures: float) -> None:
            clock.now += 1 / calls_per_second
            with contextlib.suppress(ConnectionError):
                breaker.call(fail if chance.random() < failures else succeed)

        for _ in range(5000):
            call_at(failures=0.2)
            assert state_of(breaker) == "closed"
        went_down_at = clock.now
        while state_of(breaker) == "closed":
            call_at(failures=1)
        assert clock.now - went_down_at < 4


class TestNested:
    """A call inside a running call of the same breaker is part of it."""

    def test_only_the_outermost_failure_counts(self, call: Call) -> None:
        breaker = CircuitBreaker("api", failure_threshold=3)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                call(breaker, lambda: breaker.call(lambda: breaker.call(fail)))
        assert failures_until_open(breaker) == 1

    def test_an_inner_failure_that_is_handled_does_not_count(self, call: Call) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1)

        def handles_a_failure() -> str:
            with contextlib.suppress(ConnectionError):
                breaker.call(fail)
            return "result"

        assert call(breaker, handles_a_failure) == "result"
        assert state_of(breaker) == "closed"

    def test_it_goes_through_with_the_probe(self, call: Call) -> None:
        breaker = open_breaker(recovery_timeout=0)
        calls = [breaker.call, breaker.call]
        assert call(breaker, lambda: [each(succeed) for each in calls]) == ["result", "result"]
        assert state_of(breaker) == "closed"

    def test_of_another_breaker_it_counts_for_itself(self) -> None:
        outer, inner = (CircuitBreaker(name, failure_threshold=1) for name in ("outer", "inner"))
        with pytest.raises(ConnectionError):
            outer.call(lambda: inner.call(lambda: outer.call(fail)))
        assert (state_of(outer), state_of(inner)) == ("open", "open")

    @pytest.mark.parametrize(("outlives_the_call", "state"), [(False, "closed"), (True, "open")])
    def test_a_task_started_inside_belongs_to_the_call_while_that_runs(
        self, outlives_the_call: bool, state: str
    ) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1)

        async def fail_async() -> None:
            raise ConnectionError

        async def outer() -> asyncio.Task[None]:
            task = asyncio.create_task(breaker.call_async(fail_async))
            if not outlives_the_call:
                await asyncio.wait([task])
            return task

        async def main() -> None:
            task = await breaker.call_async(outer)
            await asyncio.wait([task])
            assert type(task.exception()) is ConnectionError

        asyncio.run(main())
        assert state_of(breaker) == state

    def test_another_task_or_thread_does_not_belong_to_it(self) -> None:
        async def main() -> None:
            breaker = CircuitBreaker("api", failure_threshold=1)
            task = asyncio.create_task(breaker.call_async(asyncio.Event().wait))
            await asyncio.sleep(0)
            run_in_threads(1, lambda: fail_times(breaker, 1))
            assert state_of(breaker) == "open"
            breaker.reset()
            fail_times(breaker, 1)
            assert state_of(breaker) == "open"
            task.cancel()

        asyncio.run(main())


class TestServiceFailure:
    def test_errors_that_indicate_an_unhealthy_service(self) -> None:
        statuses = (399, 500, 503, "404")  # a text is not a status
        transient = type("Transient", (Exception,), {"retryable": True})()
        errors = [*map(StatusError, statuses), ResponseError(503), ConnectionError(), transient]
        assert [error for error in errors if not is_service_failure(error)] == []

    def test_errors_that_do_not(self) -> None:
        permanent = type("Permanent", (Exception,), {"retryable": False})()
        rejected = CircuitOpenError("another", 1)  # it says nothing about this service
        errors = [*map(StatusError, (400, 429, 499)), ResponseError(404), permanent, rejected]
        assert [error for error in errors if is_service_failure(error)] == []

    def test_an_error_that_has_no_text_counts_and_is_raised(self, call: Call) -> None:
        class BrokenError(Exception):
            def __str__(self) -> str:
                raise AttributeError

        def raise_broken_error() -> None:
            raise BrokenError

        breaker = CircuitBreaker("api", failure_threshold=1)
        with pytest.raises(BrokenError):
            call(breaker, raise_broken_error)
        assert rejection(breaker).last_failure == "BrokenError"


class TestHalfOpen:
    def test_the_state_is_what_the_next_call_will_meet(self, clock: FakeClock) -> None:
        breaker = open_breaker(recovery_timeout=60)
        assert state_of(breaker) == "open"
        clock.now += 59.9
        assert state_of(breaker) == "open"
        clock.now += 0.1
        assert state_of(breaker) == "half-open"
        assert state_of(breaker) == "half-open"  # reading it changes nothing

    def test_a_successful_probe_closes_the_circuit(self, call: Call, clock: FakeClock) -> None:
        breaker = open_breaker(failure_threshold=3)
        clock.now += 60
        call(breaker, succeed)
        assert failures_until_open(breaker) == 3

    def test_a_failed_probe_opens_the_circuit_again(self, call: Call, clock: FakeClock) -> None:
        breaker = open_breaker(failure_threshold=3, recovery_timeout=60)
        clock.now += 75
        with pytest.raises(ConnectionError):
            call(breaker, fail)
        clock.now += 59
        assert rejection(breaker).retry_after == 1
        clock.now += 1
        assert call(breaker, succeed) == "result"


class TestProbe:
    """One call at a time is the probe; when it is over, the next call may be."""

    def test_other_calls_are_rejected_meanwhile(self, call: Call, clock: FakeClock) -> None:
        breaker = open_breaker()
        clock.now += 61
        probe = CallUnderWay(breaker, succeed)
        assert state_of(breaker) == "half-open"
        with pytest.raises(CircuitOpenError) as rejected:
            call(breaker, succeed)
        assert rejected.value.retry_after == 0
        probe.end()
        assert state_of(breaker) == "closed"

    def test_of_four_threads_exactly_one_is_let_through(self) -> None:
        def results_of_four_threads() -> list[str]:
            breaker, all_have_tried = open_breaker(recovery_timeout=0), threading.Barrier(4)

            def call() -> str:
                try:
                    breaker.call(lambda: all_have_tried.wait(timeout=10))
                except CircuitOpenError:
                    all_have_tried.wait(timeout=10)
                    return "rejected"
                return "result"

            return sorted(run_in_threads(4, call, interleaved=True))

        for _ in range(15):
            assert results_of_four_threads() == ["rejected"] * 3 + ["result"]

    @pytest.mark.parametrize(("recovery_timeout", "seconds"), [(60, 60), (0, 1)])
    def test_one_that_does_not_end_loses_its_place(
        self, recovery_timeout: float, seconds: float, call: Call, clock: FakeClock
    ) -> None:
        breaker = open_breaker(recovery_timeout=recovery_timeout)
        clock.now += recovery_timeout
        CallUnderWay(breaker, fail)
        clock.now += seconds - 0.1
        rejection(breaker)
        clock.now += 0.1
        assert call(breaker, succeed) == "result"
        assert state_of(breaker) == "closed"

    @pytest.mark.parametrize("ending", [succeed, fail])
    def test_one_that_has_lost_its_place_changes_nothing(
        self, ending: Operation, clock: FakeClock
    ) -> None:
        breaker = open_breaker(recovery_timeout=60)
        clock.now += 60
        lost = CallUnderWay(breaker, ending)
        clock.now += 60
        probe = CallUnderWay(breaker, succeed)
        lost.end()
        assert state_of(breaker) == "half-open"
        rejection(breaker)
        probe.end()
        assert state_of(breaker) == "closed"

    @pytest.mark.parametrize("operation", [not_found, interrupt])
    def test_one_that_does_not_count_is_over(self, call: Call, operation: Operation) -> None:
        breaker = open_breaker(recovery_timeout=0)
        for _ in range(3):
            with pytest.raises((StatusError, KeyboardInterrupt)):
                call(breaker, operation)
            assert state_of(breaker) == "half-open"
        assert call(breaker, succeed) == "result"

    @pytest.mark.parametrize("operation", [asyncio.Event().wait, lambda: (n for n in [1])])
    def test_one_that_has_not_run_is_over(self, operation: Operation) -> None:
        breaker = open_breaker(recovery_timeout=0)
        with pytest.raises(TypeError, match="has not run"):
            breaker.call(operation)
        assert state_of(breaker) == "half-open"
        assert breaker.call(succeed) == "result"

    def test_one_whose_predicate_raises_is_over(self, call: Call) -> None:
        verdicts: list[Callable[[], bool]] = [lambda: True, lambda: 1 // 0 > 0]
        breaker = open_breaker(1, 0, counts_as_failure=lambda error: verdicts.pop(0)())
        with pytest.raises(ZeroDivisionError):
            call(breaker, fail)
        assert call(breaker, succeed) == "result"

    def test_a_cancelled_one_is_over(self) -> None:
        breaker = open_breaker(recovery_timeout=0)

        async def main() -> None:
            for _ in range(2):
                task = asyncio.create_task(breaker.call_async(asyncio.Event().wait))
                await asyncio.sleep(0)
                rejection(breaker)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())
        assert state_of(breaker) == "half-open"
        assert breaker.call(succeed) == "result"


class TestInterruption:
    @pytest.mark.parametrize("operation", [succeed, fail, not_found])
    def test_ctrl_c_leaves_no_lock_held_and_no_probe(self, operation: Operation) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1, recovery_timeout=0)

        def probe() -> None:
            breaker.reset()
            for each in (fail, operation):
                with contextlib.suppress(ConnectionError, StatusError):
                    breaker.call(each)

        points = 0
        for points in interrupt_everywhere(probe):  # noqa: B007
            assert run_in_threads(1, lambda: breaker.call(succeed)) == ["result"]
            assert breaker.call(succeed) == "result"
        assert points > 20


class TestLateCalls:
    """A call that began before the circuit changed has no effect when it ends after it."""

    @pytest.mark.parametrize("ending", [succeed, fail])
    def test_one_that_ends_while_it_is_open_or_during_a_probe(
        self, ending: Operation, clock: FakeClock
    ) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
        late, later = CallUnderWay(breaker, ending), CallUnderWay(breaker, ending)
        fail_times(breaker, 2)
        clock.now += 30
        late.end()
        assert rejection(breaker).retry_after == 30
        clock.now += 30
        probe = CallUnderWay(breaker, succeed)
        later.end()
        assert state_of(breaker) == "half-open"
        rejection(breaker)  # the probe is still under way
        probe.end()
        assert state_of(breaker) == "closed"

    @pytest.mark.parametrize("ending", [succeed, fail])
    def test_one_that_ends_once_it_is_closed_again(self, ending: Operation) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2)
        late = CallUnderWay(breaker, ending)
        fail_times(breaker, 2)
        breaker.reset()
        fail_times(breaker, 1)
        late.end()
        assert failures_until_open(breaker) == 1


class TestReset:
    def test_it_closes_the_circuit_and_forgets_every_failure(self) -> None:
        breaker = open_breaker(failure_threshold=2)
        breaker.reset()
        fail_times(breaker, 1)
        breaker.reset()
        assert failures_until_open(breaker) == 2

    @pytest.mark.parametrize("ending", [succeed, fail])
    def test_a_probe_under_way_no_longer_counts(self, ending: Operation) -> None:
        breaker = open_breaker(failure_threshold=1, recovery_timeout=0)
        probe = CallUnderWay(breaker, ending)
        breaker.reset()
        probe.end()
        assert state_of(breaker) == "closed"


class TestSharing:
    def test_the_lock_is_not_held_during_a_call(self) -> None:
        """None of eight calls waits for another: they end only when all have started."""
        breaker, all_started = CircuitBreaker("api"), threading.Barrier(8)
        places = run_in_threads(8, lambda: breaker.call(lambda: all_started.wait(timeout=10)))
        assert sorted(places) == list(range(8))

    def test_no_failure_is_lost(self, call: Call) -> None:
        breaker = CircuitBreaker("api", failure_threshold=24)

        def fail_three_times() -> None:
            for _ in range(3):
                with pytest.raises(ConnectionError):
                    call(breaker, fail)

        run_in_threads(7, fail_three_times, interleaved=True)
        assert failures_until_open(breaker) == 3

    def test_a_success_and_a_failure_at_the_same_time_leave_at_most_one_failure(self) -> None:
        for _ in range(60):
            breaker = CircuitBreaker("api", failure_threshold=3)
            fail_times(breaker, 1)
            success, failure = CallUnderWay(breaker, succeed), CallUnderWay(breaker, fail)
            run_together(success.end, failure.end)
            assert failures_until_open(breaker) >= 2


class TestCircuitOpenError:
    def test_it_says_which_circuit_how_long_and_what_opened_it(self, clock: FakeClock) -> None:
        breaker = open_breaker(recovery_timeout=60)
        clock.now += 12.5
        error = rejection(breaker)
        assert str(error) == "Circuit breaker is open"
        assert (error.name, error.retry_after) == ("api", 47.5)
        assert error.last_failure == "ConnectionError: the service is down"
        assert not hasattr(error, "retryable")  # to wait for it would defeat its purpose

    def test_each_one_is_new(self) -> None:
        breaker = open_breaker()
        first, second = rejection(breaker), rejection(breaker)
        assert first is not second
        assert [len(traceback.extract_tb(each.__traceback__)) for each in (first, second)] == [3, 3]

    def test_it_survives_pickle_and_copy(self) -> None:
        error = CircuitOpenError("api", 2.5, "TimeoutError")
        for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert vars(copied) == vars(error)


class TestStateChangeHook:
    def test_each_change_is_reported_once_and_logged_with_its_reason(
        self, call: Call, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The log gets the error's class and status, but not its text, a secret perhaps."""
        caplog.set_level(logging.INFO, logger="lib.circuit_breaker")
        changes: list[tuple[str, ...]] = []
        breaker = open_breaker(2, on_state_change=lambda *change: changes.append(change))
        clock.now += 60
        for operation in (not_found, unavailable):
            with pytest.raises(StatusError):
                call(breaker, operation)
        clock.now += 60
        call(breaker, succeed)
        breaker.reset()  # it is closed already
        fail_times(breaker, 2)
        breaker.reset()
        expected = [
            ("closed", "open", "ConnectionError"),
            ("open", "half-open", "the recovery timeout has passed"),
            ("half-open", "open", "StatusError, status 503"),
            ("open", "half-open", "the recovery timeout has passed"),
            ("half-open", "closed", "the probe succeeded"),
            ("closed", "open", "ConnectionError"),
            ("open", "closed", "reset"),
        ]
        assert changes == [("api", old, new) for old, new, _ in expected]
        assert [(record.levelname, record.message) for record in caplog.records] == [
            ("INFO", f"Circuit 'api': {old} -> {new} ({reason})") for old, new, reason in expected
        ]

    def test_a_probe_that_ends_during_a_reset_closes_the_circuit_once(self) -> None:
        changes: list[str] = []
        breaker = open_breaker(
            1, recovery_timeout=0, on_state_change=lambda *change: changes.append(" ".join(change))
        )
        for _ in range(40):
            probe = CallUnderWay(breaker, succeed)
            changes.clear()
            run_together(probe.end, breaker.reset)
            assert changes == ["api half-open closed"]
            fail_times(breaker, 1)

    def test_no_lock_is_held_while_it_runs(self) -> None:
        seen: list[str] = []

        def on_state_change(name: str, old: str, new: str) -> None:
            thread = threading.Thread(target=breaker.reset, daemon=True)  # another one needs it
            thread.start()
            thread.join(timeout=10)
            seen.append("a thread hangs" if thread.is_alive() else new)

        breaker = CircuitBreaker("api", failure_threshold=1, on_state_change=on_state_change)
        fail_times(breaker, 1)
        assert sorted(seen) == ["closed", "open"]

    def test_what_it_raises_reaches_the_caller(self, call: Call, clock: FakeClock) -> None:
        """And is not counted as a failure of the service."""

        def on_state_change(name: str, old: str, new: str) -> None:
            if new == "half-open":
                raise LookupError

        breaker = open_breaker(on_state_change=on_state_change)
        clock.now += 60
        with pytest.raises(LookupError):
            call(breaker, succeed)
        assert call(breaker, succeed) == "result"


class TestSignalHandler:
    def test_one_that_uses_the_breaker_returns_wherever_it_strikes(self) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1, recovery_timeout=0)

        def open_and_close() -> None:
            fail_times(breaker, 1)
            with contextlib.suppress(CircuitOpenError):
                breaker.call(succeed)
            breaker.reset()

        def handler() -> None:
            assert breaker.state in repr(breaker)
            breaker.reset()

        assert returns_when_interrupted(open_and_close, handler)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
class TestFork:
    def test_a_child_can_use_a_breaker_that_another_thread_was_using(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        breaker = CircuitBreaker("api")

        def fails() -> None:
            fail_times(breaker, 1)

        with thread_paused_at_the_clock(monkeypatch, fails):
            in_forked_child(fails)

    def test_the_circuit_is_kept_without_the_probe_of_the_parent(self) -> None:
        breaker = open_breaker(recovery_timeout=0)
        CallUnderWay(breaker, succeed)
        rejection(breaker)
        assert in_forked_child(lambda: (breaker.state, breaker.call(succeed), breaker.state)) == (
            "half-open", "result", "closed",
        )  # fmt: skip

    def test_a_child_that_is_forked_inside_a_call_is_not_part_of_it(self) -> None:
        """A pool of processes may start its workers inside the first call."""
        breaker = CircuitBreaker("api", failure_threshold=1)

        def state_after_a_failure() -> str:
            fail_times(breaker, 1)
            return breaker.state

        assert breaker.call(lambda: in_forked_child(state_after_a_failure)) == "open"


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("failure_threshold", 0, "an integer >= 1"),
            ("failure_threshold", 2.5, "an integer >= 1"),
            ("recovery_timeout", -1, "a number of seconds >= 0"),
            ("recovery_timeout", math.nan, "a number of seconds >= 0"),
            ("recovery_timeout", math.inf, "a number of seconds >= 0"),
            ("recovery_timeout", "60", "a number of seconds >= 0"),
        ],
    )
    def test_a_wrong_argument(self, name: str, value: Any, expected: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must be {expected}, got {value!r}"):
            CircuitBreaker("api", **{name: value})

    def test_the_repr_shows_the_settings_and_the_state(self) -> None:
        assert repr(CircuitBreaker("api")) == (
            "CircuitBreaker('api', failure_threshold=5, recovery_timeout=60, state='closed')"
        )
