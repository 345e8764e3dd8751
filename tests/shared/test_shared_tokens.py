"""lib/shared_token_limiter.py with real processes and a real server: ``make test-shared``."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from lib.client import Limits
from lib.mock_server import MockServer
from lib.shared_token_limiter import SharedTokenLimiter
from shared.fleet import Fleet, client
from shared.redis_server import RedisServer
from shared.token_worker import MAX_TOKENS
from support import Method, most_in_any_window, rejects

SHORT_WINDOW = 0.6  # seconds


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of 0.6 seconds."""
    monkeypatch.setattr("lib.shared_token_limiter.WINDOW", SHORT_WINDOW)


def limiter(
    server: RedisServer, name: str, limit: int = 100, timeout: float = 5, **settings: Any
) -> SharedTokenLimiter:
    connections = client(server, timeout)
    return SharedTokenLimiter(connections, name, max_tokens_per_minute=limit, **settings)


class TestLedger:
    @pytest.mark.parametrize("used", [0, 70, 120])
    def test_settling_corrects_the_estimate(
        self, server: RedisServer, name: str, reserve: Method, used: int
    ) -> None:
        reservation = reserve(limiter(server, name), 70)
        assert limiter(server, name).available == 30
        reservation.settle(used)
        assert limiter(server, name).available == 100 - used

    @pytest.mark.usefixtures("short_window")
    def test_a_booking_counts_for_the_window_and_a_sixtieth(
        self, server: RedisServer, name: str, reserve: Method
    ) -> None:
        shared = limiter(server, name)
        booked_at = time.monotonic()
        shared.reserve(70).settle(60)
        assert rejects(shared, 41)
        reserve(shared, 100)
        assert time.monotonic() - booked_at >= SHORT_WINDOW

    @pytest.mark.usefixtures("short_window")
    def test_a_late_settlement_counts_what_was_used(self, server: RedisServer, name: str) -> None:
        shared = limiter(server, name)
        reservation = shared.reserve(70)
        while shared.available < 100:
            time.sleep(0.05)
        reservation.settle(40)
        assert shared.available == 60

    def test_more_than_the_limit_waits_until_the_ledger_is_empty(
        self, server: RedisServer, name: str
    ) -> None:
        shared = limiter(server, name)
        first = shared.reserve(1)
        assert rejects(shared, 500)
        first.settle(0)
        assert not rejects(shared, 500)

    def test_limits_of_different_names_do_not_touch(self, server: RedisServer, name: str) -> None:
        limiter(server, name).reserve(100)
        assert limiter(server, f"{name} 2").available == 100

    def test_other_programs_of_the_account_are_booked(self, server: RedisServer, name: str) -> None:
        limiter(server, name).observe(Limits(remaining_tokens=30))
        assert limiter(server, name).available == 30

    @pytest.mark.usefixtures("short_window")
    def test_its_memory_is_bounded_and_the_key_expires(
        self, server: RedisServer, name: str
    ) -> None:
        shared, admin, key = limiter(server, name, 10**9), client(server), f"token-limit:{name}"
        end, sizes = time.monotonic() + 2 * SHORT_WINDOW, list[int]()
        while time.monotonic() < end:
            shared.reserve(10).settle(5)
            sizes.append(admin.hlen(key))
        assert max(sizes) <= 61 + len(("last_step", "stepped_back", "paused_until", "limit"))
        time.sleep(2 * SHORT_WINDOW)
        assert not admin.exists(key)

    def test_a_limit_that_differs_is_told(
        self, server: RedisServer, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        for limit in (100, 200, 200):
            limiter(server, name, limit).reserve(1)
        assert caplog.text.count("200 per minute in this process and 100 in another") == 1


class TestFairness:
    @pytest.mark.usefixtures("short_window")
    def test_a_large_request_is_not_overtaken_by_the_small_ones_of_other_processes(
        self, server: RedisServer, name: str
    ) -> None:
        """Each limiter stands for a process: they share nothing but the server."""
        done = threading.Event()

        def keep_busy() -> None:
            shared = limiter(server, name)
            while not done.is_set():
                shared.reserve(10)  # never settled: the ledger is always full

        threads = [threading.Thread(target=keep_busy) for _ in range(20)]
        for thread in threads:
            thread.start()
            time.sleep(SHORT_WINDOW / 10)  # so that not all bookings expire at the same time
        try:
            assert limiter(server, name).reserve(90, timeout=10).waited < 10
        finally:
            done.set()
            for thread in threads:
                thread.join()

    @pytest.mark.usefixtures("short_window")
    def test_a_killed_process_leaves_its_estimates_for_a_window_and_no_place(
        self, server: RedisServer, name: str
    ) -> None:
        admin, key = client(server), f"token-limit:{name}"
        settings = {"seconds": 60, "limit": 300, "window": SHORT_WINDOW}
        with MockServer("timeout*") as api:
            (worker,) = Fleet(
                server, name, {**settings, "api_url": api.url}, script="token_worker.py"
            ).processes
            while not any(field.startswith(b"caller:") for field in admin.hkeys(key)):
                time.sleep(0.02)
            worker.kill()
            worker.communicate()
        assert limiter(server, name, 300).reserve(300, timeout=20).waited < 20


class TestPause:
    def test_it_holds_all_processes(self, server: RedisServer, name: str, reserve: Method) -> None:
        limiter(server, name).pause(0.5)
        paused_at = time.monotonic()
        assert rejects(limiter(server, name), 1)
        reserve(limiter(server, name), 1)
        assert time.monotonic() - paused_at >= 0.45

    def test_the_key_lives_as_long_as_the_pause(self, server: RedisServer, name: str) -> None:
        limiter(server, name).pause(3600)
        assert client(server).ttl(f"token-limit:{name}") > 3500


class TestClock:
    @pytest.mark.usefixtures("short_window")
    def test_one_that_steps_back_costs_nothing(
        self, server: RedisServer, name: str, reserve: Method
    ) -> None:
        """The key is as it was written before the step: ten minutes ahead of the clock."""
        in_ten_minutes = (time.time() + 600) * 1000
        bucket = int(in_ten_minutes / (SHORT_WINDOW * 1000 / 60))
        fields = {"last_step": int(in_ten_minutes), bucket: 60}
        client(server).hset(f"token-limit:{name}", mapping=fields)
        shared = limiter(server, name)
        assert rejects(shared, 41)  # the ledger is still known
        reservation = reserve(shared, 40, 0)
        reservation.settle(30)
        assert shared.available == 10
        assert reserve(shared, 100, 20).waited < 20


class TestKey:
    @pytest.mark.parametrize("nonsense", [b"rubbish", b"\xff", b"-5", b"nan", b"inf", b"1e999"])
    def test_nonsense_in_it_is_ignored(
        self, nonsense: bytes, server: RedisServer, name: str, reserve: Method
    ) -> None:
        seconds = range(int(time.time()) - 1, int(time.time()) + 3)
        names = [
            "last_step",
            "stepped_back",
            "paused_until",
            "limit",
            "caller:a",
            "other",
            *seconds,
        ]
        client(server).hset(f"token-limit:{name}", mapping=dict.fromkeys(names, nonsense))
        client(server).hset(f"token-limit:{name}", nonsense, nonsense)
        shared = limiter(server, name)
        reserve(shared, 60, 0).settle(50)
        assert shared.available == 50
        assert "shared" in repr(shared)

    @pytest.mark.parametrize("write", ["set", "rpush", "sadd"])
    def test_a_key_of_another_type_is_written_over(
        self, write: str, server: RedisServer, name: str
    ) -> None:
        getattr(client(server), write)(f"token-limit:{name}", "rubbish")
        shared = limiter(server, name)
        shared.reserve(60, timeout=0)
        assert shared.available == 40
        assert "shared" in repr(shared)


class TestWithoutRedis:
    def test_a_server_that_is_killed_comes_back_with_what_was_used_meanwhile(
        self, own_server: RedisServer, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        shared = limiter(own_server, name, local_share=0.5)
        shared.reserve(20)
        own_server.kill()
        shared.reserve(30)
        assert rejects(shared, 11)  # 50, of which 10 and 30 are used
        own_server.start()
        time.sleep(1.1)
        shared.reserve(5)
        assert shared.available == 100 - 30 - 5  # the new server does not know of the 20
        assert "shared" in repr(shared)
        assert caplog.text.count("Redis can't be used") == 1

    def test_a_silent_server_holds_a_caller_for_the_socket_timeout_only(
        self, own_server: RedisServer, name: str, reserve: Method
    ) -> None:
        shared = limiter(own_server, name, timeout=0.3, local_share=1)
        reserve(shared, 10)
        with own_server.silenced():
            started_at = time.monotonic()
            reserve(shared, 10)
            assert time.monotonic() - started_at < 2
            assert "local" in repr(shared)

    def test_a_full_server_is_an_outage(self, own_server: RedisServer, name: str) -> None:
        client(own_server).config_set("maxmemory", 1)
        shared = limiter(own_server, name, local_share=1)
        shared.reserve(10)
        assert "local" in repr(shared)

    def test_a_flushed_server_starts_with_an_empty_ledger(
        self, own_server: RedisServer, name: str
    ) -> None:
        shared = limiter(own_server, name)
        reservation = shared.reserve(60)
        client(own_server).flushall()
        reservation.settle(50)
        assert shared.available == 50


class TestFleet:
    """Four processes with prompts of random sizes, against a server that enforces the limit."""

    def used_by_fleet(
        self, server: RedisServer, name: str, limit: int, window: float, windows: int
    ) -> float:
        """Return the used share of the allowance, after the checks of the server's log."""
        settings = {"limit": limit, "window": window, "seconds": window * windows}
        with MockServer(tokens_per_minute=limit, window=window) as api:
            workers = [{**settings, "api_url": api.url}] * 4
            assert Fleet(server, name, *workers, script="token_worker.py").results() == [0] * 4
            booked = list[float]()  # one entry per token
            for request in api.log:
                assert request.outcome == "200"
                words = len(request.body["messages"][0]["content"].split())
                booked += [request.arrived] * (words + MAX_TOKENS)
        assert most_in_any_window(booked, seconds=window) <= limit
        return len(booked) / (limit * windows)

    def test_no_429_and_90_percent_of_the_allowance(self, server: RedisServer, name: str) -> None:
        used = self.used_by_fleet(server, name, limit=6000, window=3.0, windows=3)
        print(f"{used:.1%} of the allowance")
        assert used >= 0.9

    @pytest.mark.skipif("SOAK_CALLS" not in os.environ, reason="two minutes: make soak")
    def test_soak_of_two_minutes(self, server: RedisServer, name: str) -> None:
        used = self.used_by_fleet(server, name, limit=60_000, window=60.0, windows=2)
        print(f"{used:.1%} of the allowance")
        assert used >= 0.9
