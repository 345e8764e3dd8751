"""The rules of lib/retry.py: what is tried again, after which wait, and what is raised."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from conftest import FakeClock
from lib.retry import Retrier
from support import run_in_threads


class BusyError(Exception):
    """An error that says of itself that trying again may help, and maybe when."""

    retryable = True

    def __init__(self, retry_after: object = None) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


class Failing:
    """An operation that raises the given errors, one a call, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = errors
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= len(self.errors):
            raise self.errors[self.calls - 1]
        return "answer"


def always_busy() -> None:
    raise BusyError


def test_an_answer_at_once_is_returned_without_a_wait(clock: FakeClock) -> None:
    operation = Failing()
    assert Retrier().call(operation) == "answer"
    assert (operation.calls, clock.waits) == (1, [])


@pytest.mark.parametrize("answer", [None, False, 0, "", [], BusyError()])
def test_what_the_operation_returns_is_never_judged(answer: object) -> None:
    assert Retrier().call(lambda: answer) is answer


def test_waits_double_up_to_the_cap(clock: FakeClock) -> None:
    retrier = Retrier(max_attempts=8, base_delay=1, max_delay=30, jitter=False)
    assert retrier.call(Failing(*[BusyError() for _ in range(7)])) == "answer"
    assert clock.waits == [1, 2, 4, 8, 16, 30, 30]


def test_jitter_spreads_each_wait_from_nothing_to_its_ceiling(clock: FakeClock) -> None:
    random.seed(20)
    retrier = Retrier(max_attempts=3, base_delay=4, jitter=True)
    for _ in range(400):
        retrier.call(Failing(BusyError(), BusyError()))
    for waits, ceiling in [(clock.waits[::2], 4), (clock.waits[1::2], 8)]:
        assert 0 <= min(waits) < 0.05 * ceiling
        assert 0.95 * ceiling < max(waits) <= ceiling
        assert sum(waits) / len(waits) == pytest.approx(ceiling / 2, rel=0.1)


def test_jitter_still_spreads_the_waits_at_the_cap(clock: FakeClock) -> None:
    """Jitter that is added before the cap vanishes there: all clients come back together."""
    random.seed(21)
    with pytest.raises(BusyError):
        Retrier(max_attempts=1000, base_delay=1, max_delay=30).call(always_busy)
    at_the_cap = clock.waits[5:]
    assert len(set(at_the_cap)) == len(at_the_cap)
    assert min(at_the_cap) < 1
    assert 29 < max(at_the_cap) <= 30
    assert sum(at_the_cap) / len(at_the_cap) == pytest.approx(15, rel=0.1)


@pytest.mark.parametrize("jitter", [True, False])
def test_two_thousand_attempts_do_not_overflow(jitter: bool, clock: FakeClock) -> None:
    with pytest.raises(BusyError):
        Retrier(max_attempts=2000, jitter=jitter).call(always_busy)
    assert len(clock.waits) == 1999
    assert max(clock.waits) <= 30


@pytest.mark.parametrize("max_attempts", [1, 2, 5])
def test_the_last_failure_is_not_waited_for(max_attempts: int, clock: FakeClock) -> None:
    operation = Failing(*[BusyError() for _ in range(10)])
    with pytest.raises(BusyError):
        Retrier(max_attempts=max_attempts).call(operation)
    assert (operation.calls, len(clock.waits)) == (max_attempts, max_attempts - 1)


@pytest.mark.parametrize("asked_for", [0, 0.25, 7, 60, 60.0])
def test_retry_after_is_waited_for_instead_of_the_backoff(
    asked_for: float, clock: FakeClock
) -> None:
    Retrier(max_retry_after=60).call(Failing(BusyError(asked_for), BusyError(asked_for)))
    assert clock.waits == [asked_for, asked_for]


@pytest.mark.parametrize("asked_for", [60.001, 86400, 1e300, 10**400])
def test_a_retry_after_that_is_too_long_raises_the_error_at_once(
    asked_for: float, clock: FakeClock
) -> None:
    operation = Failing(error := BusyError(asked_for))
    with pytest.raises(BusyError) as raised:
        Retrier(max_retry_after=60).call(operation)
    assert raised.value is error
    assert (operation.calls, clock.waits) == (1, [])


@pytest.mark.parametrize(
    "asked_for",
    [None, math.inf, -math.inf, math.nan, -1, -0.5, "5", b"5", True, False, [5], {}],
    ids=repr,
)
def test_a_retry_after_that_is_no_number_of_seconds_counts_as_absent(
    asked_for: object, clock: FakeClock
) -> None:
    assert Retrier(base_delay=3, jitter=False).call(Failing(BusyError(asked_for))) == "answer"
    assert clock.waits == [3]


def test_a_wait_that_would_end_after_the_deadline_is_not_begun(clock: FakeClock) -> None:
    """1 s and 2 s fit into 6.9 s, the next 4 s would not."""
    operation = Failing(*[BusyError() for _ in range(10)])
    with pytest.raises(BusyError):
        Retrier(max_attempts=10, jitter=False, deadline=6.9).call(operation)
    assert (operation.calls, clock.waits) == (3, [1, 2])


def test_a_wait_may_end_at_the_deadline(clock: FakeClock) -> None:
    with pytest.raises(BusyError):
        Retrier(max_attempts=10, jitter=False, deadline=7).call(always_busy)
    assert clock.waits == [1, 2, 4]


def test_the_deadline_counts_from_the_start_of_the_call_and_includes_the_attempts(
    clock: FakeClock,
) -> None:
    retrier = Retrier(max_attempts=10, jitter=False, deadline=7)
    clock.now += 1000  # what passed before the call is nothing to it
    calls = 0

    def slow() -> None:
        nonlocal calls
        calls += 1
        clock.now += 2.5
        raise BusyError

    with pytest.raises(BusyError):
        retrier.call(slow)
    assert (calls, clock.waits) == (2, [1])


def test_a_retry_after_beyond_the_deadline_raises_the_error_at_once(clock: FakeClock) -> None:
    operation = Failing(BusyError(5))
    with pytest.raises(BusyError):
        Retrier(deadline=4).call(operation)
    assert (operation.calls, clock.waits) == (1, [])


def test_a_deadline_of_zero_means_no_wait_at_all_and_not_no_deadline(clock: FakeClock) -> None:
    operation = Failing(BusyError())
    with pytest.raises(BusyError):
        Retrier(jitter=False, deadline=0).call(operation)
    assert (operation.calls, clock.waits) == (1, [])


def test_the_wall_clock_is_not_looked_at(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It jumps when it is set right; monotonic time doesn't."""
    jumping = itertools.count(0, 10_000_000)
    monkeypatch.setattr(time, "time", lambda: next(jumping))
    Retrier(jitter=False, deadline=10).call(Failing(BusyError(), BusyError()))
    assert clock.waits == [1, 2]


@pytest.mark.parametrize(
    "error", [ValueError("no attribute"), type("Refused", (Exception,), {"retryable": False})()]
)
def test_an_error_that_is_not_marked_retryable_is_raised_at_once(
    error: Exception, clock: FakeClock
) -> None:
    operation = Failing(error)
    with pytest.raises(type(error)) as raised:
        Retrier().call(operation)
    assert raised.value is error
    assert (operation.calls, clock.waits) == (1, [])


LEAVING = [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]


@pytest.mark.parametrize("leaving", LEAVING)
def test_ctrl_c_in_an_attempt_passes_through_even_if_marked_retryable(
    leaving: type[BaseException], clock: FakeClock
) -> None:
    error = type("Leaving", (leaving,), {"retryable": True})()
    operation = Failing(error)
    gave_up: list[object] = []
    retrier = Retrier(on_give_up=lambda *event: gave_up.append(event))
    with pytest.raises(leaving) as raised:
        retrier.call(operation)
    assert raised.value is error
    assert (operation.calls, clock.waits, gave_up) == (1, [], [])
    assert retrier.call(Failing()) == "answer"


@pytest.mark.parametrize("leaving", LEAVING)
def test_ctrl_c_in_a_wait_passes_through(
    leaving: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise leaving

    monkeypatch.setattr(time, "sleep", interrupted)
    operation, retrier = Failing(BusyError()), Retrier()
    with pytest.raises(leaving):
        retrier.call(operation)
    assert operation.calls == 1
    assert retrier.call(Failing()) == "answer"


def test_what_is_raised_is_the_very_error_of_the_last_attempt(clock: FakeClock) -> None:
    errors = [BusyError(), BusyError(), BusyError()]
    with pytest.raises(BusyError) as raised:
        Retrier(max_attempts=3).call(Failing(*errors))
    assert raised.value is errors[2]
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("attempts", [1, 2, 50])
def test_the_error_drags_no_earlier_attempts_along(attempts: int, clock: FakeClock) -> None:
    """Neither its context nor its traceback grows with the attempts."""
    with pytest.raises(BusyError) as raised:
        Retrier(max_attempts=attempts).call(always_busy)
    assert raised.value.__context__ is None
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert [frame.name for frame in frames[1:]] == ["call", "always_busy"]


def test_the_attempts_of_threads_that_share_a_retrier_are_their_own() -> None:
    """The threads go through their attempts in step: a shared count would end them early."""
    threads, attempts = 8, 5
    in_step = threading.Barrier(threads)
    seen_by_hooks: list[int] = []
    retrier = Retrier(max_attempts=attempts, base_delay=0, before_attempt=seen_by_hooks.append)

    def fail_four_times() -> str:
        calls = 0

        def operation() -> str:
            nonlocal calls
            in_step.wait(timeout=30)
            calls += 1
            if calls < attempts:
                raise BusyError
            return f"answer {calls}"

        return retrier.call(operation)

    assert run_in_threads(threads, fail_four_times) == ["answer 5"] * threads
    assert sorted(seen_by_hooks) == sorted([1, 2, 3, 4, 5] * threads)


class Hooks:
    """Notes what every hook of a Retrier is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def of(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.events.append((name, *arguments))

    def retrier(self, **settings: Any) -> Retrier:
        for name in ("before_attempt", "before_wait", "on_recovery", "on_give_up"):
            settings[name] = self.of(name)
        return Retrier(jitter=False, **settings)


def test_the_hooks_tell_of_a_recovery(clock: FakeClock) -> None:
    hooks, errors = Hooks(), [BusyError(), BusyError(7)]
    hooks.retrier().call(Failing(*errors))
    assert hooks.events == [
        ("before_attempt", 1),
        ("before_wait", errors[0], 1, 1.0),
        ("before_attempt", 2),
        ("before_wait", errors[1], 2, 7.0),
        ("before_attempt", 3),
        ("on_recovery", 3),
    ]


def test_a_success_at_once_is_no_recovery(clock: FakeClock) -> None:
    hooks = Hooks()
    hooks.retrier().call(Failing())
    assert hooks.events == [("before_attempt", 1)]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_attempts": 1}, BusyError()),
        ({}, ValueError()),
        ({}, BusyError(61)),
        ({"deadline": 0.5}, BusyError()),
    ],
    ids=["last attempt", "not retryable", "Retry-After too long", "deadline"],
)
def test_every_way_of_giving_up_is_told_once(
    settings: dict[str, Any], error: Exception, clock: FakeClock
) -> None:
    hooks = Hooks()
    with pytest.raises(type(error)):
        hooks.retrier(**settings).call(Failing(error))
    assert hooks.events == [("before_attempt", 1), ("on_give_up", error, 1)]


def test_a_wait_is_announced_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: events.append("sleep"))
    Retrier(before_wait=lambda *_: events.append("before_wait")).call(Failing(BusyError()))
    assert events == ["before_wait", "sleep"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"max_attempts": 2.0},
        {"max_attempts": math.inf},
        {"max_attempts": None},
        *(
            {name: value}
            for name in ("base_delay", "max_delay", "max_retry_after", "deadline")
            for value in (-1, -0.001, math.nan, math.inf, -math.inf)
        ),
    ],
    ids=str,
)
def test_a_number_that_cannot_be_right_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Retrier(**wrong)


def test_zero_delays_are_allowed(clock: FakeClock) -> None:
    assert Retrier(base_delay=0).call(Failing(BusyError())) == "answer"
    assert clock.waits == [0]
