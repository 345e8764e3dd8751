"""lib/rate_limiter.py: 98.5 % of the limit, first come, first served, no slot wasted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any
from unittest.mock import Mock, patch

import pytest

from conftest import FakeClock
from examples.simulations.virtual_time import simulate
from lib.circuit_breaker import is_service_failure
from lib.rate_limiter import RateLimiter, RateLimitTimeoutError
from lib.retry import is_retryable
from support import (
    Method,
    StartTimes,
    in_forked_child,
    interrupt_everywhere,
    most_in_any_window,
    run_in_threads,
)

INTERVAL = 1 / 0.985  # seconds between two starts at 60 per minute


@pytest.fixture
def gate(clock: FakeClock) -> threading.Event:
    """The callers of ``join_line`` stand in line, and go on when it is set; time is faked."""
    return threading.Event()


def join_line(
    pool: ThreadPoolExecutor, limiter: RateLimiter, gate: threading.Event, timeout: float = math.inf
) -> Future[float]:
    """Let a thread call ``acquire``, and return when it is in line."""
    in_line = threading.Event()

    def stand(wait: float) -> None:
        in_line.set()
        gate.wait(timeout=10)

    future = pool.submit(limiter.acquire, timeout, on_wait=stand)
    assert in_line.wait(timeout=10)
    return future


def paused_limiter() -> RateLimiter:
    """Return a limiter of 60 per minute whose next start is in a second."""
    limiter = RateLimiter(60)
    limiter.pause(1)
    return limiter


def next_wait(limiter: RateLimiter) -> float:
    """Return how long the next caller would wait; it takes no slot."""
    waits = [0.0]

    def leave(wait: float) -> None:
        waits.append(wait)
        raise InterruptedError

    with contextlib.suppress(InterruptedError):
        limiter.acquire(on_wait=leave)
    return waits[-1]


def seconds(*values: float) -> Any:
    return pytest.approx(list(values), abs=1e-6)


class TestPace:
    def test_starts_are_evenly_spaced(self, acquire: Method, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        assert [acquire(limiter) for _ in range(4)] == seconds(0, INTERVAL, INTERVAL, INTERVAL)

    @pytest.mark.parametrize("per_minute", [0.5, 6, 60, 600, 12345.6])
    def test_late_starts_cost_no_rate_and_fill_no_minute(
        self, per_minute: float, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chance, interval = random.Random(23), INTERVAL * 60 / per_minute
        lateness = [0.0, min(0.007, 0.5 * interval), min(0.9, 0.9 * interval)]
        monkeypatch.setattr(time, "sleep", lambda s: clock.sleep(s + chance.choice(lateness)))
        limiter = RateLimiter(per_minute)
        starts = [clock.now for _ in range(3000) if limiter.acquire() >= 0]
        assert starts[-1] - starts[0] == pytest.approx(2999 * interval, rel=0.001)
        assert most_in_any_window(starts, seconds=60) <= max(1, per_minute)

    @pytest.mark.parametrize(("per_minute", "stall"), [(60, 10), (60, 1), (600, 0.2)])
    def test_a_stall_is_not_made_up_for(
        self, per_minute: int, stall: float, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limiter, interval = RateLimiter(per_minute), INTERVAL * 60 / per_minute
        stalls = itertools.chain([stall], itertools.repeat(0.0))
        monkeypatch.setattr(time, "sleep", lambda s: clock.sleep(s + next(stalls)))
        waits = [limiter.acquire() for _ in range(4)]
        assert waits == seconds(0, interval + stall, interval, interval)

    def test_idle_time_is_not_saved_up_for_a_burst(self, clock: FakeClock) -> None:
        chance, limiter, starts = random.Random(22), RateLimiter(60), []
        for _ in range(30):
            clock.now += chance.choice([0, 0.3, 0.999, 1, 1.5, 30, 59.9, 60, 300])
            for _ in range(chance.randrange(1, 100)):
                limiter.acquire()
                starts.append(clock.now)
        assert most_in_any_window(starts, seconds=INTERVAL) == 1

    def test_it_can_be_changed(self, acquire: Method, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        limiter.acquire()
        limiter.max_requests_per_minute = 6000
        assert [acquire(limiter) for _ in range(2)] == seconds(INTERVAL, INTERVAL / 100)
        assert repr(limiter) == "RateLimiter(6000, waiting=0)"

    def test_eight_threads_get_it_and_never_more(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times, limiter, begin = StartTimes(monkeypatch), RateLimiter(60), clock.now
        pairs = run_in_threads(
            8, lambda: [times.of(limiter.acquire) - begin for _ in range(2)], interleaved=True
        )
        starts = sorted(start for pair in pairs for start in pair)
        assert starts == seconds(*(slot * INTERVAL for slot in range(16)))


class TestFirstComeFirstServed:
    def test_threads_start_in_the_order_in_which_they_came(self, gate: threading.Event) -> None:
        """Even if a pause holds them all."""
        limiter = paused_limiter()
        with ThreadPoolExecutor(20) as pool:
            waits = [join_line(pool, limiter, gate) for _ in range(20)]
            limiter.pause(30)
            gate.set()
        assert [wait.result() for wait in waits] == seconds(*(30 + n * INTERVAL for n in range(20)))

    def test_hundreds_of_tasks_start_in_the_order_in_which_they_came(self) -> None:
        limiter, order, threads = RateLimiter(60), list[int](), threading.active_count()

        async def start(number: int) -> None:
            await limiter.acquire_async()
            order.append(number)

        async def main() -> None:
            await asyncio.gather(*[start(number) for number in range(300)])
            assert threading.active_count() == threads
            assert asyncio.all_tasks() == {asyncio.current_task()}

        simulate(main, seed=1)
        assert order == list(range(300))

    def test_threads_and_tasks_of_two_event_loops_share_one_line(self) -> None:
        limiter = RateLimiter(6000)

        def thread() -> None:
            for _ in range(3):
                limiter.acquire()

        async def tasks() -> None:
            await asyncio.gather(*[limiter.acquire_async() for _ in range(3)])

        def run_tasks() -> None:
            asyncio.run(tasks())

        jobs, started_at = iter([thread, run_tasks, run_tasks]), time.monotonic()
        run_in_threads(3, lambda: next(jobs)(), interleaved=True)
        assert time.monotonic() - started_at >= 7 * 0.01

    def test_a_start_costs_the_same_however_many_wait(
        self, gate: threading.Event, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A caller reads the clock on arrival, when it is first, and when its slot has come."""
        readings, limiter = list[float](), paused_limiter()

        def monotonic() -> float:
            readings.append(clock.now)
            return clock.now

        monkeypatch.setattr(time, "monotonic", monotonic)
        with ThreadPoolExecutor(40) as pool:
            for _ in range(40):
                join_line(pool, limiter, gate)
            gate.set()
        assert len(readings) <= 5 * 40


class TestOnWait:
    def test_it_is_told_once_before_the_wait(self, acquire: Method, clock: FakeClock) -> None:
        limiter, told = RateLimiter(60), list[float]()
        for _ in range(3):
            acquire(limiter, on_wait=lambda wait: told.extend([clock.now - 1000, wait]))
        assert told == seconds(0, INTERVAL, INTERVAL, INTERVAL)

    def test_it_must_be_a_plain_function(self, acquire: Method) -> None:
        class AsyncHook:
            async def __call__(self, wait: float) -> None: ...

        for hook in (AsyncHook().__call__, AsyncHook()):
            with pytest.raises(TypeError, match="on_wait must be a plain function, got an async"):
                acquire(RateLimiter(60), on_wait=hook)
        with pytest.raises(ValueError, match="on_wait must be a function, got 'print'"):
            acquire(RateLimiter(60), on_wait="print")


class TestTimeout:
    @pytest.mark.parametrize("timeout", [0, 1.01])
    def test_it_is_raised_at_once_and_uses_no_slot(
        self, acquire: Method, timeout: float, clock: FakeClock
    ) -> None:
        limiter = RateLimiter(60)
        limiter.acquire(timeout=0)
        for _ in range(3):
            with pytest.raises(RateLimitTimeoutError, match=f"within {timeout:g} s"):
                acquire(limiter, timeout)
        assert clock.waits == []
        assert [next_wait(limiter) for _ in range(2)] == seconds(INTERVAL, INTERVAL)

    def test_a_slot_that_comes_in_time(self, acquire: Method, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        waits = [acquire(limiter, timeout) for timeout in (0, 1.02, math.inf)]
        assert waits == seconds(0, INTERVAL, INTERVAL)

    def test_it_is_raised_at_once_behind_others_too(self, gate: threading.Event) -> None:
        """The callers ahead count for it, and for ``on_wait``."""
        limiter = paused_limiter()
        with ThreadPoolExecutor(4) as pool:
            for _ in range(2):
                join_line(pool, limiter, gate)
            assert next_wait(limiter) == pytest.approx(1 + 2 * INTERVAL)
            with pytest.raises(RateLimitTimeoutError):
                limiter.acquire(3)
            last = join_line(pool, limiter, gate, timeout=3.1)
            gate.set()
        assert last.result() == pytest.approx(1 + 2 * INTERVAL)

    def test_a_pause_can_move_the_slot_out_of_reach(
        self, acquire: Method, clock: FakeClock
    ) -> None:
        limiter = RateLimiter(60)
        limiter.acquire()
        with pytest.raises(RateLimitTimeoutError):
            acquire(limiter, 5, on_wait=lambda wait: limiter.pause(9.5))
        assert next_wait(limiter) == pytest.approx(9.5)

    def test_a_thread_behind_the_first_gives_up_in_time_too(
        self, gate: threading.Event, clock: FakeClock
    ) -> None:
        limiter = RateLimiter(6000)
        limiter.acquire()
        with ThreadPoolExecutor(1) as pool:
            first = join_line(pool, limiter, gate)
            with pytest.raises(RateLimitTimeoutError):
                limiter.acquire(0.1, on_wait=lambda wait: clock.sleep(0.1))
            assert not first.done()
            gate.set()

    def test_a_task_behind_the_first_gives_up_in_time_too(self) -> None:
        async def main() -> None:
            limiter = RateLimiter(6000)
            await limiter.acquire_async()
            first = asyncio.create_task(limiter.acquire_async())
            await asyncio.sleep(0)
            with pytest.raises(RateLimitTimeoutError):
                await limiter.acquire_async(0.1, on_wait=lambda wait: limiter.pause(60))
            assert time.monotonic() == pytest.approx(0.1)
            assert not first.done()

        simulate(main, seed=1)

    def test_its_error_is_neither_retried_nor_a_failure_of_the_service(self) -> None:
        error = RateLimitTimeoutError()
        assert isinstance(error, TimeoutError)
        assert not is_retryable(error)
        assert not is_service_failure(error)
        assert not hasattr(error, "status_code")


class TestGivingUp:
    def test_cancelled_tasks_leave_the_line_and_the_others_move_up(self) -> None:
        limiter = RateLimiter(60)

        async def main() -> None:
            await limiter.acquire_async()
            tasks = [asyncio.create_task(limiter.acquire_async()) for _ in range(41)]
            await asyncio.sleep(0.01)
            for task in tasks[:40]:  # the first in line among them
                task.cancel()
            assert await tasks[40] == pytest.approx(INTERVAL)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        simulate(main, seed=1)
        assert repr(limiter) == "RateLimiter(60, waiting=0)"

    @pytest.mark.parametrize("step", [1, -1])
    def test_tasks_that_are_cancelled_together_are_not_woken_one_by_one(self, step: int) -> None:
        """In the order of their arrival or in reverse; thousands would block the event loop."""
        limiter = RateLimiter(1)

        async def main() -> None:
            await limiter.acquire_async()
            tasks = [asyncio.create_task(limiter.acquire_async()) for _ in range(100)]
            await asyncio.sleep(0)
            for task in tasks[::step]:
                task.cancel()
            loop = asyncio.get_running_loop()
            wake_up = Mock(wraps=loop.call_soon_threadsafe)
            with patch.object(loop, "call_soon_threadsafe", wake_up):
                await asyncio.wait(tasks)
            assert wake_up.call_count <= 1

        asyncio.run(main())
        assert repr(limiter) == "RateLimiter(1, waiting=0)"

    def test_ctrl_c_anywhere_leaves_nobody_in_line_and_no_lock_held(self, clock: FakeClock) -> None:
        """A caller that stands behind the interrupted one gets its turn."""
        limiter, points, behind, gate = RateLimiter(60), 0, list[Future[float]](), threading.Event()
        gate.set()

        def wait_then_give_up() -> None:
            limiter.acquire()
            limiter.acquire(on_wait=lambda wait: behind.append(join_line(pool, limiter, gate)))
            with contextlib.suppress(RateLimitTimeoutError):
                limiter.acquire(timeout=0)

        with ThreadPoolExecutor(1) as pool:
            for points in interrupt_everywhere(wait_then_give_up):  # noqa: B007
                while behind:
                    behind.pop().result(timeout=10)
                assert repr(limiter) == "RateLimiter(60, waiting=0)"
                clock.now += 100
                assert pool.submit(limiter.acquire, timeout=0).result(timeout=10) == 0
                assert next_wait(limiter) == pytest.approx(INTERVAL)
                clock.now += 100
        assert points > 50


class TestClosedEventLoop:
    """A task whose event loop was closed will never start; it blocks nobody."""

    def left_behind(
        self, limiter: RateLimiter
    ) -> tuple[asyncio.AbstractEventLoop, asyncio.Task[float]]:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # which would tell of the pending task
        task = loop.create_task(limiter.acquire_async())
        loop.run_until_complete(asyncio.sleep(0))
        return loop, task

    def test_a_caller_that_leaves_skips_it(self, gate: threading.Event) -> None:
        limiter = paused_limiter()
        with ThreadPoolExecutor(2) as pool:
            join_line(pool, limiter, gate)
            loop, task = self.left_behind(limiter)
            third = join_line(pool, limiter, gate)
            loop.close()
            gate.set()
            assert third.result(timeout=10) > 0
        assert not task.done()

    def test_a_caller_that_arrives_skips_it(self, clock: FakeClock) -> None:
        limiter = paused_limiter()
        loop, task = self.left_behind(limiter)
        loop.close()
        clock.now += 1
        assert limiter.acquire(timeout=0) == 0
        assert not task.done()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
class TestFork:
    def test_the_child_keeps_the_pace_and_starts_with_an_empty_line(
        self, gate: threading.Event
    ) -> None:
        limiter = RateLimiter(60)
        limiter.acquire()
        with ThreadPoolExecutor(3) as pool:
            for _ in range(3):
                join_line(pool, limiter, gate)
            waits = in_forked_child(lambda: [next_wait(limiter), limiter.acquire(9)])
            gate.set()
        assert waits == seconds(INTERVAL, INTERVAL)


class TestPause:
    def test_it_holds_a_caller_that_waits_already(self, acquire: Method, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        limiter.acquire()
        assert acquire(limiter, on_wait=lambda wait: limiter.pause(10)) == 10

    def test_one_of_300_years_does_not_overflow_the_sleep(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        limiter.pause(1e10)
        assert limiter.acquire() == pytest.approx(1e10)
        assert max(clock.waits) <= threading.TIMEOUT_MAX

    def test_of_two_at_the_same_time_the_longer_one_holds(self, clock: FakeClock) -> None:
        limiter, pauses = RateLimiter(60), itertools.cycle([2.0, 10.0])
        for _ in range(40):
            clock.now += 100
            run_in_threads(2, lambda: limiter.pause(next(pauses)), interleaved=True)
            assert next_wait(limiter) == pytest.approx(10)


class TestArguments:
    @pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "60", True])
    def test_a_wrong_rate_at_construction_or_later(self, value: Any) -> None:
        limiter = RateLimiter(60)
        for set_rate in (RateLimiter, partial(setattr, limiter, "max_requests_per_minute")):
            with pytest.raises(
                ValueError, match="max_requests_per_minute must be a number > 0, got "
            ):
                set_rate(value)
        assert limiter.max_requests_per_minute == 60

    @pytest.mark.parametrize("value", [-0.001, math.nan, "1", True])
    def test_a_wrong_timeout_or_pause(self, value: Any) -> None:
        limiter = RateLimiter(60)
        with pytest.raises(ValueError, match="timeout must be a number of seconds >= 0, got "):
            limiter.acquire(value)
        for pause in (value, math.inf):
            with pytest.raises(ValueError, match="seconds must be a number of seconds >= 0, got "):
                limiter.pause(pause)
        assert limiter.acquire(timeout=0) == 0
