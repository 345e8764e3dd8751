"""Compare the awaited helpers with the async forms of other libraries."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiolimiter
import backoff
import circuitbreaker
import purgatory
import pybreaker
import stamina
import tenacity
from measure import OURS, in_turns, medians
from peers import file_logger
from pythonjsonlogger.json import JsonFormatter

from lib.circuit_breaker import CircuitBreaker
from lib.error_logger import ErrorLogger
from lib.pipeline import Pipeline
from lib.rate_limiter import RateLimiter
from lib.retry import Retrier
from lib.token_limiter import TokenLimiter

AsyncCall = Callable[[], Awaitable[object]]
TASKS = 1000


async def answer() -> str:
    return "Hello!"


def never(error: BaseException) -> bool:
    return False


def costs(calls: dict[str, AsyncCall], rounds: int = 60, batch: int = 1000) -> dict[str, float]:
    """Return the median cost of one awaited call in µs."""

    async def cost_of(call: AsyncCall) -> float:
        start = time.perf_counter()
        for _ in range(batch):
            await call()
        return (time.perf_counter() - start) / batch * 1e6

    with asyncio.Runner() if hasattr(asyncio, "Runner") else _Loop() as runner:
        measures = {
            name: lambda call=call: runner.run(cost_of(call)) for name, call in calls.items()
        }
        return medians(in_turns(measures, rounds))


def retries() -> dict[str, float]:
    ours = Retrier(max_attempts=3)
    with_tenacity = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_random_exponential(multiplier=1, max=30),
        reraise=True,
    )
    return costs(
        {
            OURS: lambda: ours.call_async(answer),
            "tenacity": lambda: with_tenacity(answer),
            "stamina": stamina.retry(on=never, attempts=3, timeout=None)(answer),
            "backoff": backoff.on_exception(backoff.expo, Exception, max_tries=3, logger=None)(
                answer
            ),
            "the bare await": answer,
        }
    )


def breakers() -> dict[str, float]:
    ours = CircuitBreaker("api")
    with_purgatory = asyncio.run(
        purgatory.AsyncCircuitBreakerFactory(default_threshold=5, default_ttl=60).get_breaker("api")
    )

    async def call_with_purgatory() -> object:
        async with with_purgatory:
            return await answer()

    return costs(
        {
            OURS: lambda: ours.call_async(answer),
            "circuitbreaker (no lock)": circuitbreaker.CircuitBreaker()(answer),
            "purgatory (no lock)": call_with_purgatory,
            "the bare await": answer,
        }
    )


def pipelines() -> dict[str, float]:
    """Compare all helpers in a Pipeline with other libraries, nested by hand in the same order.

    The others have no token limiter.
    """
    pipeline = Pipeline(
        retrier=Retrier(max_attempts=3),
        breaker=CircuitBreaker("api"),
        limiter=RateLimiter(10**9),
        token_limiter=TokenLimiter(10**9),
        logger=ErrorLogger(os.devnull),
    )
    with_tenacity = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_random_exponential(multiplier=1, max=30),
        reraise=True,
    )
    with_pybreaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60)
    with_aiolimiter = aiolimiter.AsyncLimiter(10**9, 60)

    async def one_attempt() -> str:
        with with_pybreaker.calling():
            async with with_aiolimiter:
                return await answer()

    with contextlib.ExitStack() as stack:
        logger = file_logger(Path(os.devnull), JsonFormatter([], timestamp=True), stack)
        logger.setLevel(logging.INFO)

        async def nested() -> str:
            result = await with_tenacity(one_attempt)
            facts = {"success": True, "error": None, "context": {"attempts": 1}}
            logger.info({"type": "call", **facts})
            return result

        return costs(
            {
                OURS: lambda: pipeline.call_async(lambda attempt: answer()),
                "tenacity, pybreaker, aiolimiter, logging": nested,
                "the bare await": answer,
            }
        )


def waiting_tasks() -> dict[str, float]:
    """Return the CPU µs per start while 1,000 tasks wait for 500 starts per second."""

    def start(acquire: Callable[[], Awaitable[Any]]) -> float:
        async def main() -> float:
            await acquire()
            before = time.process_time()
            await asyncio.gather(*[acquire() for _ in range(TASKS)])
            return (time.process_time() - before) / TASKS * 1e6

        return asyncio.run(main())

    def with_aiolimiter() -> float:
        # One start at a time, as ours: a larger first argument allows a burst.
        limiter = aiolimiter.AsyncLimiter(1, 1 / 500)
        return start(limiter.acquire)

    measures = {
        OURS: lambda: start(RateLimiter(60 * 500).acquire_async),
        "aiolimiter": with_aiolimiter,
    }
    return medians(in_turns(measures, rounds=3))


class _Loop:
    """asyncio.Runner for Python 3.10."""

    def __enter__(self) -> _Loop:
        self._loop = asyncio.new_event_loop()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.close()

    def run(self, main: Any) -> Any:
        return self._loop.run_until_complete(main)
