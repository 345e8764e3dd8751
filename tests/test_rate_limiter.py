"""lib/rate_limiter.py: the full rate and never more, in order, and no slot wasted."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conftest import FakeClock
from lib.circuit_breaker import is_service_failure
from lib.rate_limiter import RateLimiter, RateLimitTimeoutError, _Waiter
from lib.retry import is_retryable
from support import StartTimes, interrupt_everywhere, most_in_any_window, run_in_threads

Acquire = Callable[..., float]


@pytest.fixture(params=["acquire", "acquire_async"])
def acquire(request: pytest.FixtureRequest) -> Acquire:
    """Wait at a limiter: once with ``acquire``, once with ``acquire_async``."""
    if request.param == "acquire":
        return lambda limiter, timeout=None: float(limiter.acquire(timeout))
    return lambda limiter, timeout=None: asyncio.run(limiter.acquire_async(timeout))


def seconds(*values: float) -> Any:
    return pytest.approx(list(values), rel=0.001, abs=1e-6)


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

    async def sleep_async(seconds: float) -> None:
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(asyncio, "sleep", sleep_async)


class TestPace:
    def test_the_first_starts_at_once_and_each_next_one_an_interval_later(
        self, acquire: Acquire, clock: FakeClock
    ) -> None:
        limiter = RateLimiter(60)
        assert [acquire(limiter) for _ in range(4)] == seconds(0, 1, 1, 1)

    @pytest.mark.parametrize("per_minute", [7, 60, 1000, 0.5, 12345.6])
    def test_thousands_of_requests_get_the_full_rate_and_never_more(
        self, per_minute: float, clock: FakeClock
    ) -> None:
        """No padding, no drift: 99.9 % of the rate, and in no minute one request too many."""
        limiter, starts = RateLimiter(per_minute), []
        for _ in range(3000):
            limiter.acquire()
            starts.append(clock.now)
        shortest = 2999 * 60 / per_minute
        assert shortest * 0.999 <= starts[-1] - starts[0] <= shortest * 1.001
        assert most_in_any_window(starts, seconds=60) <= max(1, per_minute)

    def test_idle_time_saves_nothing_up_for_a_burst(self, clock: FakeClock) -> None:
        random.seed(22)
        limiter, starts = RateLimiter(60), []
        for _ in range(200):
            clock.now += random.choice([0, 0.3, 0.999, 1, 1.5, 30, 59.9, 60, 300])
            for _ in range(random.randrange(1, 100)):
                limiter.acquire()
                starts.append(clock.now)
        assert most_in_any_window(starts, seconds=60) == 60
        assert most_in_any_window(starts, seconds=0.9) == 1

    @pytest.mark.parametrize(("per_minute", "latest"), [(600, 0.007), (6000, 0.001)])
    def test_late_wake_ups_cost_no_rate_and_break_no_window(
        self, per_minute: int, latest: float, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However late threads wake, no window of ten intervals or more holds too many."""
        random.seed(23)

        def late_sleep(seconds: float) -> None:
            clock.sleep(seconds + random.choice([0.0001, 0.0003, latest]))

        monkeypatch.setattr(time, "sleep", late_sleep)
        limiter, starts, interval = RateLimiter(per_minute), [], 60 / per_minute
        for _ in range(20_000):
            limiter.acquire()
            starts.append(clock.now)
        assert 19_999 * interval / (starts[-1] - starts[0]) > 0.99
        for intervals in (10, 11, 13, 15, 20, 27, 100):
            assert most_in_any_window(starts, intervals * interval) <= intervals

    def test_a_long_stall_is_not_made_up_for_by_a_burst(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limiter, stalls = RateLimiter(60), [10.0]
        monkeypatch.setattr(
            time, "sleep", lambda s: clock.sleep(s + (stalls.pop() if stalls else 0))
        )
        assert [limiter.acquire() for _ in range(4)] == seconds(0, 11, 1, 1)

    @pytest.mark.skipif(sys.platform == "win32", reason="its clock may tick only every 16 ms")
    def test_eight_threads_get_the_rate_and_never_more(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The start times are those that the limiter itself saw, so that no thread blurs them."""
        times = StartTimes(monkeypatch)
        limiter = RateLimiter(1500)  # one every 40 ms
        pairs = run_in_threads(8, lambda: [times.of(limiter.acquire) for _ in range(2)])
        starts = sorted(start for pair in pairs for start in pair)
        assert starts[-1] - starts[0] <= 15 * 0.040 / 0.9
        for window, allowed in [(60, 1500), (0.4, 10), (0.16, 5), (0.08, 3)]:
            assert most_in_any_window(starts, window) <= allowed


class TestOrder:
    def test_threads_start_in_the_order_in_which_they_came(self) -> None:
        limiter, order = RateLimiter(3000), list[int]()
        limiter.pause(0.3)

        def start(number: int) -> None:
            limiter.acquire()
            order.append(number)

        with ThreadPoolExecutor(20) as pool:
            for number in range(20):
                pool.submit(start, number)
                while len(limiter._line) <= number:
                    time.sleep(0.001)
        assert order == list(range(20))

    def test_a_pause_holds_those_who_wait_and_they_keep_their_order(self) -> None:
        limiter, starts = RateLimiter(3000), list[tuple[int, float]]()
        limiter.pause(0.2)

        def start(number: int) -> None:
            limiter.acquire()
            starts.append((number, time.monotonic()))

        with ThreadPoolExecutor(5) as pool:
            for number in range(5):
                pool.submit(start, number)
                while len(limiter._line) <= number:
                    time.sleep(0.001)
            held_until = time.monotonic() + 0.3
            limiter.pause(0.3)
        assert [number for number, _ in starts] == list(range(5))
        assert starts[0][1] >= held_until

    def test_of_ten_threads_none_waits_much_longer_than_the_others(self) -> None:
        limiter = RateLimiter(6000)
        waits = run_in_threads(10, lambda: [limiter.acquire() for _ in range(9)])
        settled = [wait for of_one_thread in waits for wait in of_one_thread[2:-1]]
        assert max(settled) <= 1.5 * statistics.median(settled)

    def test_a_thousand_tasks_start_in_order_and_no_thread_is_started(self) -> None:
        limiter, order, before = RateLimiter(120_000), list[int](), threading.active_count()

        async def start(number: int) -> None:
            await limiter.acquire_async()
            order.append(number)

        async def main() -> None:
            await asyncio.gather(*[start(number) for number in range(1000)])
            assert threading.active_count() == before
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())
        assert order == list(range(1000))

    def test_threads_and_tasks_of_two_event_loops_stand_in_one_line(self) -> None:
        limiter, starts = RateLimiter(6000), list[float]()

        async def start() -> None:
            await limiter.acquire_async()
            starts.append(time.monotonic())

        async def main() -> None:
            await asyncio.gather(*[start() for _ in range(10)])

        def thread() -> None:
            for _ in range(10):
                limiter.acquire()
                starts.append(time.monotonic())

        def event_loop() -> None:
            asyncio.run(main())

        jobs = iter([thread, event_loop, event_loop])
        run_in_threads(3, lambda: next(jobs)())
        assert len(starts) == 30
        assert max(starts) - min(starts) >= 28 * 0.01


class TestManyWaiters:
    def test_each_waiter_is_notified_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So a start costs the same however many threads wait."""
        notified, notify = list[_Waiter](), _Waiter.notify

        def counted_notify(waiter: _Waiter) -> None:
            notified.append(waiter)
            notify(waiter)

        monkeypatch.setattr(_Waiter, "notify", counted_notify)
        limiter = RateLimiter(60_000)
        run_in_threads(100, limiter.acquire)
        assert len(notified) == len(set(notified)) <= 99


class TestReserve:
    def test_it_books_slot_after_slot_and_never_waits(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        assert [limiter.reserve() for _ in range(4)] == seconds(0, 1, 2, 3)
        clock.now += 1.5
        assert limiter.reserve() == pytest.approx(2.5, rel=0.001)
        assert clock.waits == []

    def test_no_slot_is_reserved_twice_by_threads(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        waits = run_in_threads(4, lambda: [limiter.reserve() for _ in range(25)], interleaved=True)
        booked = sorted(wait for of_one_thread in waits for wait in of_one_thread)
        assert booked == seconds(*range(100))

    def test_reservations_and_waiting_callers_share_one_rate(
        self, acquire: Acquire, clock: FakeClock
    ) -> None:
        limiter = RateLimiter(60)
        limiter.reserve()
        limiter.reserve()
        assert acquire(limiter) == pytest.approx(2, rel=0.001)
        assert limiter.reserve() == pytest.approx(1, rel=0.001)

    def test_it_books_behind_those_who_wait_and_its_slot_stays_free(self) -> None:
        limiter, starts = RateLimiter(600), list[float]()  # one every 100 ms
        limiter.acquire()
        begin = time.monotonic()

        def start() -> None:
            limiter.acquire()
            starts.append(time.monotonic() - begin)

        with ThreadPoolExecutor(3) as pool:
            for number in range(2):
                pool.submit(start)
                while len(limiter._line) <= number:
                    time.sleep(0.001)
            reserved = [limiter.reserve() + time.monotonic() - begin for _ in range(2)]
            pool.submit(start)
        assert reserved == [pytest.approx(0.3, abs=0.03), pytest.approx(0.4, abs=0.03)]
        assert starts[1] < reserved[0]
        assert starts[2] >= 0.48


class TestTimeout:
    @pytest.mark.parametrize("timeout", [0, 0.5, 0.9])
    def test_a_caller_learns_at_once_that_no_slot_comes_in_time_and_uses_none(
        self, acquire: Acquire, timeout: float, clock: FakeClock
    ) -> None:
        limiter = RateLimiter(60)
        limiter.acquire()
        for _ in range(3):
            with pytest.raises(RateLimitTimeoutError, match=f"within {timeout:g} s"):
                acquire(limiter, timeout)
        assert clock.waits == []
        assert limiter.reserve() == pytest.approx(1, rel=0.001)

    def test_one_that_is_long_enough_changes_nothing(
        self, acquire: Acquire, clock: FakeClock
    ) -> None:
        limiter = RateLimiter(60)
        waits = [acquire(limiter, timeout) for timeout in (0, 1.1, math.inf)]
        assert waits == seconds(0, 1, 1)

    def test_a_pause_can_move_the_slot_out_of_reach(
        self, acquire: Acquire, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limiter = RateLimiter(60)
        limiter.acquire()
        while_waiting(clock, monkeypatch, lambda: limiter.pause(9.5))
        with pytest.raises(RateLimitTimeoutError):
            acquire(limiter, 5)
        assert limiter.reserve() == pytest.approx(9, rel=0.001)

    def test_those_behind_the_first_give_up_in_time_too(self) -> None:
        limiter = RateLimiter(6000)
        limiter.acquire()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(limiter.acquire)
            second = pool.submit(limiter.acquire, 0.2)
            limiter.pause(0.6)
            with pytest.raises(RateLimitTimeoutError):
                second.result(timeout=30)
            assert not first.done()
        assert first.result() > 0

    def test_a_task_behind_the_first_gives_up_in_time_too(self) -> None:
        limiter = RateLimiter(6000)

        async def main() -> None:
            await limiter.acquire_async()
            first = asyncio.create_task(limiter.acquire_async())
            await asyncio.sleep(0)
            second = asyncio.create_task(limiter.acquire_async(0.1))
            await asyncio.sleep(0)
            limiter.pause(0.4)
            with pytest.raises(RateLimitTimeoutError):
                await asyncio.wait_for(second, 10)
            assert not first.done()
            await first

        asyncio.run(main())

    def test_it_is_neither_retried_nor_counted_against_the_service(self) -> None:
        error = RateLimitTimeoutError()
        assert isinstance(error, TimeoutError)
        assert not is_retryable(error)
        assert not is_service_failure(error)


class TestGivingUp:
    @pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
    def test_an_interrupted_caller_uses_no_slot(
        self, acquire: Acquire, leaving: type[BaseException], clock: FakeClock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def leave() -> None:
            raise leaving

        limiter = RateLimiter(60)
        limiter.acquire()
        while_waiting(clock, monkeypatch, leave)
        with pytest.raises(leaving):
            acquire(limiter)
        assert limiter.reserve() == pytest.approx(0.5, rel=0.01)

    def test_cancelled_tasks_leave_the_line_and_the_others_move_up(self) -> None:
        limiter = RateLimiter(1200)  # one every 50 ms

        async def main() -> float:
            await limiter.acquire_async()
            started_at = time.monotonic()
            tasks = [asyncio.create_task(limiter.acquire_async()) for _ in range(40)]
            await asyncio.sleep(0.01)
            for task in tasks[:38]:  # the first in line among them
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return time.monotonic() - started_at

        assert asyncio.run(main()) < 1  # with their slots it would be 2 s
        assert len(limiter._line) == 0

    def test_ctrl_c_at_any_point_leaves_no_lock_held_and_nobody_in_line(
        self, clock: FakeClock
    ) -> None:
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

    def test_a_task_whose_event_loop_is_closed_holds_nobody_up(self) -> None:
        limiter, loop = RateLimiter(6000), asyncio.new_event_loop()
        limiter.pause(0.2)
        with ThreadPoolExecutor(2) as pool:
            pool.submit(limiter.acquire)
            while len(limiter._line) < 1:
                time.sleep(0.001)
            task = loop.create_task(limiter.acquire_async())
            loop.run_until_complete(asyncio.sleep(0))
            third = pool.submit(limiter.acquire)
            while len(limiter._line) < 3:
                time.sleep(0.001)
            loop.close()
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

    def test_the_usual_pace_follows(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        limiter.acquire()
        limiter.pause(30)
        assert [limiter.acquire() for _ in range(3)] == seconds(30, 1, 1)

    def test_it_never_shortens_what_is_booked_or_paused_already(self, clock: FakeClock) -> None:
        limiter = RateLimiter(60)
        for pause in (30, 5, 0):
            limiter.pause(pause)
        assert limiter.reserve() == pytest.approx(30)
        limiter.pause(2)
        assert limiter.reserve() == pytest.approx(31, rel=0.001)


class TestSharing:
    def test_no_slot_is_taken_twice_by_threads(self, clock: FakeClock) -> None:
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

    def test_the_lock_is_not_held_during_a_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        limiter, sleep = RateLimiter(6000), time.sleep
        limiter.pause(0.05)
        sleeping, wake = threading.Event(), threading.Event()

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


class TestArguments:
    @pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "60", None, True])
    def test_a_wrong_rate(self, value: Any) -> None:
        with pytest.raises(ValueError, match="max_requests_per_minute must be a number > 0, got "):
            RateLimiter(value)

    @pytest.mark.parametrize("value", [-1, -0.001, math.nan, "1", True])
    def test_a_wrong_time_uses_no_slot(
        self, acquire: Acquire, value: Any, clock: FakeClock
    ) -> None:
        limiter = RateLimiter(60)
        with pytest.raises(ValueError, match="timeout must be a number of seconds >= 0, got "):
            acquire(limiter, value)
        with pytest.raises(ValueError, match="seconds must be a number of seconds >= 0, got "):
            limiter.pause(value)
        assert limiter.reserve() == 0

    def test_an_endless_pause(self) -> None:
        with pytest.raises(ValueError, match="seconds"):
            RateLimiter(60).pause(math.inf)

    def test_the_repr_shows_the_rate_and_the_line(self) -> None:
        assert repr(RateLimiter(60)) == "RateLimiter(60, waiting=0)"

    def test_the_wall_clock_is_not_used(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jumping = iter(range(0, 10**9, 10**6))
        monkeypatch.setattr(time, "time", lambda: next(jumping))
        limiter = RateLimiter(60)
        assert [limiter.acquire(timeout=2) for _ in range(3)] == seconds(0, 1, 1)
