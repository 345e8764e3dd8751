"""Lesson 3 against a mocked API: how it paces its requests, and how it handles a 429."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
import responses

from conftest import FakeClock, RunScript
from support import CHAT_URL, completion, error_body, transcript, without_time

INTERVAL = 1 / 0.985  # seconds between two requests


class Lesson:
    """Runs the script; the API takes time on the fake clock."""

    def __init__(
        self, live_api: responses.RequestsMock, clock: FakeClock, run_script: RunScript
    ) -> None:
        self._api, self._clock, self._run_script = live_api, clock, run_script

    def add_response(
        self, status: int = 200, *, seconds: float = 0.0, retry_after: str | None = None
    ) -> None:
        def respond(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
            self._clock.now += seconds
            headers = {} if retry_after is None else {"Retry-After": retry_after}
            body: dict[str, Any] = (
                completion("fine") if status == 200 else error_body("Rate limit exceeded")
            )
            return status, headers, json.dumps(body)

        self._api.add_callback(responses.POST, CHAT_URL, callback=respond)

    def output(self) -> str:
        code, out, err = self._run_script("03_rate_limits")
        assert code == 0, err
        return without_time(out)


@pytest.fixture
def lesson(live_api: responses.RequestsMock, clock: FakeClock, run_script: RunScript) -> Lesson:
    return Lesson(live_api, clock, run_script)


class TestPacing:
    def test_wait_is_what_remains_of_a_second_after_the_start(
        self, lesson: Lesson, clock: FakeClock
    ) -> None:
        for seconds in (0.5, 1.1, 0.0):
            lesson.add_response(seconds=seconds)
        assert lesson.output() == transcript("03_rate_limits")
        assert clock.waits == pytest.approx([INTERVAL - 0.5])

    @pytest.mark.parametrize(
        ("seconds", "shown"), [(0.9, None), (0.6, "0.5"), (0.3, "0.5"), (0.2, "1")]
    )
    def test_the_wait_is_shown_to_the_nearest_half_second(
        self, lesson: Lesson, seconds: float, shown: str | None
    ) -> None:
        for _ in range(3):
            lesson.add_response(seconds=seconds)
        line = "Success" if shown is None else f"Rate limiting: waiting {shown}s"
        assert f"Request 2: {line}\n" in lesson.output()

    def test_fast_responses_are_paced_to_one_request_per_second(
        self, lesson: Lesson, clock: FakeClock
    ) -> None:
        for _ in range(3):
            lesson.add_response()
        assert "Request 1: Success\nRequest 2: Rate limiting: waiting 1s\n" in lesson.output()
        assert clock.waits == pytest.approx([INTERVAL, INTERVAL])


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("rejections", "scenario", "waits"),
        [
            pytest.param(["2"], "03_retry_after", [2, INTERVAL, INTERVAL], id="as the server says"),
            pytest.param(
                [None],
                "03_no_retry_after",
                [INTERVAL, INTERVAL, INTERVAL],
                id="a second without it",
            ),
            pytest.param(
                ["2", "2"], "03_rejected_twice", [2, INTERVAL, INTERVAL], id="retried only once"
            ),
        ],
    )
    def test_429_is_retried_after_the_wait(
        self,
        rejections: list[str | None],
        scenario: str,
        waits: list[float],
        lesson: Lesson,
        clock: FakeClock,
    ) -> None:
        for retry_after in rejections:
            lesson.add_response(429, retry_after=retry_after)
        for _ in range(4 - len(rejections)):
            lesson.add_response()
        assert lesson.output() == transcript(f"failure_scenarios/{scenario}")
        assert clock.waits == pytest.approx(waits)

    @pytest.mark.parametrize(
        ("retry_after", "line", "waits"),
        [
            ("60", "Rate limited. Waiting 60 seconds...", [60, INTERVAL, INTERVAL]),
            ("61", "Error: Rate limit exceeded", [INTERVAL, INTERVAL]),
        ],
    )
    def test_a_minute_is_the_longest_wait(
        self, retry_after: str, line: str, waits: list[float], lesson: Lesson, clock: FakeClock
    ) -> None:
        lesson.add_response(429, retry_after=retry_after)
        for _ in waits:
            lesson.add_response()
        assert f"Request 1: {line}\n" in lesson.output()
        assert clock.waits == pytest.approx(waits)


def test_other_errors_are_not_retried_and_stats_count_successes_only(
    lesson: Lesson, clock: FakeClock
) -> None:
    for status in (401, 503, 500):
        lesson.add_response(status, seconds=1.1)
    out = lesson.output()
    assert out.count("Error: Rate limit exceeded\n") == 3
    assert out.endswith('Stats: {"requests_made": 0, "last_request": null}\n\n')
    assert clock.waits == []
