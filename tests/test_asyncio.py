"""The helpers in an async program: ``asyncio.to_thread`` runs them beside the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from lib.circuit_breaker import CircuitBreaker
from lib.client import MistralClient
from lib.error_logger import ErrorLogger
from lib.errors import InternalServerError
from lib.mock_server import MockServer
from lib.rate_limiter import RateLimiter
from lib.resilient_client import ResilientMistralClient, is_unhealthy
from lib.retry import Retrier


def hello(name: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": name}]


def test_tasks_share_a_client_and_every_one_gets_its_own_answer(tmp_path: Path) -> None:
    """Ten tasks at once, and the first four requests fail."""
    log = tmp_path / "errors.log"

    async def ask_all(client: MistralClient) -> list[str]:
        robust = ResilientMistralClient(
            client,
            retrier=Retrier(max_attempts=6, base_delay=0.01),
            breaker=CircuitBreaker("api", 100, counts_as_failure=is_unhealthy),
            limiter=RateLimiter(60_000),
            logger=ErrorLogger(log),
        )
        names = [f"task {number}" for number in range(10)]
        tasks = [asyncio.to_thread(robust.chat, hello(name)) for name in names]
        return [completion.content for completion in await asyncio.gather(*tasks)]

    with MockServer("503,drop,429:0.01,500") as server:
        with MistralClient("key", base_url=server.url) as client:
            answers = asyncio.run(ask_all(client))
        requests = len(server.log)
    assert answers == [f"task {number} response" for number in range(10)]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["success"] for line in lines] == [True] * 10
    assert sum(line["context"]["attempts"] for line in lines) == requests == 14


def test_the_event_loop_goes_on_while_a_retry_waits() -> None:
    """The wait ends only when the loop, which must not be blocked by it, says so."""

    async def program() -> str:
        waiting, loop = asyncio.Event(), asyncio.get_running_loop()
        may_go_on = threading.Event()

        def on_wait(*_: object) -> None:
            loop.call_soon_threadsafe(waiting.set)
            assert may_go_on.wait(timeout=30)

        outcomes = iter([InternalServerError(503, "down"), None])

        def operation() -> str:
            if error := next(outcomes):
                raise error
            return "answer"

        retrier = Retrier(base_delay=0, on_wait=on_wait)
        task = asyncio.create_task(asyncio.to_thread(retrier.call, operation))
        await asyncio.wait_for(waiting.wait(), timeout=30)
        may_go_on.set()
        return await task

    assert asyncio.run(program()) == "answer"


def test_the_original_error_arrives_in_the_task_and_trips_the_breaker_for_all() -> None:
    async def program(client: MistralClient) -> list[str]:
        breaker = CircuitBreaker("api", failure_threshold=3, counts_as_failure=is_unhealthy)

        async def ask() -> None:
            await asyncio.to_thread(breaker.call, lambda: client.chat(hello("Hello!")))

        first = await asyncio.gather(*[ask() for _ in range(3)], return_exceptions=True)
        then = await asyncio.gather(*[ask() for _ in range(3)], return_exceptions=True)
        return [type(outcome).__name__ for outcome in [*first, *then]]

    with MockServer("503*") as server:
        with MistralClient("key", base_url=server.url) as client:
            names = asyncio.run(program(client))
        assert len(server.log) == 3
    assert names == ["InternalServerError"] * 3 + ["CircuitOpenError"] * 3


def test_a_task_that_is_cancelled_stops_waiting_and_leaves_the_helpers_in_order() -> None:
    """The thread behind it goes on to its end: what can't be taken back is its request."""

    async def program() -> str:
        breaker, begun, may_end = CircuitBreaker("api"), asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def operation() -> str:
            loop.call_soon_threadsafe(begun.set)
            assert may_end.wait(timeout=30)
            return "answer"

        task = asyncio.create_task(asyncio.to_thread(breaker.call, operation))
        await asyncio.wait_for(begun.wait(), timeout=30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_end.set()
        return await asyncio.to_thread(breaker.call, lambda: "next answer")

    assert asyncio.run(program()) == "next answer"
