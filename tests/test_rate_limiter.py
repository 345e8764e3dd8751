"""The rules of lib/rate_limiter.py: the full rate, never more, and no slot wasted."""

from __future__ import annotations

import contextlib
import math
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import FakeClock
from lib.rate_limiter import RateLimiter
from support import StartTimes, run_in_threads, most_in_any_window


def test_the_first_request_starts_at_once(clock: FakeClock) -> None:
    assert RateLimiter(60).acquire() == 0
    assert clock.waits == []


def test_each_next_one_starts_an_interval_later(clock: FakeClock) -> None:
    limiter = RateLimiter(60)
    assert [limiter.acquire() for _ in range(4)] == pytest.approx([0, 1, 1, 1], rel=0.001)


@pytest.mark.parametrize("per_minute", [7, 60, 1000, 0.5, 12345.6])
def test_thousands_of_requests_get_the_full_rate_and_never_more(
    per_minute: float, clock: FakeClock
) -> None:
    """No padding, no drift: 99.9 % of the rate, and in no minute one request too many."""
    limiter, starts = RateLimiter(per_minute), []
    for _ in range(3000):
        limiter.acquire()
        starts.append(clock.now)
    shortest = 2999 * 60 / per_minute
    assert shortest * 0.999 <= starts[-1] - starts[0] <= shortest * 1.001
    assert most_in_any_window(starts, seconds=60) <= max(1, per_minute)


def test_idle_times_save_nothing_up_for_a_burst(clock: FakeClock) -> None:
    """Requests that come in bunches, around the minute's turn and else, at random."""
    random.seed(22)
    limiter, starts = RateLimiter(60), []
    for _ in range(200):
        clock.now += random.choice([0, 0.3, 0.999, 1, 1.5, 30, 59.9, 60, 300])
        for _ in range(random.randrange(1, 100)):
            limiter.acquire()
            starts.append(clock.now)
    assert most_in_any_window(starts, seconds=60) == 60
    assert most_in_any_window(starts, seconds=10) <= 11
    assert most_in_any_window(starts, seconds=0.9) == 1


def test_a_system_that_wakes_late_costs_no_rate(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sleep ends a bit late: were the next interval counted from there, it would add up."""
    random.seed(23)

    def late_sleep(seconds: float) -> None:
        clock.sleep(seconds + random.choice([0.0001, 0.0003, 0.001]))

    monkeypatch.setattr(time, "sleep", late_sleep)
    limiter, starts = RateLimiter(6000), []  # one every 10 ms
    for _ in range(30_000):
        limiter.acquire()
        starts.append(clock.now)
    share = 29_999 * 0.010 / (starts[-1] - starts[0])
    assert share > 0.99
    assert most_in_any_window(starts, seconds=60) <= 6000
    assert most_in_any_window(starts, seconds=1) <= 100


def test_a_long_stall_is_not_made_up_for_by_a_burst(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system slept, or the thread didn't get its turn: ten slots went by unused."""
    limiter, stalls = RateLimiter(60), [10.0]

    def sleep(seconds: float) -> None:
        clock.sleep(seconds + (stalls.pop() if stalls else 0))

    monkeypatch.setattr(time, "sleep", sleep)
    waits = [limiter.acquire() for _ in range(4)]
    assert waits == pytest.approx([0, 11, 1, 1], rel=0.001)


def test_what_acquire_returns_is_the_time_that_really_passed(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.sleep(seconds + 0.25))
    limiter = RateLimiter(60)
    limiter.acquire()
    asked = clock.now
    assert limiter.acquire() == pytest.approx(clock.now - asked)


@pytest.mark.skipif(sys.platform == "win32", reason="its clock may tick only every 16 ms")
def test_eight_threads_get_the_rate_and_never_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start times are those that the limiter itself saw, so that no thread blurs them.

    In short windows there is one more than the pace allows, where the first was woken late.
    """
    times = StartTimes(monkeypatch)
    limiter = RateLimiter(1500)  # one every 40 ms

    def start_two() -> list[float]:
        return [times.of(limiter.acquire) for _ in range(2)]

    starts = sorted(start for pair in run_in_threads(8, start_two) for start in pair)
    assert starts[-1] - starts[0] <= 15 * 0.040 / 0.9
    for seconds, allowed in [(60, 1500), (0.36, 10), (0.16, 5), (0.08, 3)]:
        assert most_in_any_window(starts, seconds) <= allowed


def test_reserve_books_slot_after_slot_and_never_waits(clock: FakeClock) -> None:
    limiter = RateLimiter(60)
    assert [limiter.reserve() for _ in range(4)] == pytest.approx([0, 1, 2, 3], rel=0.001)
    clock.now += 1.5
    assert limiter.reserve() == pytest.approx(2.5, rel=0.001)
    assert clock.waits == []


def test_no_slot_is_reserved_twice_by_threads(clock: FakeClock) -> None:
    limiter = RateLimiter(60)
    waits = run_in_threads(4, lambda: [limiter.reserve() for _ in range(25)], interleaved=True)
    booked = sorted(wait for of_one_thread in waits for wait in of_one_thread)
    assert booked == pytest.approx(list(range(100)), rel=0.001)


def test_no_slot_is_taken_twice_by_threads(clock: FakeClock) -> None:
    """Nobody has time to wait, so of four threads one starts, each second."""
    limiter, started = RateLimiter(60), list[float]()

    def try_to_start() -> None:
        with contextlib.suppress(TimeoutError):
            limiter.acquire(timeout=0)
            started.append(clock.now)

    for _ in range(3):
        run_in_threads(4, try_to_start, interleaved=True)
        clock.now += 1.01
    assert len(set(started)) == len(started) == 3


def test_reservations_and_waiting_callers_share_one_rate(clock: FakeClock) -> None:
    limiter = RateLimiter(60)
    limiter.reserve()
    limiter.reserve()
    assert limiter.acquire() == pytest.approx(2, rel=0.001)
    assert limiter.reserve() == pytest.approx(1, rel=0.001)


@pytest.mark.parametrize("timeout", [0, 0.5, 0.9])
def test_a_refused_caller_is_told_at_once_and_uses_no_slot(
    timeout: float, clock: FakeClock
) -> None:
    limiter = RateLimiter(60)
    limiter.acquire()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            limiter.acquire(timeout=timeout)
    assert clock.waits == []
    assert limiter.reserve() == pytest.approx(1, rel=0.001)


def test_a_free_slot_is_taken_even_with_no_time_to_wait(clock: FakeClock) -> None:
    assert RateLimiter(60).acquire(timeout=0) == 0


def test_a_timeout_that_is_long_enough_changes_nothing(clock: FakeClock) -> None:
    limiter = RateLimiter(60)
    limiter.acquire()
    assert limiter.acquire(timeout=1.1) == pytest.approx(1, rel=0.001)
    assert limiter.acquire(timeout=math.inf) == pytest.approx(1, rel=0.001)


def while_waiting(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, event: Callable[[], object]
) -> None:
    """Let ``event`` happen once, in the middle of the next wait."""
    events = [event]

    def sleep(seconds: float) -> None:
        clock.sleep(seconds / 2)
        if events:
            events.pop()()
        clock.sleep(seconds / 2)

    monkeypatch.setattr(time, "sleep", sleep)


def test_a_caller_that_times_out_after_waiting_uses_no_slot(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a slot that a pause then moves out of its reach."""
    limiter = RateLimiter(60)
    limiter.acquire()
    while_waiting(clock, monkeypatch, lambda: limiter.pause(9.5))
    with pytest.raises(TimeoutError):
        limiter.acquire(timeout=5)
    assert clock.now == pytest.approx(1001, rel=1e-6)
    assert limiter.reserve() == pytest.approx(9, rel=0.001)


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_caller_uses_no_slot(
    leaving: type[BaseException], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave() -> None:
        raise leaving

    limiter = RateLimiter(60)
    limiter.acquire()
    while_waiting(clock, monkeypatch, leave)
    with pytest.raises(leaving):
        limiter.acquire()
    assert limiter.reserve() == pytest.approx(0.5, rel=0.01)


def test_a_pause_holds_those_who_wait_already(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = RateLimiter(60)
    limiter.acquire()
    while_waiting(clock, monkeypatch, lambda: limiter.pause(10))
    assert limiter.acquire() == pytest.approx(10.5, rel=0.001)


def test_a_pause_holds_every_thread_and_leaves_no_burst_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four threads sleep, waiting for their turn, when the pause comes."""
    times = StartTimes(monkeypatch)
    limiter, asleep = RateLimiter(1200), threading.Semaphore(0)  # one every 50 ms
    sleep = time.sleep

    def announced_sleep(seconds: float) -> None:
        asleep.release()
        sleep(seconds)

    limiter.pause(0.2)
    monkeypatch.setattr(time, "sleep", announced_sleep)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(times.of, limiter.acquire) for _ in range(4)]
        for _ in range(4):
            assert asleep.acquire(timeout=30)
        held_until = time.monotonic() + 0.3
        limiter.pause(0.3)
        starts = sorted(future.result(timeout=30) for future in waiting)
    assert starts[0] >= held_until
    assert most_in_any_window(starts, seconds=0.05) <= 2  # one of them woken late
    assert most_in_any_window(starts, seconds=0.1) <= 3


def test_after_a_pause_the_pace_is_the_usual_one(clock: FakeClock) -> None:
    limiter = RateLimiter(60)
    limiter.acquire()
    limiter.pause(30)
    waits = [limiter.acquire() for _ in range(3)]
    assert waits == pytest.approx([30, 1, 1], rel=0.001)


def test_a_pause_never_shortens_what_is_booked_or_paused_already(clock: FakeClock) -> None:
    limiter = RateLimiter(60)
    limiter.pause(30)
    limiter.pause(5)
    limiter.pause(0)
    assert limiter.reserve() == pytest.approx(30)
    limiter.pause(2)
    assert limiter.reserve() == pytest.approx(31, rel=0.001)


def test_while_one_sleeps_another_can_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is not held during a wait."""
    limiter = RateLimiter(6000)
    limiter.pause(0.05)
    sleeping, wake = threading.Event(), threading.Event()
    sleep = time.sleep

    def held_sleep(seconds: float) -> None:
        sleeping.set()
        assert wake.wait(timeout=30)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", held_sleep)
    with ThreadPoolExecutor(2) as pool:
        sleeper = pool.submit(limiter.acquire)
        assert sleeping.wait(timeout=30)
        try:
            pool.submit(limiter.reserve).result(timeout=5)
        finally:
            wake.set()
        assert sleeper.result(timeout=30) > 0


def test_the_wall_clock_is_not_looked_at(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It jumps when it is set right; monotonic time doesn't."""
    jumping = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr(time, "time", lambda: next(jumping))
    limiter = RateLimiter(60)
    assert [limiter.acquire(timeout=2) for _ in range(3)] == pytest.approx([0, 1, 1], rel=0.001)


@pytest.mark.parametrize("per_minute", [0, -1, math.nan, math.inf, -math.inf])
def test_a_rate_that_cannot_be_right_is_refused(per_minute: float) -> None:
    with pytest.raises(ValueError, match="max_requests_per_minute"):
        RateLimiter(per_minute)


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan])
def test_a_time_that_cannot_be_right_is_refused_and_uses_no_slot(
    seconds: float, clock: FakeClock
) -> None:
    limiter = RateLimiter(60)
    with pytest.raises(ValueError, match="timeout"):
        limiter.acquire(timeout=seconds)
    with pytest.raises(ValueError, match="seconds"):
        limiter.pause(seconds)
    assert limiter.reserve() == 0


def test_an_endless_pause_is_refused(clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="seconds"):
        RateLimiter(60).pause(math.inf)
