"""Example 3 against a mocked API that takes its time: what it prints, and how long it waits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
import responses

from conftest import FakeClock
from support import (
    CHAT_URL,
    completion,
    error_body,
    run_in_process,
    transcript,
    without_time,
)

STATS = 'Stats: {"requests_made": %d, "last_request": "<YYYY-MM-DD HH:MM:SS>"}\n\n'


def add_answer(
    api: responses.RequestsMock,
    clock: FakeClock,
    *,
    seconds: float = 0.0,
    status: int = 200,
    retry_after: str | None = None,
) -> None:
    """The next answer comes after so many seconds of the fake clock."""

    def answer(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        clock.now += seconds
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        body: dict[str, Any] = completion("fine") if status == 200 else error_body("Too fast")
        return status, headers, json.dumps(body)

    api.add_callback(responses.POST, CHAT_URL, callback=answer)


def lesson(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the script; returns what it printed below its title."""
    assert run_in_process("03_rate_limits", monkeypatch) == 0
    title, body = without_time(capsys.readouterr().out).split("\n\n", 1)
    assert title == "=== Example 3: Rate Limit Handling ==="
    return body


def test_only_what_is_left_of_a_second_is_waited_start_to_start(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seconds in (0.5, 1.0, 0.0):
        add_answer(api, clock, seconds=seconds)

    assert run_in_process("03_rate_limits", monkeypatch) == 0

    assert without_time(capsys.readouterr().out) == transcript("03_rate_limits")
    assert clock.waits == [0.5]


def test_answers_that_come_at_once_are_paced_to_one_a_second(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(3):
        add_answer(api, clock)

    assert lesson(monkeypatch, capsys) == (
        "Request 1: Success\n"
        "Request 2: Rate limiting: waiting 1s\nSuccess\n"
        "Request 3: Rate limiting: waiting 1s\nSuccess\n" + STATS % 3
    )
    assert clock.waits == [1.0, 1.0]


@pytest.mark.parametrize(
    ("retry_after", "announced", "waited"),
    [
        pytest.param("2", "2", 2.0, id="as the server says"),
        pytest.param(None, "1", 1.0, id="a second, if it does not say"),
        pytest.param("60", "60", 60.0, id="a minute at most"),
    ],
)
def test_a_429_is_waited_out_once_and_asked_again(
    retry_after: str | None,
    announced: str,
    waited: float,
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_answer(api, clock, status=429, retry_after=retry_after)
    for _ in range(3):
        add_answer(api, clock, seconds=1.0)

    assert lesson(monkeypatch, capsys) == (
        f"Request 1: Rate limited. Waiting {announced} seconds...\nSuccess\n"
        "Request 2: Success\nRequest 3: Success\n" + STATS % 3
    )
    assert clock.waits == [waited]


@pytest.mark.parametrize(
    ("refusals", "waits"),
    [
        pytest.param(["2", "2"], [2.0], id="refused again after the wait"),
        pytest.param(["61"], [], id="asked to wait longer than a minute"),
    ],
)
def test_a_refusal_that_does_not_pass_is_an_error_and_the_lesson_goes_on(
    refusals: list[str],
    waits: list[float],
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for retry_after in refusals:
        add_answer(api, clock, seconds=1.0, status=429, retry_after=retry_after)
    add_answer(api, clock, seconds=1.0)
    add_answer(api, clock, seconds=1.0)

    body = lesson(monkeypatch, capsys)

    assert body.splitlines()[len(waits)].endswith("Error: Too fast")
    assert body.endswith("Request 2: Success\nRequest 3: Success\n" + STATS % 2)
    # A second passed with each answer, so that the next slot is free; but not the last wait.
    assert clock.waits == pytest.approx(waits)


def test_other_errors_are_not_waited_for_and_stats_count_successes_only(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for status in (401, 503, 500):
        add_answer(api, clock, seconds=1.0, status=status)

    assert lesson(monkeypatch, capsys) == (
        "Request 1: Error: Too fast\nRequest 2: Error: Too fast\nRequest 3: Error: Too fast\n"
        'Stats: {"requests_made": 0, "last_request": null}\n\n'
    )
    assert clock.waits == []
