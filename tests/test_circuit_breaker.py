"""The rules of lib/circuit_breaker.py: when it trips, whom it lets in, and what it says."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from conftest import FakeClock
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError
from support import run_in_threads


class RefusedError(Exception):
    """Says nothing about the service: the request was wrong, like a 400, 401 or 404."""

    retryable = False


def succeed() -> str:
    return "answer"


def fail() -> None:
    raise ConnectionError("the service is down")


def be_refused() -> None:
    raise RefusedError


def must_not_be_called() -> None:
    pytest.fail("the circuit is open, and yet the operation was called")


def fail_times(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError):
            breaker.call(fail)


def tripped(threshold: int = 3, recovery_timeout: float = 60) -> CircuitBreaker:
    breaker = CircuitBreaker("api", threshold, recovery_timeout)
    fail_times(breaker, threshold)
    return breaker


def state_of(breaker: CircuitBreaker) -> str:
    """Asked anew each time: mypy believes that a property stays what it was."""
    return breaker.state


def assert_refuses(breaker: CircuitBreaker) -> None:
    with pytest.raises(CircuitOpenError):
        breaker.call(must_not_be_called)


class Held:
    """A call through the breaker that is under way until ``end`` lets it finish."""

    def __init__(self, breaker: CircuitBreaker, ending: Callable[[], object]) -> None:
        self._ending, self._begun, self._may_end = ending, threading.Event(), threading.Event()
        self._future: Future[object] = Future()
        self._thread = threading.Thread(target=self._run, args=(breaker,))
        self._thread.start()
        assert self._begun.wait(timeout=30)

    def _run(self, breaker: CircuitBreaker) -> None:
        try:
            self._future.set_result(breaker.call(self._operation))
        except BaseException as error:
            self._future.set_exception(error)

    def _operation(self) -> object:
        self._begun.set()
        assert self._may_end.wait(timeout=30)
        return self._ending()

    def end(self) -> None:
        """Let it finish, with whatever it ends in."""
        self._may_end.set()
        self._thread.join()
        self._future.exception()


def test_a_closed_circuit_returns_the_answer_or_the_very_error() -> None:
    breaker, error = CircuitBreaker("api"), ConnectionError()

    def raise_it() -> None:
        raise error

    assert breaker.call(succeed) == "answer"
    with pytest.raises(ConnectionError) as raised:
        breaker.call(raise_it)
    assert raised.value is error
    assert raised.value.__context__ is None


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_that_many_failures_in_a_row_trip_it(threshold: int) -> None:
    """The call that trips it raises its own error; the next one isn't made."""
    breaker = CircuitBreaker("api", failure_threshold=threshold)
    fail_times(breaker, threshold - 1)
    assert state_of(breaker) == "closed"
    fail_times(breaker, 1)
    assert state_of(breaker) == "open"
    assert_refuses(breaker)


def test_a_success_resets_the_count() -> None:
    breaker = CircuitBreaker("api", failure_threshold=3)
    for _ in range(5):
        fail_times(breaker, 2)
        breaker.call(succeed)
    assert state_of(breaker) == "closed"


def test_an_error_that_says_nothing_does_not_count() -> None:
    breaker = CircuitBreaker("api", failure_threshold=2)
    for _ in range(5):
        with pytest.raises(RefusedError):
            breaker.call(be_refused)
    assert state_of(breaker) == "closed"
    fail_times(breaker, 1)
    assert state_of(breaker) == "closed"


@pytest.mark.parametrize("ending", [RefusedError, KeyboardInterrupt, SystemExit])
def test_an_error_that_says_nothing_does_not_reset_the_count(
    ending: type[BaseException],
) -> None:
    def end() -> None:
        raise ending

    breaker = CircuitBreaker("api", failure_threshold=2)
    fail_times(breaker, 1)
    with pytest.raises(ending):
        breaker.call(end)
    fail_times(breaker, 1)
    assert state_of(breaker) == "open"


def test_the_predicate_decides_what_counts() -> None:
    breaker = CircuitBreaker(
        "api", failure_threshold=1, counts_as_failure=lambda error: isinstance(error, RefusedError)
    )
    fail_times(breaker, 3)
    assert state_of(breaker) == "closed"
    with pytest.raises(RefusedError):
        breaker.call(be_refused)
    assert state_of(breaker) == "open"


def test_the_state_is_what_the_next_call_meets(clock: FakeClock) -> None:
    breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
    seen = [breaker.state]
    fail_times(breaker, 2)
    seen.append(breaker.state)
    clock.now += 59.9
    seen.append(breaker.state)
    clock.now += 0.1
    seen += [breaker.state, breaker.state]  # looking at it changes nothing
    breaker.call(succeed)
    seen.append(breaker.state)
    assert seen == ["closed", "open", "open", "half-open", "half-open", "closed"]


def test_while_a_probe_is_under_way_the_circuit_is_half_open_and_refuses(
    clock: FakeClock,
) -> None:
    breaker = tripped()
    clock.now += 60
    probe = Held(breaker, succeed)
    assert state_of(breaker) == "half-open"
    assert_refuses(breaker)
    probe.end()
    assert state_of(breaker) == "closed"


def test_after_a_good_probe_it_takes_the_whole_threshold_to_trip_again(clock: FakeClock) -> None:
    breaker = tripped(threshold=3)
    clock.now += 60
    breaker.call(succeed)
    fail_times(breaker, 2)
    assert state_of(breaker) == "closed"
    fail_times(breaker, 1)
    assert state_of(breaker) == "open"


def test_a_failed_probe_opens_the_circuit_for_the_whole_timeout_again(clock: FakeClock) -> None:
    breaker = tripped(threshold=3, recovery_timeout=60)
    clock.now += 75
    fail_times(breaker, 1)  # one is enough for a probe
    assert state_of(breaker) == "open"
    clock.now += 59
    assert_refuses(breaker)
    clock.now += 1
    assert breaker.call(succeed) == "answer"


def test_of_eight_threads_that_find_it_half_open_exactly_one_is_let_through() -> None:
    """The probe ends only when the seven others have been refused."""
    breaker = tripped(recovery_timeout=0)
    refusals = threading.Semaphore(0)
    probes = []

    def probe() -> str:
        probes.append(threading.get_ident())
        for _ in range(7):
            assert refusals.acquire(timeout=10)
        return "answer"

    def call() -> str:
        try:
            return breaker.call(probe)
        except CircuitOpenError:
            refusals.release()
            return "refused"

    assert sorted(run_in_threads(8, call)) == ["answer"] + ["refused"] * 7
    assert len(probes) == 1
    assert state_of(breaker) == "closed"


@pytest.mark.parametrize("ending", [RefusedError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_probe_that_dies_without_a_verdict_frees_its_place(
    ending: type[BaseException], clock: FakeClock
) -> None:
    def die() -> None:
        raise ending

    breaker = tripped()
    clock.now += 60
    for _ in range(3):
        with pytest.raises(ending):
            breaker.call(die)
        assert state_of(breaker) == "half-open"
    assert breaker.call(succeed) == "answer"
    assert state_of(breaker) == "closed"


def test_a_probe_whose_judge_fails_frees_its_place(clock: FakeClock) -> None:
    verdicts: list[Callable[[], bool]] = [lambda: True, lambda: 1 // 0 > 0]
    breaker = CircuitBreaker("api", 1, 60, counts_as_failure=lambda error: verdicts.pop(0)())
    fail_times(breaker, 1)
    clock.now += 60
    with pytest.raises(ZeroDivisionError):
        breaker.call(fail)
    assert state_of(breaker) == "half-open"
    assert breaker.call(succeed) == "answer"


@pytest.mark.parametrize("ending", [succeed, fail, be_refused])
def test_a_call_from_before_the_trip_changes_nothing_when_it_ends_while_open(
    ending: Callable[[], object], clock: FakeClock
) -> None:
    breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
    late = Held(breaker, ending)
    fail_times(breaker, 2)
    clock.now += 30
    late.end()
    assert state_of(breaker) == "open"
    with pytest.raises(CircuitOpenError) as refused:
        breaker.call(must_not_be_called)
    assert refused.value.retry_after == 30


@pytest.mark.parametrize("ending", [succeed, fail, be_refused])
def test_a_call_from_before_the_trip_is_no_probe(
    ending: Callable[[], object], clock: FakeClock
) -> None:
    """It ends while the circuit is half-open, before and during the real probe."""
    breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
    before, during = Held(breaker, ending), Held(breaker, ending)
    fail_times(breaker, 2)
    clock.now += 60
    before.end()
    assert state_of(breaker) == "half-open"
    probe = Held(breaker, succeed)
    during.end()
    assert state_of(breaker) == "half-open"
    assert_refuses(breaker)  # the place is still the probe's
    probe.end()
    assert state_of(breaker) == "closed"


def test_a_failure_from_before_the_trip_does_not_count_once_it_is_closed_again(
    clock: FakeClock,
) -> None:
    breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
    late = [Held(breaker, fail) for _ in range(3)]
    fail_times(breaker, 2)
    clock.now += 60
    breaker.call(succeed)
    for call in late:
        call.end()
    assert state_of(breaker) == "closed"
    fail_times(breaker, 1)
    assert state_of(breaker) == "closed"


def test_a_success_from_before_the_trip_does_not_reset_the_count_once_it_is_closed_again(
    clock: FakeClock,
) -> None:
    breaker = CircuitBreaker("api", failure_threshold=2, recovery_timeout=60)
    late = Held(breaker, succeed)
    fail_times(breaker, 2)
    clock.now += 60
    breaker.call(succeed)
    fail_times(breaker, 1)
    late.end()
    fail_times(breaker, 1)
    assert state_of(breaker) == "open"


def test_eight_calls_are_under_way_at_once() -> None:
    """None waits for another: each ends only when all of them have begun."""
    breaker, all_begun = CircuitBreaker("api"), threading.Barrier(8)
    places = run_in_threads(8, lambda: breaker.call(lambda: all_begun.wait(timeout=10)))
    assert sorted(places) == list(range(8))


def test_the_judge_may_use_the_breaker_itself() -> None:
    """The lock is not held while the predicate runs: it would wait for itself for ever."""
    seen: list[str] = []

    def counts_as_failure(error: Exception) -> bool:
        seen.append(breaker.state)
        return True

    breaker = CircuitBreaker("api", counts_as_failure=counts_as_failure)
    judged = threading.Thread(target=fail_times, args=(breaker, 1), daemon=True)
    judged.start()
    judged.join(timeout=10)
    assert seen == ["closed"]


def test_a_call_may_use_the_breaker_itself() -> None:
    breaker = CircuitBreaker("api")
    assert breaker.call(lambda: (breaker.state, breaker.call(succeed))) == ("closed", "answer")


def test_failures_of_many_threads_are_all_counted() -> None:
    breaker = CircuitBreaker("api", failure_threshold=4 * 25)
    run_in_threads(4, lambda: fail_times(breaker, 25), interleaved=True)
    assert state_of(breaker) == "open"


def test_however_the_threads_interleave_one_probe_is_let_through(clock: FakeClock) -> None:
    breaker, probes = tripped(recovery_timeout=60), list[int]()
    clock.now += 60

    def fail_as_a_probe() -> None:
        probes.append(threading.get_ident())
        raise ConnectionError  # it opens the circuit again, so that nobody else is due

    def call() -> None:
        with contextlib.suppress(ConnectionError, CircuitOpenError):
            breaker.call(fail_as_a_probe)

    run_in_threads(4, call, interleaved=True)
    assert len(probes) == 1
    assert state_of(breaker) == "open"


def test_however_the_threads_interleave_a_tripped_circuit_stays_open(clock: FakeClock) -> None:
    """A success that was let in before the trip, or while it happens, closes nothing."""

    def trip_while_others_succeed(breaker: CircuitBreaker) -> None:
        def fail_once() -> None:
            fail_times(breaker, 1)

        def succeed_often() -> None:
            with contextlib.suppress(CircuitOpenError):
                for _ in range(20):
                    breaker.call(succeed)

        roles = iter([fail_once, succeed_often, succeed_often])
        run_in_threads(3, lambda: next(roles)(), interleaved=True)

    for _ in range(40):
        breaker = CircuitBreaker("api", failure_threshold=1)
        trip_while_others_succeed(breaker)
        assert state_of(breaker) == "open"


def test_the_refusal_says_so_and_how_long_it_will_last(clock: FakeClock) -> None:
    breaker = tripped(recovery_timeout=60)
    clock.now += 12.5
    with pytest.raises(CircuitOpenError, match=r"^Circuit breaker is open$") as refused:
        breaker.call(must_not_be_called)
    assert (refused.value.name, refused.value.retry_after) == ("api", 47.5)
    assert not hasattr(refused.value, "retryable")  # to wait for it would defeat its purpose


def test_a_refusal_during_a_probe_never_asks_for_a_negative_wait(clock: FakeClock) -> None:
    breaker = tripped(recovery_timeout=60)
    clock.now += 100
    probe = Held(breaker, succeed)
    with pytest.raises(CircuitOpenError) as refused:
        breaker.call(must_not_be_called)
    assert refused.value.retry_after == 0
    probe.end()


def test_every_refusal_is_an_error_of_its_own_whose_traceback_does_not_grow() -> None:
    breaker, refusals = tripped(), []
    for _ in range(50):
        with pytest.raises(CircuitOpenError) as refused:
            breaker.call(must_not_be_called)
        refusals.append(refused.value)
    assert len(set(map(id, refusals))) == 50
    assert {len(traceback.extract_tb(error.__traceback__)) for error in refusals} == {3}
    assert all(error.__context__ is None for error in refusals)


def test_a_refusal_survives_pickle_and_copy() -> None:
    error = CircuitOpenError("api", 12.5)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(twin), twin.name, twin.retry_after) == (str(error), "api", 12.5)


def test_a_recovery_timeout_of_zero_is_no_default(clock: FakeClock) -> None:
    """It trips, and the very next call is the probe."""
    breaker = tripped(recovery_timeout=0)
    assert state_of(breaker) == "half-open"
    fail_times(breaker, 1)
    assert state_of(breaker) == "half-open"
    assert breaker.call(succeed) == "answer"
    assert state_of(breaker) == "closed"


def test_reset_closes_the_circuit_and_forgets_every_failure() -> None:
    breaker = tripped(threshold=2)
    breaker.reset()
    assert state_of(breaker) == "closed"
    fail_times(breaker, 1)
    breaker.reset()
    fail_times(breaker, 1)
    assert state_of(breaker) == "closed"


def test_reset_forgets_the_calls_under_way_too(clock: FakeClock) -> None:
    breaker = CircuitBreaker("api", failure_threshold=1)
    late = Held(breaker, fail)
    breaker.reset()
    late.end()
    assert state_of(breaker) == "closed"


@pytest.mark.parametrize("ending", [succeed, fail, be_refused])
def test_reset_during_a_probe_closes_the_circuit_and_the_probe_changes_nothing(
    ending: Callable[[], object], clock: FakeClock
) -> None:
    breaker = tripped(threshold=2)
    clock.now += 60
    probe = Held(breaker, ending)
    breaker.reset()
    assert breaker.call(succeed) == "answer"
    fail_times(breaker, 1)
    probe.end()
    assert state_of(breaker) == "closed"
    fail_times(breaker, 1)
    assert state_of(breaker) == "open"


def test_the_wall_clock_is_not_looked_at(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It jumps when it is set right; monotonic time doesn't."""
    jumping = itertools.count(0, 10_000_000)
    monkeypatch.setattr(time, "time", lambda: next(jumping))
    breaker = tripped()
    assert state_of(breaker) == "open"
    clock.now += 60
    assert state_of(breaker) == "half-open"


def test_as_a_decorator_it_guards_functions_and_methods() -> None:
    breaker = CircuitBreaker("api", failure_threshold=1)

    class Service:
        @breaker
        def add(self, first: int, *, second: int) -> int:
            return first + second

    @breaker
    def ask(prompt: str) -> str:
        raise ConnectionError(prompt)

    assert Service().add(1, second=2) == 3
    with pytest.raises(ConnectionError, match="Hello!"):
        ask("Hello!")
    with pytest.raises(CircuitOpenError):
        ask("Hello!")
    with pytest.raises(CircuitOpenError):
        Service().add(1, second=2)


def test_a_decorated_function_keeps_its_name_its_text_and_its_signature() -> None:
    @CircuitBreaker("api")
    def ask(prompt: str, *, patience: float = 1.5) -> str:
        """Ask politely."""
        return prompt

    assert (ask.__name__, ask.__doc__) == ("ask", "Ask politely.")
    assert str(inspect.signature(ask)) == "(prompt: 'str', *, patience: 'float' = 1.5) -> 'str'"


def test_a_generator_function_is_refused_as_it_only_starts_when_read() -> None:
    with pytest.raises(TypeError, match="only starts later"):

        @CircuitBreaker("api")
        def stream() -> Iterator[str]:
            yield "never read"


def test_an_async_function_is_refused_as_it_only_starts_when_awaited() -> None:
    async def ask() -> str:
        return "answer"

    with pytest.raises(TypeError, match="async"):
        CircuitBreaker("api")(ask)


@pytest.mark.parametrize(
    "wrong",
    [
        {"failure_threshold": 0},
        {"failure_threshold": -1},
        {"failure_threshold": 2.5},
        {"failure_threshold": math.nan},
        {"failure_threshold": None},
        {"recovery_timeout": -1},
        {"recovery_timeout": -0.001},
        {"recovery_timeout": math.nan},
        {"recovery_timeout": math.inf},
    ],
    ids=str,
)
def test_a_number_that_cannot_be_right_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        CircuitBreaker("api", **wrong)
