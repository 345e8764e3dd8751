"""lib/shared_rate_limiter.py with real processes and a real server: ``make test-shared``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import valkey

from lib.client import MistralClient
from lib.mock_server import MockServer
from lib.rate_limiter import RateLimitTimeoutError
from lib.resilient_client import ResilientMistralClient
from lib.shared_rate_limiter import RedisAccessError, SharedRateLimiter
from shared.fleet import CLIENTS, Fleet, client
from shared.redis_server import RedisServer
from support import ROOT, Method, finish, most_in_any_window

PER_SECOND = 50  # 3,000 per minute
INTERVAL = 1 / (0.985 * PER_SECOND)
SLOW = 6  # per minute: so slow that a busy machine changes nothing
SLOW_INTERVAL = 60 / (0.985 * SLOW)
NO_BURST = 65  # what a busy machine may make of 50: some start late, the next ones in time
PASSWORD = "correct-horse"


def limiter(server: RedisServer, name: str, rate: float, timeout: float = 5) -> SharedRateLimiter:
    return SharedRateLimiter(client(server, timeout), name, max_requests_per_minute=rate)


def booked_wait(shared: SharedRateLimiter) -> float:
    """Book the next slot, and return the seconds until it instead of waiting."""
    waits = [0.0]

    def leave(wait: float) -> None:
        waits.append(wait)
        raise InterruptedError

    with contextlib.suppress(InterruptedError):
        shared.acquire(on_wait=leave)
    return waits[-1]


def rate(times: list[float], begin: float, end: float) -> float:
    """Starts per second between two points in time."""
    return sum(begin <= at < end for at in times) / (end - begin)


def fleet_of_four(server: RedisServer, name: str, **settings: Any) -> Fleet:
    return Fleet(server, name, *[settings] * 4)


def most_per_second(times: list[float]) -> int:
    return most_in_any_window(times, seconds=1)


@contextlib.contextmanager
def booked_slots(server: RedisServer, name: str) -> Iterator[list[float]]:
    """The slots that the script books meanwhile, in seconds on the server's clock."""
    with (
        redis.Redis.from_url(server.url) as watcher,
        watcher.monitor() as monitor,
        ThreadPoolExecutor(1) as pool,
    ):

        def listen() -> list[float]:
            commands = iter(lambda: str(monitor.next_command()["command"]), "ECHO end")
            words = [command.split() for command in commands]
            key = f"rate-limit:{name}"  # it holds the slot after the one that is booked
            return [float(w[2]) / 1e6 - INTERVAL for w in words if w[:2] == ["SET", key]]

        listening, slots = pool.submit(listen), list[float]()
        yield slots
        client(server).echo("end")
        slots += listening.result()


class TestClient:
    @pytest.mark.parametrize(
        "refused",
        [
            redis.Redis(),
            redis.Redis(socket_timeout=0.5),
            redis.Redis.from_url("redis://127.0.0.1", socket_timeout=60),
            redis.Redis.from_url("redis://127.0.0.1", socket_timeout=None),
        ],
        ids=["ten retries", "ten retries, a short timeout", "a long timeout", "no timeout"],
    )
    def test_one_that_could_block_for_long_is_refused(self, refused: redis.Redis) -> None:
        with pytest.raises(ValueError, match=r"from_url\(url, socket_timeout=0\.5"):
            SharedRateLimiter(refused, "api", max_requests_per_minute=60)

    def test_an_asyncio_client_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"not asyncio.*redis\.asyncio"):
            SharedRateLimiter(redis.asyncio.Redis(), "api", max_requests_per_minute=60)


class TestAccess:
    @pytest.fixture
    def locked_server(self, tmp_path: Path) -> Iterator[RedisServer]:
        with RedisServer(tmp_path, "--requirepass", PASSWORD) as started:
            yield started

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"password": "wrong-horse"}, "invalid username-password pair"),
            ({}, "uthenticat"),
            ({"username": "reader", "password": "reader-horse"}, "no permissions"),
            ({"username": "runner", "password": "runner-horse"}, "ACL failure in script"),
        ],
        ids=["wrong password", "no password", "no permission", "no permission in the script"],
    )
    def test_it_is_a_clear_error_that_never_shows_the_password(
        self, settings: dict[str, Any], reason: str, locked_server: RedisServer, name: str,
        acquire: Method, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        admin = client(locked_server, password=PASSWORD)
        admin.execute_command("ACL SETUSER reader on >reader-horse ~* +get")
        admin.execute_command("ACL SETUSER runner on >runner-horse ~* +evalsha +script +time")
        with caplog.at_level(logging.DEBUG, logger="lib"):
            shared = SharedRateLimiter(
                client(locked_server, **settings), name, max_requests_per_minute=600
            )
            with pytest.raises(RedisAccessError, match=reason) as caught:
                acquire(shared)
        shown = "".join(traceback.format_exception(caught.value)) + repr(shared) + caplog.text
        assert "check its username and password" in str(caught.value)
        assert "horse" not in shown
        with pytest.raises(RedisAccessError):
            shared.pause(1)


class TestGivingUp:
    def test_a_caller_that_cannot_start_in_time_books_nothing(
        self, server: RedisServer, name: str, acquire: Method
    ) -> None:
        booked_wait(limiter(server, name, SLOW))
        for _ in range(5):
            with pytest.raises(RateLimitTimeoutError, match=r"within 0\.1 s"):
                acquire(limiter(server, name, SLOW), 0.1)
        assert booked_wait(limiter(server, name, SLOW)) <= SLOW_INTERVAL

    def test_cancelled_tasks_waste_one_slot_at_most(self, server: RedisServer, name: str) -> None:
        """Fifty tasks wait behind ten seconds of slots; the first of them has booked one."""
        shared, interval = limiter(server, name, 600), 1e6 / 9.85
        limiter(server, name, 600).pause(10)

        def next_slot() -> int:
            return int(client(server).get(f"rate-limit:{name}").split()[0])

        async def wait_then_give_up() -> None:
            tasks = [asyncio.create_task(shared.acquire_async()) for _ in range(50)]
            while next_slot() == before:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        before = next_slot()
        asyncio.run(wait_then_give_up())
        # Two if the machine was so busy that the next one came before the first had paused it.
        assert round((next_slot() - before) / interval) <= 2

    def test_a_killed_process_wastes_one_slot_at_most(self, server: RedisServer, name: str) -> None:
        (worker,) = Fleet(server, name, {"seconds": 60, "rate": SLOW, "threads": 20}).processes
        while not client(server).exists(f"rate-limit:{name}"):
            time.sleep(0.02)
        time.sleep(0.3)
        worker.kill()
        finish(worker)
        assert booked_wait(limiter(server, name, SLOW)) <= 2 * SLOW_INTERVAL


def test_the_snippet_of_the_page_runs(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "lib" / "many-processes.md").read_text("utf-8")
    (snippet,) = re.findall(r"```python3\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("MISTRAL_API_KEY", "any-key")
    names: dict[str, Any] = {}
    exec(snippet.replace("redis://localhost:6379", server.url), names)
    CLIENTS.enter_context(names["redis_client"])
    CLIENTS.enter_context(names["client"])
    assert names["limiter"].acquire() == 0
    assert names["token_limiter"].available == 500_000


class TestWithoutRedis:
    def test_a_restart_means_a_slower_local_pace_then_the_full_rate_and_no_burst(
        self, own_server: RedisServer, name: str
    ) -> None:
        fleet = fleet_of_four(own_server, name, seconds=6)
        fleet.sleep_until(1)
        own_server.kill()
        fleet.sleep_until(3)
        own_server.start()
        starts = fleet.starts()
        assert rate(starts, fleet.begin, fleet.begin + 1) > 25
        assert 5 < rate(starts, fleet.begin + 1.5, fleet.begin + 3) < 25  # 4 times 10 %
        assert rate(starts, fleet.begin + 4.5, fleet.begin + 6) > 25
        assert most_per_second(starts) <= NO_BURST
        assert [errors.count("Redis can't be used") for errors in fleet.errors] == [1] * 4

    def test_a_silent_server_holds_a_caller_for_the_socket_timeout_only(
        self, own_server: RedisServer, name: str, acquire: Method
    ) -> None:
        shared = limiter(own_server, name, 6000, timeout=0.3)
        acquire(shared)
        with own_server.silenced():
            started_at = time.monotonic()
            acquire(shared)
            assert time.monotonic() - started_at < 2
            assert "local" in repr(shared)
        time.sleep(1)
        acquire(shared)
        assert "shared" in repr(shared)

    def test_a_silent_server_does_not_block_the_event_loop(
        self, own_server: RedisServer, name: str
    ) -> None:
        shared, ticks = limiter(own_server, name, 6000, timeout=0.3), 0

        async def main() -> None:
            nonlocal ticks
            task = asyncio.create_task(shared.acquire_async())
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1

        with own_server.silenced():
            asyncio.run(main())
        assert ticks >= 5

    def test_a_read_only_replica_is_not_written_to_until_it_is_promoted(
        self, own_server: RedisServer, name: str
    ) -> None:
        shared, admin = limiter(own_server, name, 6000), client(own_server)
        admin.replicaof("127.0.0.1", 1)
        shared.acquire()
        assert "local" in repr(shared)
        admin.replicaof("NO", "ONE")
        time.sleep(1)
        shared.acquire()
        assert "shared" in repr(shared)

    def test_a_full_server_is_an_outage(self, own_server: RedisServer, name: str) -> None:
        client(own_server).config_set("maxmemory", 1)
        shared = limiter(own_server, name, 6000)
        shared.acquire()
        assert "local" in repr(shared)


class TestPause:
    def test_it_reaches_the_callers_that_wait_in_another_process(
        self, server: RedisServer, name: str
    ) -> None:
        """But for the start whose slot is booked."""
        fleet = fleet_of_four(server, name, seconds=3, threads=5)
        fleet.sleep_until(1)
        limiter(server, name, 3000).pause(1)
        paused_at = time.time()
        starts = fleet.starts()
        assert rate(starts, fleet.begin, paused_at) > 25
        assert rate(starts, paused_at + 0.3, paused_at + 0.99) == 0
        assert rate(starts, paused_at + 1, fleet.begin + 3) > 25
        assert most_per_second(starts) <= NO_BURST

    def test_a_429_pauses_the_fleet(self, server: RedisServer, name: str, tmp_path: Path) -> None:
        with (
            MockServer("429:1") as api,
            MistralClient("any-key", base_url=api.url) as mistral,
            contextlib.chdir(tmp_path)
            if hasattr(contextlib, "chdir")
            else contextlib.nullcontext(),
        ):
            resilient = ResilientMistralClient(mistral, limiter=limiter(server, name, 6000))
            resilient.chat([{"role": "user", "content": "Hello!"}])
            assert [request.outcome for request in api.log] == ["429", "200"]
            assert api.log[1].arrived - api.log[0].arrived >= 0.99


class TestClock:
    def test_one_that_steps_back_costs_an_interval_at_most(
        self, server: RedisServer, name: str, acquire: Method
    ) -> None:
        """The key is as it was written before the step: ten minutes ahead of the clock."""
        shared, in_ten_minutes = limiter(server, name, 6000), int((time.time() + 600) * 1e6)
        client(server).set(f"rate-limit:{name}", f"{in_ten_minutes + 10_000} {in_ten_minutes} 6000")
        for _ in range(3):
            assert acquire(shared, 2) < 2

    def test_a_caller_that_gives_up_does_not_keep_the_old_time(
        self, server: RedisServer, name: str
    ) -> None:
        shared, in_ten_minutes = limiter(server, name, 600), int((time.time() + 600) * 1e6)
        client(server).set(f"rate-limit:{name}", f"{in_ten_minutes + 100_000} {in_ten_minutes} 600")
        with pytest.raises(RateLimitTimeoutError):
            shared.acquire(timeout=0)
        time.sleep(0.15)
        assert shared.acquire(timeout=0) == 0


class TestKey:
    @pytest.mark.parametrize(
        "nonsense",
        [b"rubbish", b"\xff\x00", b"1795724132216000", b"nan inf x", b"1e30 1e30 60", b"-5 -5 60"],
    )
    def test_nonsense_in_it_is_written_over(
        self, nonsense: bytes, server: RedisServer, name: str, acquire: Method
    ) -> None:
        client(server).set(f"rate-limit:{name}", nonsense)
        shared = limiter(server, name, SLOW)
        assert acquire(shared, 0) == 0
        assert booked_wait(shared) == pytest.approx(SLOW_INTERVAL, abs=5)
        assert "shared" in repr(shared)

    def test_a_key_of_another_type_is_written_over(
        self, server: RedisServer, name: str, acquire: Method
    ) -> None:
        client(server).rpush(f"rate-limit:{name}", "rubbish")
        shared = limiter(server, name, SLOW)
        assert acquire(shared, 0) == 0
        assert booked_wait(shared) == pytest.approx(SLOW_INTERVAL, abs=5)
        assert "shared" in repr(shared)

    def test_a_limit_that_differs_is_told(
        self, server: RedisServer, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        for per_minute in (6000, 6000.5):
            limiter(server, name, per_minute).acquire()
        assert "6000.5 per minute in this process and 6000 in another" in caplog.text


class TestRate:
    def test_four_processes_get_97_percent_of_the_rate_and_never_above_it_in_any_second(
        self, server: RedisServer, name: str
    ) -> None:
        """The slots are what the server booked; no start comes before its slot."""
        with booked_slots(server, name) as slots:
            starts = fleet_of_four(server, name, seconds=5).starts()
        reached = (len(starts) - 1) / (starts[-1] - starts[0]) / PER_SECOND
        print(f"{reached:.1%} of the rate, at most {most_per_second(starts)} starts in a second")
        assert reached >= 0.97
        assert most_per_second(slots) <= PER_SECOND
        for start_time, slot in zip(starts, sorted(slots), strict=True):
            assert start_time > slot - 0.001

    def test_a_worker_whose_clock_is_an_hour_ahead_does_no_harm(
        self, server: RedisServer, name: str
    ) -> None:
        right, ahead = {"seconds": 2}, {"seconds": 2, "clock_ahead": 3600}
        with booked_slots(server, name) as slots:
            starts = Fleet(server, name, right, ahead).starts_of_each()
        assert [len(of_one) for of_one in starts] == [pytest.approx(PER_SECOND, abs=15)] * 2
        assert most_per_second(slots) <= PER_SECOND

    def test_an_evicted_key_lets_no_burst_through(self, server: RedisServer, name: str) -> None:
        """Each process may have booked a slot that the new key doesn't know of."""
        with booked_slots(server, name) as slots:
            fleet = fleet_of_four(server, name, seconds=2)
            fleet.sleep_until(1)
            assert client(server).delete(f"rate-limit:{name}") == 1
            starts = fleet.starts()
        assert most_per_second(slots) <= PER_SECOND + 4
        assert most_per_second(starts) <= NO_BURST
        assert rate(starts, fleet.begin + 1, fleet.begin + 2) > 25

    def test_limits_of_different_names_do_not_touch(self, server: RedisServer, name: str) -> None:
        one, other = limiter(server, name, SLOW), limiter(server, f"{name} 2", SLOW)
        assert [one.acquire(), other.acquire()] == [0, 0]
        assert booked_wait(limiter(server, name, SLOW)) == pytest.approx(SLOW_INTERVAL, abs=5)

    def test_the_key_expires(self, server: RedisServer, name: str) -> None:
        limiter(server, name, 6000).acquire()
        time.sleep(0.1)
        assert client(server).get(f"rate-limit:{name}") is None

    def test_a_client_of_valkey_does_as_well(self, server: RedisServer, name: str) -> None:
        booked_wait(limiter(server, name, SLOW))
        with valkey.Valkey.from_url(server.url, socket_timeout=0.3) as its_client:
            shared = SharedRateLimiter(its_client, name, max_requests_per_minute=SLOW)
            assert booked_wait(shared) == pytest.approx(SLOW_INTERVAL, abs=5)
