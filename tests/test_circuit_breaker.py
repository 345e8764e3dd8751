"""lib/circuit_breaker.py: what opens the circuit, which call is the probe, what callers learn."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import pickle
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from conftest import Call, FakeClock
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError, is_service_failure
from support import interrupt_everywhere, run_in_threads

Operation = Callable[[], object]


class StatusError(Exception):
    def __init__(self, status_code: object) -> None:
        super().__init__(status_code)
        self.status_code = status_code


def succeed() -> str:
    return "result"


def fail() -> None:
    raise ConnectionError("the service is down")


def not_found() -> None:
    raise StatusError(404)  # it says nothing about the service's health


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
        self._call.send(None)

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

    def test_a_success_resets_the_count_of_failures(self, call: Call) -> None:
        breaker = CircuitBreaker("api", failure_threshold=3)
        fail_times(breaker, 2)
        call(breaker, succeed)
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

    def test_counts_as_failure_decides_which_errors_count(self, call: Call) -> None:
        breaker = CircuitBreaker(
            "api", failure_threshold=1, counts_as_failure=lambda e: isinstance(e, StatusError)
        )
        fail_times(breaker, 3)
        with pytest.raises(StatusError):
            call(breaker, not_found)
        assert state_of(breaker) == "open"


class TestServiceFailure:
    def test_errors_that_indicate_an_unhealthy_service(self) -> None:
        errors = [
            *(StatusError(status) for status in (399, 500, 503, "404")),  # a text is not a status
            ConnectionError(),
            type("Transient", (Exception,), {"retryable": True})(),
        ]
        assert [error for error in errors if not is_service_failure(error)] == []

    def test_errors_that_do_not(self) -> None:
        errors = [
            *(StatusError(status) for status in (400, 429, 499)),
            type("Permanent", (Exception,), {"retryable": False})(),
        ]
        assert [error for error in errors if is_service_failure(error)] == []


class TestHalfOpen:
    def test_the_state_is_what_the_next_call_will_meet(self, clock: FakeClock) -> None:
        breaker = open_breaker(recovery_timeout=60)
        assert state_of(breaker) == "open"
        clock.now += 59.9
        assert state_of(breaker) == "open"
        clock.now += 0.1
        assert state_of(breaker) == "half-open"
        assert state_of(breaker) == "half-open"  # reading it changes nothing
        breaker.call(succeed)
        assert state_of(breaker) == "closed"

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

    def test_a_call_that_waits_for_the_lock_meanwhile_is_rejected(self, clock: FakeClock) -> None:
        breaker = open_breaker()
        lock = breaker._lock

        @contextlib.contextmanager
        def lock_after_a_failed_probe() -> Iterator[None]:
            breaker._lock = lock
            fail_times(breaker, 1)
            with lock:
                yield

        clock.now += 60
        breaker._lock = lock_after_a_failed_probe()  # type: ignore[assignment]
        rejection(breaker)

    @pytest.mark.parametrize("operation", [not_found, interrupt])
    def test_one_that_does_not_count_is_over(self, call: Call, operation: Operation) -> None:
        breaker = open_breaker(recovery_timeout=0)
        for _ in range(3):
            with pytest.raises((StatusError, KeyboardInterrupt)):
                call(breaker, operation)
            assert state_of(breaker) == "half-open"
        assert call(breaker, succeed) == "result"

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
            assert not breaker._lock.locked()
            assert breaker.call(succeed) == "result"
        assert points > 20


class TestLateCalls:
    """A call that began before the circuit changed has no effect when it ends after it."""

    @pytest.mark.parametrize("ending", [succeed, fail])
    def test_one_that_ends_while_it_is_open(self, ending: Operation, clock: FakeClock) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
        late = CallUnderWay(breaker, ending)
        fail_times(breaker, 2)
        clock.now += 30
        late.end()
        assert rejection(breaker).retry_after == 30

    @pytest.mark.parametrize("ending", [succeed, fail])
    def test_one_that_ends_during_a_probe(self, ending: Operation, clock: FakeClock) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
        late = CallUnderWay(breaker, ending)
        fail_times(breaker, 2)
        clock.now += 60
        probe = CallUnderWay(breaker, succeed)
        late.end()
        assert state_of(breaker) == "half-open"
        rejection(breaker)  # the probe is still under way
        probe.end()
        assert state_of(breaker) == "closed"

    def test_a_failure_that_ends_once_it_is_closed_again(self) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2)
        late = CallUnderWay(breaker, fail)
        fail_times(breaker, 2)
        breaker.reset()
        late.end()
        assert failures_until_open(breaker) == 2

    def test_a_success_that_ends_once_it_is_closed_again(self) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2)
        late = CallUnderWay(breaker, succeed)
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
    def test_each_change_is_reported_once(self, call: Call, clock: FakeClock) -> None:
        changes: list[str] = []
        breaker = open_breaker(2, on_state_change=lambda *change: changes.append(" ".join(change)))
        clock.now += 60
        with pytest.raises(StatusError):
            call(breaker, not_found)
        with pytest.raises(ConnectionError):
            call(breaker, fail)
        clock.now += 60
        call(breaker, succeed)
        breaker.reset()  # it is closed already
        fail_times(breaker, 2)
        breaker.reset()
        assert changes == [
            "api closed open",
            "api open half-open",
            "api half-open open",
            "api open half-open",
            "api half-open closed",
            "api closed open",
            "api open closed",
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

    def test_it_may_use_the_breaker(self) -> None:
        """No lock is held while it runs."""
        seen: list[str] = []
        breaker = CircuitBreaker(
            "api", failure_threshold=1, on_state_change=lambda *_: seen.append(breaker.state)
        )
        fail_times(breaker, 1)
        breaker.reset()
        assert seen == ["open", "closed"]

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


class TestDecorator:
    def test_a_function_and_an_async_function_are_protected(self) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2)

        @breaker
        def ask(prompt: str) -> str:
            """Ask."""
            raise ConnectionError(prompt)

        @breaker
        async def ask_async(prompt: str) -> str:
            raise ConnectionError(prompt)

        with pytest.raises(ConnectionError, match="one"):
            ask("one")
        with pytest.raises(ConnectionError, match="two"):
            asyncio.run(ask_async("two"))
        with pytest.raises(CircuitOpenError):
            ask("three")
        assert (ask.__name__, ask.__doc__) == ("ask", "Ask.")

    def test_a_generator_function_is_rejected(self) -> None:
        with pytest.raises(TypeError, match="decorate what it calls"):
            CircuitBreaker("api")(lambda: (yield))

    def test_call_rejects_an_awaitable(self) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1)
        with pytest.raises(TypeError, match="use call_async"):
            breaker.call(asyncio.Event().wait)  # type: ignore[unused-coroutine]
        assert breaker.state == "closed"  # the mistake is not the service's


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

    def test_all_but_the_name_are_keyword_only(self) -> None:
        with pytest.raises(TypeError):
            CircuitBreaker("api", 5)  # type: ignore[call-arg]

    def test_the_repr_shows_the_settings_and_the_state(self) -> None:
        assert repr(CircuitBreaker("api")) == (
            "CircuitBreaker('api', failure_threshold=5, recovery_timeout=60, state='closed')"
        )
