"""Lesson 2 against a mocked API: what it prints, and how long it waits."""

from __future__ import annotations

from typing import Any

import pytest
import requests
import responses

from conftest import FakeClock, RunScript
from support import CHAT_URL, completion, error_body, transcript

SUCCESS: dict[str, Any] = {"json": completion("Test retry logic response")}
DOWN: dict[str, Any] = {"status": 503, "json": error_body("Simulated failure")}
WRONG_KEY: dict[str, Any] = {"status": 401, "json": {"detail": "Unauthorized"}}
NOT_JSON: dict[str, Any] = {"body": "{"}
DROPPED: dict[str, Any] = {"body": requests.ConnectionError()}


def limited(retry_after: str) -> dict[str, Any]:
    body = error_body("Too fast")
    return {"status": 429, "json": body, "headers": {"Retry-After": retry_after}}


def printed(name: str) -> str:
    return transcript(f"failure_scenarios/{name}")


@pytest.mark.parametrize(
    ("responses_sent", "out", "waits"),
    [
        pytest.param([SUCCESS], transcript("02_backoff"), [], id="success at once"),
        pytest.param([DOWN, DOWN, SUCCESS], printed("02_recovers"), [1, 2], id="waits double"),
        pytest.param([DOWN, DOWN, DOWN], printed("02_gives_up"), [1, 2], id="attempts exhausted"),
        pytest.param([WRONG_KEY], printed("02_no_retry_after_401"), [], id="permanent error"),
        pytest.param(
            [limited("2"), DROPPED, SUCCESS], printed("02_retry_after"), [2, 2], id="Retry-After"
        ),
        pytest.param(
            [limited("86400")],
            "  Attempt 1/3... Failed (retryable). Giving up: Retry-After too long.\n"
            "Failed: Too fast\n\n",
            [],
            id="Retry-After too long",
        ),
        pytest.param(
            [DOWN, DOWN, NOT_JSON],
            "  Attempt 3/3... Failed (non-retryable): 200\n"
            "Failed: the response is truncated or not JSON\n\n",
            [1, 2],
            id="permanent error at the last attempt",
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
    outcome = run_script("02_backoff")
    assert outcome.code == 0
    assert outcome.out.endswith(out)
    assert clock.waits == waits


def test_stderr_suggests_faults_if_there_are_none(clock: FakeClock, run_script: RunScript) -> None:
    assert "try --faults 503,503.\n" in run_script("02_backoff").err
    assert "try --faults" not in run_script("02_backoff", "--faults", "503,503").err
