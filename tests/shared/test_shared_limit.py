"""lib/shared_rate_limiter.py with real processes and a real server: ``make test-shared``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import valkey

from lib.circuit_breaker import is_service_failure
from lib.client import MistralClient
from lib.mock_server import MockServer
from lib.rate_limiter import RateLimitTimeoutError
from lib.resilient_client import ResilientMistralClient
from lib.retry import is_retryable
from lib.shared_rate_limiter import RedisAccessError, SharedRateLimiter
from shared.redis_server import RedisServer
from support import finish, most_in_any_window, start

PER_SECOND = 50  # 3,000 per minute
WORKER = str(Path(__file__).with_name("worker.py"))
PASSWORD = "correct-horse"

Acquire = Callable[..., float]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A limit of each test's own."""
    return str(request.node.name)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may break."""
    with RedisServer(tmp_path) as started:
        yield started


@pytest.fixture(params=["acquire", "acquire_async"])
def acquire(request: pytest.FixtureRequest) -> Acquire:
    if request.param == "acquire":
        return lambda limiter, timeout=None: float(limiter.acquire(timeout))
    return lambda limiter, timeout=None: asyncio.run(limiter.acquire_async(timeout))


def client(server: RedisServer, **settings: Any) -> redis.Redis:
    return redis.Redis.from_url(
        server.url, socket_timeout=0.3, socket_connect_timeout=0.3, **settings
    )


def limiter(server: RedisServer, name: str, rate: float, **settings: Any) -> SharedRateLimiter:
    return SharedRateLimiter(client(server), name, max_requests_per_minute=rate, **settings)


def start_worker(url: str, name: str, **settings: Any) -> subprocess.Popen[str]:
    return start(WORKER, json.dumps({"url": url, "name": name, **settings}))


class Fleet:
    """Four worker processes that begin at the same moment."""

    def __init__(self, server: RedisServer, name: str, seconds: float, **settings: Any) -> None:
        self.begin = time.monotonic() + 1  # they need that long to import what they need
        self._workers = [
            start_worker(server.url, name, begin=self.begin, seconds=seconds, **settings)
            for _ in range(4)
        ]
        self.errors: list[str] = []

    def sleep_until(self, seconds: float) -> None:
        time.sleep(max(0.0, self.begin + seconds - time.monotonic()))

    def starts(self) -> list[float]:
        """When the requests of all workers started, in seconds after the beginning."""
        outcomes = [finish(worker) for worker in self._workers]
        assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes
        self.errors = [outcome.err for outcome in outcomes]
        times = [time for outcome in outcomes for time in json.loads(outcome.out)]
        return sorted(time - self.begin for time in times)


def per_second(starts: list[float], begin: float, end: float) -> float:
    return sum(begin <= start < end for start in starts) / (end - begin)


def fullest_second(starts: list[float]) -> int:
    """Less 50 ms, by which a process on a busy machine may note its start too late."""
    return most_in_any_window(starts, seconds=0.95)


@contextlib.contextmanager
def booked_slots(server: RedisServer, name: str) -> Iterator[list[float]]:
    """The slots that the script books meanwhile, in seconds on the server's clock."""
    with redis.Redis.from_url(server.url).monitor() as monitor, ThreadPoolExecutor(1) as pool:

        def listen() -> list[float]:
            commands = iter(lambda: str(monitor.next_command()["command"]), "ECHO end")
            words = [command.split() for command in commands]
            return [float(w[2]) / 1e6 for w in words if w[:2] == ["SET", f"rate-limit:{name}"]]

        listening, slots = pool.submit(listen), list[float]()
        yield slots
        client(server).echo("end")
        slots += listening.result()


class TestRate:
    def test_four_processes_get_97_percent_of_the_rate_and_never_above_it_in_any_second(
        self, server: RedisServer, name: str
    ) -> None:
        with booked_slots(server, name) as slots:
            starts = Fleet(server, name, seconds=5).starts()
        rate = (len(starts) - 1) / (starts[-1] - starts[0])
        print(f"{rate / PER_SECOND:.1%} of the rate, {fullest_second(starts)} in a second")
        assert rate >= 0.97 * PER_SECOND
        assert len(slots) == len(starts)
        assert most_in_any_window(slots, seconds=1) <= PER_SECOND
        assert fullest_second(starts) <= PER_SECOND

    def test_a_worker_whose_clock_is_an_hour_ahead_does_no_harm(
        self, server: RedisServer, name: str
    ) -> None:
        begin = time.monotonic() + 1
        workers = [
            start_worker(server.url, name, begin=begin, seconds=2, clock_ahead=clock_ahead)
            for clock_ahead in (0, 3600)
        ]
        starts = [json.loads(finish(worker).out) for worker in workers]
        assert [len(of_one) for of_one in starts] == [pytest.approx(PER_SECOND, abs=10)] * 2
        assert fullest_second(starts[0] + starts[1]) <= PER_SECOND

    def test_an_evicted_key_lets_no_burst_through(self, server: RedisServer, name: str) -> None:
        """Each process may have booked a slot that the new key doesn't know of."""
        fleet = Fleet(server, name, seconds=2)
        fleet.sleep_until(1)
        assert client(server).delete(f"rate-limit:{name}") == 1
        starts = fleet.starts()
        assert fullest_second(starts) <= PER_SECOND + 4
        assert starts[-1] > 1.9

    def test_limits_of_different_names_do_not_touch(self, server: RedisServer, name: str) -> None:
        one, other = limiter(server, name, 60), limiter(server, f"{name} 2", 60)
        assert [one.reserve(), other.reserve()] == [0, 0]
        assert limiter(server, name, 60).reserve() == pytest.approx(60 / 59.4, abs=0.5)

    def test_the_key_expires(self, server: RedisServer, name: str) -> None:
        limiter(server, name, 6000).acquire()
        time.sleep(0.1)
        assert client(server).get(f"rate-limit:{name}") is None

    def test_a_client_of_valkey_does_as_well(self, server: RedisServer, name: str) -> None:
        its_client = valkey.Valkey.from_url(server.url, socket_timeout=0.3)
        limiter(server, name, 60).reserve()
        shared = SharedRateLimiter(its_client, name, max_requests_per_minute=60)
        assert shared.reserve() == pytest.approx(60 / 59.4, abs=0.5)


class TestGivingUp:
    def test_a_caller_that_cannot_start_in_time_books_nothing(
        self, server: RedisServer, name: str, acquire: Acquire
    ) -> None:
        limiter(server, name, 60).reserve()
        for _ in range(5):
            with pytest.raises(RateLimitTimeoutError, match=r"within 0\.1 s"):
                acquire(limiter(server, name, 60), 0.1)
        assert limiter(server, name, 60).reserve() <= 60 / 59.4

    def test_cancelled_tasks_waste_one_slot_at_most(self, server: RedisServer, name: str) -> None:
        shared = limiter(server, name, 60)

        async def main() -> None:
            tasks = [asyncio.create_task(shared.acquire_async()) for _ in range(50)]
            await asyncio.sleep(0.3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())
        assert limiter(server, name, 60).reserve() <= 2 * 60 / 59.4

    def test_a_killed_process_wastes_one_slot_at_most(self, server: RedisServer, name: str) -> None:
        begin = time.monotonic()
        with start_worker(
            server.url, name, begin=begin, seconds=60, rate=60, threads=50
        ) as worker:
            while not client(server).exists(f"rate-limit:{name}"):
                time.sleep(0.05)
            time.sleep(0.3)
            worker.kill()
            finish(worker)
        assert limiter(server, name, 60).reserve() <= 2 * 60 / 59.4


class TestPause:
    def test_it_reaches_the_callers_that_wait_in_another_process(
        self, server: RedisServer, name: str
    ) -> None:
        """But for the start whose slot is booked."""
        fleet = Fleet(server, name, seconds=3, threads=5)
        fleet.sleep_until(1)
        paused_at = time.monotonic() - fleet.begin
        limiter(server, name, 3000).pause(1)
        starts = fleet.starts()
        assert per_second(starts, 0, 1) > 0.9 * PER_SECOND
        assert per_second(starts, paused_at + 0.2, paused_at + 1) == 0
        assert per_second(starts, paused_at + 1.1, 3) > 0.8 * PER_SECOND
        assert fullest_second(starts) <= PER_SECOND

    def test_a_429_pauses_the_fleet(self, server: RedisServer, name: str, tmp_path: Path) -> None:
        with (
            MockServer("429:1") as api,
            MistralClient("any-key", base_url=api.url) as mistral,
            contextlib.chdir(tmp_path) if hasattr(contextlib, "chdir") else contextlib.nullcontext(),
        ):
            resilient = ResilientMistralClient(mistral, limiter=limiter(server, name, 6000))
            resilient.chat([{"role": "user", "content": "Hello!"}])
            assert [request.outcome for request in api.log] == ["429", "200"]
            assert api.log[1].arrived - api.log[0].arrived >= 0.99


class TestWithoutRedis:
    def test_a_restart_means_a_slower_local_pace_then_the_full_rate_and_no_burst(
        self, own_server: RedisServer, name: str
    ) -> None:
        fleet = Fleet(own_server, name, seconds=6)
        fleet.sleep_until(1)
        own_server.kill()
        fleet.sleep_until(3)
        own_server.start()
        starts = fleet.starts()
        assert per_second(starts, 0, 1) > 0.9 * PER_SECOND
        assert per_second(starts, 1.5, 3) == pytest.approx(4 * 0.1 * PER_SECOND, abs=4)
        assert per_second(starts, 4.5, 6) > 0.9 * PER_SECOND
        # Each process may start once by its local pace and once by the shared one.
        assert fullest_second(starts) <= PER_SECOND + 4
        assert [errors.count("Redis can't be used") for errors in fleet.errors] == [1] * 4

    def test_a_silent_server_holds_a_caller_for_the_socket_timeout_only(
        self, own_server: RedisServer, name: str, acquire: Acquire
    ) -> None:
        shared = limiter(own_server, name, 6000)
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
        shared, ticks = limiter(own_server, name, 6000), 0

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

    def test_a_pause_still_holds_this_process(self, own_server: RedisServer, name: str) -> None:
        shared = limiter(own_server, name, 6000)
        own_server.kill()
        shared.pause(0.5)
        started_at = time.monotonic()
        shared.acquire()
        assert time.monotonic() - started_at >= 0.45


class TestAccess:
    @pytest.fixture
    def locked_server(self, tmp_path: Path) -> Iterator[RedisServer]:
        with RedisServer(tmp_path, "--requirepass", PASSWORD) as started:
            yield started

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"password": "wrong-horse"}, "invalid username-password pair"),
            ({}, "Authentication required"),
            ({"username": "reader", "password": "reader-horse"}, "no permissions"),
        ],
        ids=["wrong password", "no password", "no permission"],
    )
    def test_it_is_a_clear_error_that_never_shows_the_password(
        self, settings: dict[str, str], reason: str, locked_server: RedisServer, name: str,
        acquire: Acquire, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        admin = client(locked_server, password=PASSWORD)
        admin.execute_command("ACL SETUSER reader on >reader-horse ~* +get")
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

    def test_it_is_neither_retried_nor_counted_against_the_service(self) -> None:
        assert not is_retryable(RedisAccessError())
        assert not is_service_failure(RedisAccessError())


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
