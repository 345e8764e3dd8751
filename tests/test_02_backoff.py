"""Example 2 against a mocked API: what it prints, and how long it waits."""

from __future__ import annotations

from typing import Any

import pytest
import responses

from conftest import FakeClock
from support import CHAT_URL, completion, error_body, run_in_process, transcript

HEADING = "=== Example 2: Retry with Exponential Backoff ===\n\nTesting retry logic:\n"


def test_success_at_once_prints_the_transcript_and_waits_for_nothing(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.post(CHAT_URL, json=completion("Test retry logic response"))

    assert run_in_process("02_backoff", monkeypatch) == 0

    assert capsys.readouterr().out == transcript("02_backoff")
    assert clock.waits == []


def test_two_failures_are_waited_out_one_second_then_two(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.post(CHAT_URL, status=503, json=error_body("Service unavailable."))
    api.post(CHAT_URL, status=500, json=error_body("Service unavailable."))
    api.post(CHAT_URL, json=completion("Test retry logic response"))

    assert run_in_process("02_backoff", monkeypatch) == 0

    assert capsys.readouterr().out == HEADING + (
        "  Attempt 1/3... Failed (retryable). Waiting 1s...\n"
        "  Attempt 2/3... Failed (retryable). Waiting 2s...\n"
        "  Attempt 3/3... Success!\n"
        "Final result: Test retry logic response\n\n"
    )
    assert clock.waits == [1.0, 2.0]


def test_the_last_failure_is_not_waited_for(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(3):
        api.post(CHAT_URL, status=503, json=error_body("Service unavailable."))

    assert run_in_process("02_backoff", monkeypatch) == 0

    assert capsys.readouterr().out == HEADING + (
        "  Attempt 1/3... Failed (retryable). Waiting 1s...\n"
        "  Attempt 2/3... Failed (retryable). Waiting 2s...\n"
        "  Attempt 3/3... Failed (retryable).\n"
        "  All retries exhausted.\n"
        "Failed: Service unavailable.\n\n"
    )
    assert clock.waits == [1.0, 2.0]


def test_an_error_that_stays_is_not_retried(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.post(CHAT_URL, status=401, json={"detail": "Invalid API Key"})

    assert run_in_process("02_backoff", monkeypatch) == 0

    assert capsys.readouterr().out == HEADING + (
        "  Attempt 1/3... Failed (non-retryable): 401\nFailed: Invalid API Key\n\n"
    )
    assert clock.waits == []


def test_retry_after_is_waited_for_instead_of_the_backoff(
    api: responses.RequestsMock, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.post(CHAT_URL, status=429, json=error_body("Rate limit exceeded"),
             headers={"Retry-After": "7"})  # fmt: skip
    api.post(CHAT_URL, json=completion("Test retry logic response"))

    assert run_in_process("02_backoff", monkeypatch) == 0

    assert clock.waits == [7.0]


@pytest.mark.parametrize(
    ("last", "line"),
    [
        pytest.param({"status": 401}, "401", id="a status"),
        pytest.param({"body": "<html>"}, "200", id="a 2xx that is not JSON"),
    ],
)
def test_an_error_that_stays_is_named_in_the_last_attempt_too(
    last: dict[str, Any],
    line: str,
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        api.post(CHAT_URL, status=503, json=error_body("Service unavailable."))
    api.post(CHAT_URL, **last)

    assert run_in_process("02_backoff", monkeypatch) == 0

    out = capsys.readouterr().out
    assert f"  Attempt 3/3... Failed (non-retryable): {line}\n" in out
    assert "exhausted" not in out


def test_a_wait_that_is_too_long_is_not_waited_for(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.post(CHAT_URL, status=429, json=error_body("Later"), headers={"Retry-After": "86400"})

    assert run_in_process("02_backoff", monkeypatch) == 0

    line = "  Attempt 1/3... Failed (retryable). Giving up: Retry-After too long.\nFailed: Later\n"
    assert line in capsys.readouterr().out
    assert clock.waits == []
