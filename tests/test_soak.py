"""The soak test: 16 threads, every fault there is, and all counts must agree.

This file is also the command that makes the calls, behind the other tests.
``SOAK_CALLS=20000 python -m pytest tests/test_soak.py`` makes it last longer.
"""

from __future__ import annotations

import gc
import json
import math
import os
import random
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import Commands
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError
from lib.client import MistralClient
from lib.error_logger import ErrorLogger, Metrics
from lib.errors import MistralError, error_info
from lib.mock_server import MockServer
from lib.rate_limiter import OnWait, RateLimiter
from lib.resilient_client import ResilientMistralClient
from lib.retry import Retrier, RetryBudget
from support import ROOT, StartTimes, most_in_any_window, run, run_in_threads

CALLS = int(os.environ.get("SOAK_CALLS") or 320)
THREADS = 16
PER_SECOND = 200
TIMEOUT = 1.5  # seconds; long enough for a good response on a busy machine
HELLO = [{"role": "user", "content": "Hello!"}]
OFTEN = ["ok"] * 10 + ["ok*3", "429:0.005", "503", "500", "drop", "badjson", "slow:0.02"]
SELDOM = [
    "noquota", "drip:0.02",
    "400", "401", "402", "403", "404", "408", "409", "413", "418", "422", "429", "429:0",
    "429:0.02", "501", "502", "504", "520", "599", "html:404", "html:502", "badjson", "cut",
]  # fmt: skip


def fault_script(words: int) -> str:
    """Return a fault script, the same each time: every kind of fault, mostly good responses."""
    chance = random.Random(26)
    trip = ["503*18", "ok*8"]  # all threads fail at the same time, which opens the circuit
    timeouts = ["timeout"] * (1 + words // 400)  # early, so that they overlap with the rest
    each_once = chance.sample([*SELDOM, *OFTEN], len(SELDOM) + len(OFTEN))
    mixed = [
        chance.choice(SELDOM if number % 10 == 0 else OFTEN) for number in range(words * 9 // 10)
    ]
    by_chance = ["503@5%", "drop@2%"]
    return ",".join([*trip, *timeouts, *each_once, *mixed, *by_chance])


ERRORS = {
    "drop": "APIConnectionError",
    "200 (cut)": "APIConnectionError",
    "timeout": "APITimeoutError",
    "200 (drip)": "APITimeoutError",
    "429 (noquota)": "InsufficientQuotaError",
    "200 (badjson)": "APIResponseValidationError",
    "200 (slow)": "",
    "200": "",
}


def error_for(outcome: str) -> str:
    """Return the error that an outcome in the server's log must become; "" for a success."""
    return ERRORS[outcome] if outcome in ERRORS else error_info(int(outcome[:3])).error.__name__


@dataclass
class Soak:
    """What all sides recorded of the same calls; "" stands for a success."""

    outcomes: list[str]  # the callers: the error's name
    failed_attempts: list[str]  # the retrier: the error's name
    metrics: Metrics
    lines: list[dict[str, Any]]
    server_outcomes: list[str]
    starts: list[float]
    bytes_kept: int  # by lib and requests, of what the last fifth allocated
    threads_left: list[str]


COMMANDS = {"soak": partial(run, __file__, PYTHONPATH=str(ROOT))}


@pytest.fixture(scope="module")
def soak(commands: Commands) -> Soak:
    """The calls were made once; each test checks another side of them."""
    _, out, err = commands("soak")
    assert out, err
    return Soak(**json.loads(out))


def run_soak(log: Path, times: StartTimes) -> Soak:
    """Make the calls; the memory that is kept of the last fifth shows a leak."""
    outcomes: list[str] = []
    failed_attempts: list[str] = []
    starts: list[float] = []

    class NotedLimiter(RateLimiter):
        def acquire(self, timeout: float | None = None, *, on_wait: OnWait = None) -> float:
            starts.append(times.of(super().acquire))
            return 0.0

    def note(_attempt: int, error: Exception, _detail: object) -> None:
        failed_attempts.append(type(error).__name__)

    def make(calls: Iterator[int]) -> None:
        for _ in calls:  # shared: each thread takes the next one when it is free
            try:
                robust.chat(HELLO)
                outcomes.append("")
            except (MistralError, CircuitOpenError) as error:
                outcomes.append(type(error).__name__)
                if isinstance(error, CircuitOpenError):
                    time.sleep(0.2)

    threads = set(threading.enumerate())
    with MockServer(fault_script(CALLS)) as server, MistralClient(
        "key", base_url=server.url, timeout=TIMEOUT, total_timeout=TIMEOUT
    ) as client:  # fmt: skip
        logger = ErrorLogger(log)
        robust = ResilientMistralClient(
            client,
            retrier=Retrier(
                3,
                base_delay=0.01,
                max_delay=0.05,
                budget=RetryBudget(math.inf),
                on_wait=note,
                on_give_up=note,
            ),
            breaker=CircuitBreaker("soak", failure_threshold=10, recovery_timeout=0.05),
            limiter=NotedLimiter(60 * PER_SECOND),
            logger=logger,
        )
        first, last = iter(range(CALLS * 4 // 5)), iter(range(CALLS // 5))
        run_in_threads(THREADS, lambda: make(first))
        tracemalloc.start()
        run_in_threads(THREADS, lambda: make(last))
        bytes_kept = memory_in_use()
        tracemalloc.stop()
        server_outcomes = [request.outcome for request in server.log]
    return Soak(
        outcomes=outcomes,
        failed_attempts=failed_attempts,
        metrics=logger.metrics(),
        lines=[json.loads(line) for line in log.read_text().splitlines()],
        server_outcomes=server_outcomes,
        starts=starts,
        bytes_kept=bytes_kept,
        threads_left=[thread.name for thread in threading.enumerate() if thread not in threads],
    )


def memory_in_use() -> int:
    """Return the bytes that lib without its server, and requests, allocated since the start."""
    gc.collect()
    filters = [
        tracemalloc.Filter(True, str(ROOT / "lib" / "*")),
        tracemalloc.Filter(True, "*/site-packages/*"),
        tracemalloc.Filter(False, str(ROOT / "lib" / "mock_server" / "*")),
    ]
    statistics = tracemalloc.take_snapshot().filter_traces(filters).statistics("filename")
    return sum(statistic.size for statistic in statistics)


class TestSoak:
    def test_every_call_ends_in_a_success_or_a_named_error(self, soak: Soak) -> None:
        """Any other error would have ended the soak."""
        assert len(soak.outcomes) == CALLS * 4 // 5 + CALLS // 5
        made = [outcome for outcome in soak.outcomes if outcome != "CircuitOpenError"]
        assert made.count("") > len(made) / 2

    def test_every_class_of_error_occurred(self, soak: Soak) -> None:
        assert len({error_for(outcome) for outcome in soak.server_outcomes}) == 16
        assert "CircuitOpenError" in soak.outcomes

    def test_metrics_agree_with_the_callers(self, soak: Soak) -> None:
        failures = Counter(filter(None, soak.outcomes))
        assert soak.metrics["total_requests"] == len(soak.outcomes)
        assert soak.metrics["successful"] == soak.outcomes.count("")
        assert soak.metrics["failed"] == failures.total()
        assert soak.metrics["errors_by_type"] == dict(failures)

    def test_log_agrees_with_the_callers(self, soak: Soak) -> None:
        logged = [line["error"]["class"] if line["error"] else "" for line in soak.lines]
        assert Counter(logged) == Counter(soak.outcomes)
        assert all(line["success"] == (line["error"] is None) for line in soak.lines)

    def test_server_log_agrees_with_the_attempts(self, soak: Soak) -> None:
        on_the_server = Counter(error_for(outcome) for outcome in soak.server_outcomes)
        here = Counter(soak.failed_attempts)
        del here["CircuitOpenError"]  # those never reached the server
        assert on_the_server.pop("") == soak.outcomes.count("")
        assert on_the_server == here
        attempts = sum(line["context"]["attempts"] for line in soak.lines)
        assert attempts == len(soak.server_outcomes)

    def test_rate_limit_holds_in_any_window(self, soak: Soak) -> None:
        # A call whose circuit opens while it waits for its slot is not sent.
        assert len(soak.starts) >= len(soak.server_outcomes)
        for seconds in (0.1, 0.5, 1.0, 60.0):
            allowed = (seconds + 0.02) * PER_SECOND + 1  # 20 ms for threads that woke late
            assert most_in_any_window(soak.starts, seconds) <= allowed

    def test_no_thread_is_left(self, soak: Soak) -> None:
        assert soak.threads_left == []

    def test_memory_is_flat(self, soak: Soak) -> None:
        """What is kept is the last hundred errors and a connection for each thread."""
        assert soak.bytes_kept < 100_000


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as monkeypatch:
        print(json.dumps(asdict(run_soak(Path("errors.log"), StartTimes(monkeypatch)))))
