"""lib/rate_limiter.py: the full rate and never more, first come, first served, no slot wasted."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from conftest import FakeClock
from lib.circuit_breaker import is_service_failure
from lib.rate_limiter import RateLimiter, RateLimitTimeoutError
from lib.retry import is_retryable
from support import StartTimes, interrupt_everywhere, most_in_any_window, run_in_threads

Acquire = Callable[..., float]


@pytest.fixture(params=["acquire", "acquire_async"])
def acquire(request: pytest.FixtureRequest) -> Acquire:
    """Wait at a limiter: once with ``acquire``, once with ``acquire_async``."""
    if request.param == "acquire":
        return lambda limiter, timeout=None: float(limiter.acquire(timeout))
    return lambda limiter, timeout=None: asyncio.run(limiter.acquire_async(timeout))


@pytest.fixture
def gate(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until the gate is set, the first caller in line sleeps; its sleep takes no real time."""
    gate = threading.Event()

    def sleep(seconds: float) -> None:
        assert gate.wait(timeout=10)
        clock.sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    return gate


def join_line(
    pool: ThreadPoolExecutor, limiter: RateLimiter, timeout: float | None = None
) -> Future[float]:
    """Let a thread call ``acquire``, and return when it is in line."""
    length, poll = len(limiter._line), threading.Event()  # time.sleep is a fake
    future = pool.submit(limiter.acquire, timeout)
    while len(limiter._line) == length and not future.done():
        poll.wait(0.001)
    return future


def run_together(*jobs: Callable[[], object]) -> None:
    """Run each job in a thread of its own, their steps interleaved."""
    waiting = iter(jobs)
    run_in_threads(len(jobs), lambda: next(waiting)(), interleaved=True)


def seconds(*values: float) -> Any:
    return pytest.approx(list(values), rel=0.001, abs=1e-6)


def while_waiting(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, event: Callable[[], object]
) -> None:
    """Call ``event`` once, in the middle of the next wait."""
    events = [event]

    def sleep(seconds: float) -> None:
        clock.sleep(seconds / 2)
        if events:
            events.pop()()
        clock.sleep(seconds / 2)

    async def sleep_async(seconds: float) -> None:
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(asyncio, "sleep", sleep_async)


class TestPace:
    def test_starts_are_evenly_spaced(self, acquire: Acquire, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        assert [acquire(limiter) for _ in range(4)] == seconds(0, 1, 1, 1)

    @pytest.mark.parametrize("per_minute", [0.5, 60, 12345.6])
    def test_the_full_rate_and_never_more(self, per_minute: float, clock: FakeClock) -> None:
        """No padding, no drift: 99.9 % of the rate, and in no minute one request too many."""
        limiter, starts = RateLimiter(per_minute), []
        for _ in range(3000):
            limiter.acquire()
            starts.append(clock.now)
        assert starts[-1] - starts[0] == pytest.approx(2999 * 60 / per_minute, rel=0.001)
        assert most_in_any_window(starts, seconds=60) <= max(1, per_minute)

    def test_idle_time_is_not_saved_up_for_a_burst(self, clock: FakeClock) -> None:
        random.seed(22)
        limiter, starts = RateLimiter(60), []
        for _ in range(100):
            clock.now += random.choice([0, 0.3, 0.999, 1, 1.5, 30, 59.9, 60, 300])
            for _ in range(random.randrange(1, 100)):
                limiter.acquire()
                starts.append(clock.now)
        assert most_in_any_window(starts, seconds=60) == 60
        assert most_in_any_window(starts, seconds=0.9) == 1

    def test_late_wake_ups_cost_no_rate_and_break_no_window(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However late threads wake, no window of ten intervals or more holds too many."""
        random.seed(23)

        def late_sleep(seconds: float) -> None:
            clock.sleep(seconds + random.choice([0.0001, 0.0003, 0.007]))

        monkeypatch.setattr(time, "sleep", late_sleep)
        limiter, starts, interval = RateLimiter(600), [], 0.1
        for _ in range(5000):
            limiter.acquire()
            starts.append(clock.now)
        assert 4999 * interval / (starts[-1] - starts[0]) > 0.99
        for intervals in (10, 11, 13, 20, 100):
            assert most_in_any_window(starts, intervals * interval) <= intervals

    def test_a_long_stall_is_not_made_up_for_by_a_burst(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limiter, stalls = RateLimiter(60), [10.0]
        monkeypatch.setattr(
            time, "sleep", lambda s: clock.sleep(s + (stalls.pop() if stalls else 0))
        )
        assert [limiter.acquire() for _ in range(4)] == seconds(0, 11, 1, 1)

    def test_eight_threads_get_the_rate_and_never_more(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times, limiter, begin = StartTimes(monkeypatch), RateLimiter(60), clock.now
        pairs = run_in_threads(
            8, lambda: [times.of(limiter.acquire) - begin for _ in range(2)], interleaved=True
        )
        assert sorted(start for pair in pairs for start in pair) == seconds(*range(16))


class TestFirstComeFirstServed:
    def test_threads_start_in_the_order_in_which_they_came(self, gate: threading.Event) -> None:
        """Even if a pause holds them all."""
        limiter = RateLimiter(60)
        limiter.pause(1)
        with ThreadPoolExecutor(20) as pool:
            waits = [join_line(pool, limiter) for _ in range(20)]
            limiter.pause(30)
            gate.set()
        assert [wait.result() for wait in waits] == seconds(*range(30, 50))

    def test_hundreds_of_tasks_start_in_the_order_in_which_they_came(self) -> None:
        limiter, order, before = RateLimiter(120_000), list[int](), threading.active_count()

        async def start(number: int) -> None:
            await limiter.acquire_async()
            order.append(number)

        async def main() -> None:
            await asyncio.gather(*[start(number) for number in range(300)])
            assert threading.active_count() == before
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())
        assert order == list(range(300))

    def test_threads_and_tasks_of_two_event_loops_share_one_line(self) -> None:
        limiter = RateLimiter(6000)

        def thread() -> None:
            for _ in range(5):
                limiter.acquire()

        async def tasks() -> None:
            await asyncio.gather(*[limiter.acquire_async() for _ in range(5)])

        started_at = time.monotonic()
        run_together(thread, lambda: asyncio.run(tasks()), lambda: asyncio.run(tasks()))
        assert time.monotonic() - started_at >= 13 * 0.01

    def test_a_start_costs_the_same_however_many_wait(
        self, gate: threading.Event, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A caller reads the clock three times: on arrival, when it is first, and at its slot."""
        readings, limiter = list[float](), RateLimiter(60)
        limiter.pause(1)

        def monotonic() -> float:
            readings.append(clock.now)
            return clock.now

        monkeypatch.setattr(time, "monotonic", monotonic)
        with ThreadPoolExecutor(40) as pool:
            for _ in range(40):
                join_line(pool, limiter)
            gate.set()
        assert len(readings) <= 3 * 40


class TestReserve:
    def test_it_books_slot_after_slot_and_never_waits(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        assert [limiter.reserve() for _ in range(4)] == seconds(0, 1, 2, 3)
        clock.now += 1.5
        assert limiter.reserve() == pytest.approx(2.5, rel=0.001)
        assert clock.waits == []

    def test_threads_never_reserve_the_same_slot(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        waits = run_in_threads(4, lambda: [limiter.reserve() for _ in range(10)], interleaved=True)
        assert sorted(wait for of_one in waits for wait in of_one) == seconds(*range(40))

    def test_it_shares_the_rate_with_acquire(self, acquire: Acquire, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        limiter.reserve()
        limiter.reserve()
        assert acquire(limiter) == pytest.approx(2, rel=0.001)
        assert limiter.reserve() == pytest.approx(1, rel=0.001)

    def test_it_books_behind_those_who_wait(self, gate: threading.Event) -> None:
        limiter = RateLimiter(60)
        limiter.reserve()
        with ThreadPoolExecutor(3) as pool:
            waits = [join_line(pool, limiter) for _ in range(2)]
            assert [limiter.reserve() for _ in range(2)] == seconds(3, 4)
            waits.append(join_line(pool, limiter))
            gate.set()
        assert [wait.result() for wait in waits] == seconds(1, 2, 5)


class TestTimeout:
    @pytest.mark.parametrize("timeout", [0, 0.9])
    def test_it_is_raised_at_once_and_uses_no_slot(
        self, acquire: Acquire, timeout: float, clock: FakeClock
    ) -> None:
        limiter = RateLimiter(60)
        limiter.acquire()
        for _ in range(3):
            with pytest.raises(RateLimitTimeoutError, match=f"within {timeout:g} s"):
                acquire(limiter, timeout)
        assert clock.waits == []
        assert limiter.reserve() == pytest.approx(1, rel=0.001)

    def test_a_slot_that_comes_in_time(self, acquire: Acquire, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        waits = [acquire(limiter, timeout) for timeout in (0, 1, math.inf)]
        assert waits == seconds(0, 1, 1)

    def test_it_is_raised_at_once_behind_others_too(self, gate: threading.Event) -> None:
        limiter = RateLimiter(60)
        limiter.pause(1)
        with ThreadPoolExecutor(4) as pool:
            for _ in range(2):
                join_line(pool, limiter)
            with pytest.raises(RateLimitTimeoutError):
                limiter.acquire(2.9)
            last = join_line(pool, limiter, timeout=3)
            gate.set()
        assert last.result() == pytest.approx(3, rel=0.001)

    def test_a_pause_can_move_the_slot_out_of_reach(
        self, acquire: Acquire, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limiter = RateLimiter(60)
        limiter.acquire()
        while_waiting(clock, monkeypatch, lambda: limiter.pause(9.5))
        with pytest.raises(RateLimitTimeoutError):
            acquire(limiter, 5)
        assert limiter.reserve() == pytest.approx(9, rel=0.001)

    def test_a_thread_behind_the_first_gives_up_in_time_too(
        self, gate: threading.Event, clock: FakeClock
    ) -> None:
        limiter = RateLimiter(6000)
        limiter.pause(0.01)
        with ThreadPoolExecutor(2) as pool:
            first = join_line(pool, limiter)
            second = join_line(pool, limiter, timeout=0.1)
            limiter.pause(60)
            clock.now += 0.1
            with pytest.raises(RateLimitTimeoutError):
                second.result(timeout=30)
            assert not first.done()
            gate.set()

    def test_a_task_behind_the_first_gives_up_in_time_too(self) -> None:
        limiter = RateLimiter(6000)
        limiter.pause(0.01)

        async def main() -> None:
            first = asyncio.create_task(limiter.acquire_async())
            second = asyncio.create_task(limiter.acquire_async(0.1))
            await asyncio.sleep(0)
            limiter.pause(60)
            with pytest.raises(RateLimitTimeoutError):
                await asyncio.wait_for(second, 30)
            assert not first.done()
            first.cancel()

        asyncio.run(main())

    def test_its_error_is_neither_retried_nor_a_failure_of_the_service(self) -> None:
        error = RateLimitTimeoutError()
        assert isinstance(error, TimeoutError)
        assert not is_retryable(error)
        assert not is_service_failure(error)
        assert error.status_code == 429


class TestGivingUp:
    def test_an_interrupted_caller_uses_no_slot(
        self, acquire: Acquire, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        limiter = RateLimiter(60)
        limiter.acquire()
        while_waiting(clock, monkeypatch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            acquire(limiter)
        assert limiter.reserve() == pytest.approx(0.5, rel=0.01)

    def test_cancelled_tasks_leave_the_line_and_the_others_move_up(self) -> None:
        limiter = RateLimiter(600)  # one every 100 ms

        async def main() -> None:
            await limiter.acquire_async()
            tasks = [asyncio.create_task(limiter.acquire_async()) for _ in range(41)]
            await asyncio.sleep(0.01)
            for task in tasks[:40]:  # the first in line among them
                task.cancel()
            assert await tasks[40] < 3  # with the slots of the others it would be 4 s
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())
        assert repr(limiter) == "RateLimiter(600, waiting=0)"

    def test_of_four_threads_that_cannot_wait_only_one_starts(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)

        def started() -> bool:
            with contextlib.suppress(RateLimitTimeoutError):
                return limiter.acquire(timeout=0) == 0
            return False

        for _ in range(20):
            clock.now += 1.01
            assert sum(run_in_threads(4, started, interleaved=True)) == 1
            assert repr(limiter) == "RateLimiter(60, waiting=0)"

    def test_ctrl_c_leaves_no_lock_held_and_nobody_in_line(self, clock: FakeClock) -> None:
        limiter, points = RateLimiter(60), 0

        def wait_then_give_up() -> None:
            limiter.acquire()
            limiter.acquire()
            with contextlib.suppress(RateLimitTimeoutError):
                limiter.acquire(timeout=0)

        for points in interrupt_everywhere(wait_then_give_up):  # noqa: B007
            assert not limiter._lock.locked()
            assert len(limiter._line) == 0
            clock.now += 100
        assert points > 50

    def test_a_task_whose_event_loop_is_closed_blocks_nobody(self, gate: threading.Event) -> None:
        limiter, loop = RateLimiter(60), asyncio.new_event_loop()
        limiter.pause(1)
        with ThreadPoolExecutor(2) as pool:
            join_line(pool, limiter)
            task = loop.create_task(limiter.acquire_async())
            loop.run_until_complete(asyncio.sleep(0))
            third = join_line(pool, limiter)
            loop.close()
            gate.set()
            assert third.result(timeout=10) > 0
        task.get_coro().close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]


class TestPause:
    def test_it_holds_a_caller_that_waits_already(
        self, acquire: Acquire, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limiter = RateLimiter(60)
        limiter.acquire()
        while_waiting(clock, monkeypatch, lambda: limiter.pause(10))
        assert acquire(limiter) == pytest.approx(10.5, rel=0.001)

    def test_one_of_300_years_does_not_overflow_the_sleep(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:

        def sleep(seconds: float) -> None:
            assert seconds <= threading.TIMEOUT_MAX
            clock.now += seconds

        monkeypatch.setattr(time, "sleep", sleep)
        limiter = RateLimiter(60)
        limiter.pause(1e10)
        assert limiter.acquire() == pytest.approx(1e10)

    def test_a_shorter_one_does_not_end_a_longer_one(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        for pause in (30, 5, 0):
            limiter.pause(pause)
        assert [limiter.acquire() for _ in range(3)] == seconds(30, 1, 1)

    def test_it_keeps_reserved_slots(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        assert [limiter.reserve() for _ in range(3)] == seconds(0, 1, 2)
        limiter.pause(2.5)
        assert limiter.reserve() == pytest.approx(3, rel=0.001)

    def test_a_slot_reserved_behind_others_does_not_end_it(self, gate: threading.Event) -> None:
        limiter = RateLimiter(60)
        limiter.pause(1)
        with ThreadPoolExecutor(1) as pool:
            wait = join_line(pool, limiter)
            assert limiter.reserve() == pytest.approx(2, rel=0.001)
            limiter.pause(30)
            gate.set()
        assert wait.result() >= 30

    def test_of_two_at_the_same_time_the_longer_one_holds(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        for _ in range(40):
            clock.now += 100
            run_together(lambda: limiter.pause(2), lambda: limiter.pause(10))
            assert limiter.reserve() == pytest.approx(10)


class TestArguments:
    @pytest.mark.parametrize("value", [0, math.nan, math.inf, "60", True])
    def test_a_wrong_rate(self, value: Any) -> None:
        with pytest.raises(ValueError, match="max_requests_per_minute must be a number > 0, got "):
            RateLimiter(value)

    @pytest.mark.parametrize("value", [-0.001, math.nan, "1", True])
    def test_a_wrong_timeout_or_pause(self, value: Any) -> None:
        limiter = RateLimiter(60)
        with pytest.raises(ValueError, match="timeout must be a number of seconds >= 0, got "):
            limiter.acquire(value)
        with pytest.raises(ValueError, match="seconds must be a number of seconds >= 0, got "):
            limiter.pause(value)
        assert limiter.reserve() == 0

    def test_an_endless_pause(self) -> None:
        with pytest.raises(ValueError, match="seconds must be a number of seconds >= 0, got inf"):
            RateLimiter(60).pause(math.inf)
