"""Example 2 against a mocked API: what it prints, and how long it waits."""

from __future__ import annotations

from typing import Any

import pytest
import responses

from conftest import FakeClock, RunScript
from support import CHAT_URL, completion, error_body, transcript

SUCCESS: dict[str, Any] = {"json": completion("Test retry logic response")}
DOWN: dict[str, Any] = {"status": 503, "json": error_body("Down")}
WRONG_KEY: dict[str, Any] = {"status": 401, "json": {"detail": "Wrong key"}}
NOT_JSON: dict[str, Any] = {"body": "{"}
WAIT_1 = "  Attempt 1/3... Failed (retryable). Waiting 1s...\n"
WAIT_2 = "  Attempt 2/3... Failed (retryable). Waiting 2s...\n"
RESULT = "Final result: Test retry logic response\n"


def limited(retry_after: str) -> dict[str, Any]:
    body = error_body("Too fast")
    return {"status": 429, "json": body, "headers": {"Retry-After": retry_after}}


def lesson(lines: str) -> str:
    return f"=== Example 2: Retry with Exponential Backoff ===\n\nTesting retry logic:\n{lines}\n"


@pytest.mark.parametrize(
    ("responses_sent", "out", "waits"),
    [
        pytest.param([SUCCESS], transcript("02_backoff"), [], id="success at once"),
        pytest.param(
            [DOWN, {**DOWN, "status": 500}, SUCCESS],
            lesson(WAIT_1 + WAIT_2 + "  Attempt 3/3... Success!\n" + RESULT),
            [1.0, 2.0],
            id="waits double",
        ),
        pytest.param(
            [DOWN, DOWN, DOWN],
            lesson(
                f"{WAIT_1}{WAIT_2}  Attempt 3/3... Failed (retryable).\n"
                "  All retries exhausted.\nFailed: Down\n"
            ),
            [1.0, 2.0],
            id="no wait after the last attempt",
        ),
        pytest.param(
            [WRONG_KEY],
            lesson("  Attempt 1/3... Failed (non-retryable): 401\nFailed: Wrong key\n"),
            [],
            id="permanent error",
        ),
        pytest.param(
            [DOWN, DOWN, NOT_JSON],
            lesson(
                f"{WAIT_1}{WAIT_2}  Attempt 3/3... Failed (non-retryable): 200\n"
                "Failed: the response is truncated or not JSON\n"
            ),
            [1.0, 2.0],
            id="permanent error at the last attempt",
        ),
        pytest.param(
            [limited("7"), SUCCESS],
            lesson(WAIT_1.replace("1s", "7s") + "  Attempt 2/3... Success!\n" + RESULT),
            [7.0],
            id="Retry-After",
        ),
        pytest.param(
            [limited("86400")],
            lesson(
                "  Attempt 1/3... Failed (retryable). Giving up: Retry-After too long.\n"
                "Failed: Too fast\n"
            ),
            [],
            id="Retry-After too long",
        ),
    ],
)
def test_attempts_and_waits(
    responses_sent: list[dict[str, Any]],
    out: str,
    waits: list[float],
    live_api: responses.RequestsMock,
    clock: FakeClock,
    run_script: RunScript,
) -> None:
    for response in responses_sent:
        live_api.post(CHAT_URL, **response)
    assert run_script("02_backoff")[:2] == (0, out)
    assert clock.waits == waits
