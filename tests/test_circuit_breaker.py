"""lib/circuit_breaker.py: what opens the circuit, who is let through, and what callers learn."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import pickle
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from conftest import Call, FakeClock
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError, is_service_failure
from support import interrupt_everywhere, run_in_threads


class StatusError(Exception):
    """An HTTP error status; a 404 says nothing about the service's health."""

    def __init__(self, status_code: int = 404) -> None:
        super().__init__(status_code)
        self.status_code = status_code


def succeed() -> str:
    return "result"


def fail() -> None:
    raise ConnectionError("the service is down")


def not_found() -> None:
    raise StatusError


def must_not_be_called() -> None:
    pytest.fail("the circuit is open, and yet the operation was called")


def fail_times(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError):
            breaker.call(fail)


def tripped(threshold: int = 3, recovery_timeout: float = 60, **settings: Any) -> CircuitBreaker:
    breaker = CircuitBreaker(
        "api", failure_threshold=threshold, recovery_timeout=recovery_timeout, **settings
    )
    fail_times(breaker, threshold)
    return breaker


def state_of(breaker: CircuitBreaker) -> str:
    """The state, read again each time: mypy believes that a property stays what it was."""
    return breaker.state


def assert_rejects(breaker: CircuitBreaker) -> None:
    with pytest.raises(CircuitOpenError):
        breaker.call(must_not_be_called)


class Held:
    """A call through the breaker that is under way until ``end`` lets it finish."""

    def __init__(self, breaker: CircuitBreaker, ending: Callable[[], object]) -> None:
        self._ending = ending
        self._started, self._may_end = threading.Event(), threading.Event()
        self._future: Future[object] = Future()
        self._thread = threading.Thread(target=self._run, args=(breaker,))
        self._thread.start()
        assert self._started.wait(timeout=30)

    def _run(self, breaker: CircuitBreaker) -> None:
        try:
            self._future.set_result(breaker.call(self._operation))
        except BaseException as error:
            self._future.set_exception(error)

    def _operation(self) -> object:
        self._started.set()
        assert self._may_end.wait(timeout=30)
        return self._ending()

    def end(self) -> None:
        self._may_end.set()
        self._thread.join()
        self._future.exception()


class TestClosed:
    def test_it_returns_the_result_or_raises_the_very_error(self, call: Call) -> None:
        breaker, error = CircuitBreaker("api"), ConnectionError()

        def raise_it() -> None:
            raise error

        assert call(breaker, succeed) == "result"
        with pytest.raises(ConnectionError) as raised:
            call(breaker, raise_it)
        assert raised.value is error
        assert raised.value.__context__ is None

    def test_a_success_resets_the_count(self, call: Call) -> None:
        breaker = CircuitBreaker("api", failure_threshold=3)
        for _ in range(5):
            fail_times(breaker, 2)
            call(breaker, succeed)
        assert state_of(breaker) == "closed"


class TestTrip:
    @pytest.mark.parametrize("threshold", [1, 2, 5])
    def test_failures_in_a_row_open_the_circuit(self, call: Call, threshold: int) -> None:
        """The call that trips it raises its own error; the next one is not made."""
        breaker = CircuitBreaker("api", failure_threshold=threshold)
        for _ in range(threshold):
            assert state_of(breaker) == "closed"
            with pytest.raises(ConnectionError):
                call(breaker, fail)
        assert state_of(breaker) == "open"
        with pytest.raises(CircuitOpenError):
            call(breaker, must_not_be_called)

    @pytest.mark.parametrize("leaving", [StatusError, KeyboardInterrupt, SystemExit])
    def test_an_error_that_does_not_count_neither_adds_nor_resets(
        self, call: Call, leaving: type[BaseException]
    ) -> None:
        def leave() -> None:
            raise leaving

        breaker = CircuitBreaker("api", failure_threshold=2)
        for _ in range(3):
            with pytest.raises(leaving):
                call(breaker, leave)
        fail_times(breaker, 1)
        with pytest.raises(leaving):
            call(breaker, leave)
        assert state_of(breaker) == "closed"
        fail_times(breaker, 1)
        assert state_of(breaker) == "open"

    def test_counts_as_failure_decides_what_counts(self, call: Call) -> None:
        breaker = CircuitBreaker(
            "api", failure_threshold=1, counts_as_failure=lambda e: isinstance(e, StatusError)
        )
        fail_times(breaker, 3)
        assert state_of(breaker) == "closed"
        with pytest.raises(StatusError):
            call(breaker, not_found)
        assert state_of(breaker) == "open"


class TestServiceFailure:
    """One predicate says what indicates an unhealthy service."""

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            *((StatusError(status), False) for status in (400, 401, 404, 408, 422, 429, 499)),
            *((StatusError(status), True) for status in (200, 500, 502, 503, 529)),
            (ConnectionError(), True),
            (type("Permanent", (Exception,), {"retryable": False})(), False),
            (type("Transient", (Exception,), {"retryable": True})(), True),
            (type("Odd", (Exception,), {"status_code": "503"})(), True),
        ],
        ids=repr,
    )
    def test_service_failure(self, error: Exception, expected: bool) -> None:
        assert is_service_failure(error) is expected


class TestHalfOpen:
    def test_the_state_is_what_the_next_call_meets(self, clock: FakeClock) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
        seen = [breaker.state]
        fail_times(breaker, 2)
        seen.append(breaker.state)
        clock.now += 59.9
        seen.append(breaker.state)
        clock.now += 0.1
        seen += [breaker.state, breaker.state]  # reading it changes nothing
        breaker.call(succeed)
        seen.append(breaker.state)
        assert seen == ["closed", "open", "open", "half-open", "half-open", "closed"]

    def test_after_a_good_probe_it_takes_the_whole_threshold_to_trip_again(
        self, call: Call, clock: FakeClock
    ) -> None:
        breaker = tripped(threshold=3)
        clock.now += 60
        call(breaker, succeed)
        fail_times(breaker, 2)
        assert state_of(breaker) == "closed"
        fail_times(breaker, 1)
        assert state_of(breaker) == "open"

    def test_a_failed_probe_opens_the_circuit_for_the_whole_timeout_again(
        self, call: Call, clock: FakeClock
    ) -> None:
        breaker = tripped(threshold=3, recovery_timeout=60)
        clock.now += 75
        with pytest.raises(ConnectionError):
            call(breaker, fail)  # one failure is enough for a probe
        assert state_of(breaker) == "open"
        clock.now += 59
        assert_rejects(breaker)
        clock.now += 1
        assert call(breaker, succeed) == "result"

    def test_a_recovery_timeout_of_zero_is_half_open_at_once(self) -> None:
        breaker = tripped(recovery_timeout=0)
        assert state_of(breaker) == "half-open"
        assert breaker.call(succeed) == "result"


class TestProbe:
    def test_while_one_is_under_way_other_calls_are_rejected(self, clock: FakeClock) -> None:
        breaker = tripped()
        clock.now += 61
        probe = Held(breaker, succeed)
        assert state_of(breaker) == "half-open"
        with pytest.raises(CircuitOpenError) as rejected:
            breaker.call(must_not_be_called)
        assert rejected.value.retry_after == 0
        probe.end()
        assert state_of(breaker) == "closed"

    def test_of_eight_threads_exactly_one_is_let_through(self) -> None:
        """The probe ends only when the seven others have been rejected."""
        breaker = tripped(recovery_timeout=0)
        rejections = threading.Semaphore(0)

        def probe() -> str:
            assert all(rejections.acquire(timeout=10) for _ in range(7))
            return "result"

        def call() -> str:
            try:
                return breaker.call(probe)
            except CircuitOpenError:
                rejections.release()
                return "rejected"

        assert sorted(run_in_threads(8, call)) == ["rejected"] * 7 + ["result"]
        assert state_of(breaker) == "closed"

    def test_however_the_threads_interleave_one_is_let_through(self) -> None:
        for _ in range(15):
            breaker = tripped(threshold=1, recovery_timeout=0)
            probes: list[int] = []
            all_tried = threading.Barrier(4)

            def probe(probes: list[int] = probes, all_tried: threading.Barrier = all_tried) -> None:
                probes.append(1)
                all_tried.wait(timeout=10)

            def call(
                breaker: CircuitBreaker = breaker,
                probe: Callable[[], None] = probe,
                all_tried: threading.Barrier = all_tried,
            ) -> None:
                try:
                    breaker.call(probe)
                except CircuitOpenError:
                    all_tried.wait(timeout=10)

            run_in_threads(4, call, interleaved=True)
            assert len(probes) == 1

    def test_of_a_thousand_tasks_exactly_one_is_let_through_and_no_thread_is_started(self) -> None:
        breaker, before = tripped(recovery_timeout=0), threading.active_count()

        async def main() -> list[str]:
            async def probe() -> str:
                await asyncio.sleep(0.05)
                return "result"

            async def call() -> str:
                try:
                    return await breaker.call_async(probe)
                except CircuitOpenError:
                    return "rejected"

            results = await asyncio.gather(*[call() for _ in range(1000)])
            assert threading.active_count() == before
            return list(results)

        assert sorted(asyncio.run(main())) == ["rejected"] * 999 + ["result"]
        assert state_of(breaker) == "closed"

    @pytest.mark.parametrize("leaving", [StatusError, KeyboardInterrupt, SystemExit])
    def test_one_that_says_nothing_frees_its_place(
        self, call: Call, leaving: type[BaseException], clock: FakeClock
    ) -> None:
        def leave() -> None:
            raise leaving

        breaker = tripped()
        clock.now += 60
        for _ in range(3):
            with pytest.raises(leaving):
                call(breaker, leave)
            assert state_of(breaker) == "half-open"
        assert call(breaker, succeed) == "result"
        assert state_of(breaker) == "closed"

    def test_one_whose_predicate_fails_frees_its_place(self, clock: FakeClock) -> None:
        verdicts: list[Callable[[], bool]] = [lambda: True, lambda: 1 // 0 > 0]
        breaker = tripped(threshold=1, counts_as_failure=lambda error: verdicts.pop(0)())
        clock.now += 60
        with pytest.raises(ZeroDivisionError):
            breaker.call(fail)
        assert breaker.call(succeed) == "result"

    def test_a_cancelled_one_frees_its_place_and_leaves_no_task_behind(self) -> None:
        breaker = tripped(recovery_timeout=0)

        async def main() -> None:
            async def hang() -> None:
                await asyncio.sleep(60)

            for _ in range(3):
                task = asyncio.create_task(breaker.call_async(hang))
                await asyncio.sleep(0)
                assert_rejects(breaker)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())
        assert state_of(breaker) == "half-open"
        assert breaker.call(succeed) == "result"


class TestInterruption:
    @pytest.mark.parametrize("operation", [succeed, fail, not_found])
    def test_ctrl_c_at_any_point_leaves_no_lock_held_and_no_probes_place_taken(
        self, operation: Callable[[], object]
    ) -> None:
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
    """A call that started before the circuit changed says nothing about it when it ends."""

    @pytest.mark.parametrize("ending", [succeed, fail, not_found])
    def test_one_from_before_the_trip_changes_nothing_while_open(
        self, ending: Callable[[], object], clock: FakeClock
    ) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
        late = Held(breaker, ending)
        fail_times(breaker, 2)
        clock.now += 30
        late.end()
        assert state_of(breaker) == "open"
        with pytest.raises(CircuitOpenError) as rejected:
            breaker.call(must_not_be_called)
        assert rejected.value.retry_after == 30

    @pytest.mark.parametrize("ending", [succeed, fail, not_found])
    def test_one_from_before_the_trip_is_not_the_probe(
        self, ending: Callable[[], object], clock: FakeClock
    ) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
        before, during = Held(breaker, ending), Held(breaker, ending)
        fail_times(breaker, 2)
        clock.now += 60
        before.end()
        assert state_of(breaker) == "half-open"
        probe = Held(breaker, succeed)
        during.end()
        assert state_of(breaker) == "half-open"
        assert_rejects(breaker)  # the place is still the probe's
        probe.end()
        assert state_of(breaker) == "closed"

    @pytest.mark.parametrize(("ending", "state"), [(fail, "closed"), (succeed, "open")])
    def test_one_from_before_the_trip_changes_nothing_once_it_is_closed_again(
        self, ending: Callable[[], object], state: str, clock: FakeClock
    ) -> None:
        """Late failures don't count, and a late success doesn't reset the count."""
        breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
        late = [Held(breaker, ending) for _ in range(3)]
        fail_times(breaker, 2)
        clock.now += 60
        breaker.call(succeed)
        if ending is succeed:
            fail_times(breaker, 1)
        for each in late:
            each.end()
        assert state_of(breaker) == "closed"
        fail_times(breaker, 1)
        assert state_of(breaker) == state


class TestSharing:
    def test_eight_calls_are_under_way_together(self) -> None:
        """None waits for another: each ends only when all of them have started."""
        breaker, all_started = CircuitBreaker("api"), threading.Barrier(8)
        places = run_in_threads(8, lambda: breaker.call(lambda: all_started.wait(timeout=10)))
        assert sorted(places) == list(range(8))

    def test_threads_lose_no_failure(self) -> None:
        breaker = CircuitBreaker("api", failure_threshold=40)

        def fail_five_times() -> None:
            fail_times(breaker, 5)

        run_in_threads(7, fail_five_times, interleaved=True)
        fail_times(breaker, 4)
        assert state_of(breaker) == "closed"
        fail_times(breaker, 1)
        assert state_of(breaker) == "open"

    def test_threads_and_tasks_of_two_event_loops_share_one(self) -> None:
        breaker = CircuitBreaker("api", failure_threshold=30)

        async def fail_async() -> None:
            raise ConnectionError

        async def main() -> None:
            calls = [breaker.call_async(fail_async) for _ in range(10)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, ConnectionError) for result in results)

        run_in_threads(2, lambda: asyncio.run(main()))
        fail_times(breaker, 9)
        assert state_of(breaker) == "closed"
        fail_times(breaker, 1)
        assert state_of(breaker) == "open"


class TestCircuitOpenError:
    def test_it_says_which_circuit_how_long_and_what_opened_it(self, clock: FakeClock) -> None:
        breaker = tripped(recovery_timeout=60)
        clock.now += 12.5
        with pytest.raises(CircuitOpenError) as rejected:
            breaker.call(must_not_be_called)
        error = rejected.value
        assert str(error) == "Circuit breaker is open"
        assert (error.name, error.retry_after) == ("api", 47.5)
        assert error.last_failure == "ConnectionError: the service is down"

    def test_each_one_is_new_and_its_traceback_does_not_grow(self) -> None:
        breaker, errors = tripped(), []
        for _ in range(3):
            with pytest.raises(CircuitOpenError) as rejected:
                breaker.call(must_not_be_called)
            errors.append(rejected.value)
        assert len(set(map(id, errors))) == 3
        assert len({len(traceback.extract_tb(error.__traceback__)) for error in errors}) == 1

    def test_it_survives_pickle_and_copy(self) -> None:
        error = CircuitOpenError("api", 2.5, "TimeoutError")
        for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert vars(copied) == vars(error)

    def test_it_is_not_retryable(self) -> None:
        """To wait for the circuit in a retry would defeat its purpose."""
        assert not hasattr(CircuitOpenError("api", 1), "retryable")


class TestReset:
    def test_it_closes_the_circuit_and_forgets_every_failure(self) -> None:
        breaker = tripped(threshold=2)
        breaker.reset()
        fail_times(breaker, 1)
        breaker.reset()
        fail_times(breaker, 1)
        assert state_of(breaker) == "closed"

    @pytest.mark.parametrize("ending", [succeed, fail, not_found])
    def test_a_probe_under_way_changes_nothing_afterwards(
        self, ending: Callable[[], object], clock: FakeClock
    ) -> None:
        breaker = tripped(threshold=1)
        clock.now += 60
        probe = Held(breaker, ending)
        breaker.reset()
        probe.end()
        assert state_of(breaker) == "closed"


class TestStateChangeHook:
    def test_each_change_is_reported_once(self, call: Call, clock: FakeClock) -> None:
        changes: list[tuple[str, str, str]] = []
        breaker = tripped(threshold=2, on_state_change=lambda *change: changes.append(change))
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
        assert [change[1:] for change in changes] == [
            ("closed", "open"),
            ("open", "half-open"),
            ("half-open", "open"),
            ("open", "half-open"),
            ("half-open", "closed"),
            ("closed", "open"),
            ("open", "closed"),
        ]
        assert {change[0] for change in changes} == {"api"}

    def test_it_may_use_the_breaker(self) -> None:
        """No lock is held while it runs."""
        seen: list[str] = []
        breaker = CircuitBreaker(
            "api", failure_threshold=1, on_state_change=lambda *_: seen.append(breaker.state)
        )
        fail_times(breaker, 1)
        breaker.reset()
        assert seen == ["open", "closed"]

    def test_what_it_raises_reaches_the_caller_and_is_not_a_failure_of_the_service(
        self, call: Call, clock: FakeClock
    ) -> None:
        def on_state_change(name: str, old: str, new: str) -> None:
            if new == "half-open":
                raise LookupError

        breaker = tripped(on_state_change=on_state_change)
        clock.now += 60
        with pytest.raises(LookupError):
            call(breaker, must_not_be_called)
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

    def test_call_rejects_an_awaitable_which_has_not_run(self) -> None:
        async def never_awaited() -> None:
            raise AssertionError

        with pytest.raises(TypeError, match="use call_async"):
            CircuitBreaker("api").call(never_awaited)  # type: ignore[unused-coroutine]


class TestArguments:
    @pytest.mark.parametrize("value", [0, -1, 2.5, None, "5", True])
    def test_a_wrong_threshold(self, value: Any) -> None:
        with pytest.raises(ValueError, match="failure_threshold must be an integer >= 1, got "):
            CircuitBreaker("api", failure_threshold=value)

    @pytest.mark.parametrize("value", [-1, math.nan, math.inf, None, "60", True])
    def test_a_wrong_recovery_timeout(self, value: Any) -> None:
        with pytest.raises(ValueError, match="recovery_timeout must be a number of seconds >= 0"):
            CircuitBreaker("api", recovery_timeout=value)

    def test_all_but_the_name_are_keyword_only(self) -> None:
        with pytest.raises(TypeError):
            CircuitBreaker("api", 5)  # type: ignore[call-arg]

    def test_the_repr_shows_the_state(self) -> None:
        assert repr(tripped(threshold=1)) == (
            "CircuitBreaker('api', failure_threshold=1, recovery_timeout=60, state='open')"
        )

    def test_the_wall_clock_is_not_used(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        breaker = tripped()
        monkeypatch.setattr(time, "time", lambda: 1e12)
        assert state_of(breaker) == "open"
