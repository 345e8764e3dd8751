"""Example 3 against a mocked API: how it paces its requests, and how it handles a 429."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
import responses

from conftest import FakeClock, RunScript
from support import CHAT_URL, completion, error_body, transcript, without_time

STATS = 'Stats: {"requests_made": %d, "last_request": "<YYYY-MM-DD HH:MM:SS>"}\n\n'


class Lesson:
    """Runs the script; the API takes time on the fake clock."""

    def __init__(
        self, live_api: responses.RequestsMock, clock: FakeClock, run_script: RunScript
    ) -> None:
        self._api, self._clock, self._run_script = live_api, clock, run_script

    def add_response(
        self, status: int = 200, *, seconds: float = 1.0, retry_after: str | None = None
    ) -> None:
        def respond(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
            self._clock.now += seconds
            headers = {} if retry_after is None else {"Retry-After": retry_after}
            body: dict[str, Any] = completion("fine") if status == 200 else error_body("Too fast")
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
        for seconds in (0.5, 1.0, 0.0):
            lesson.add_response(seconds=seconds)
        assert lesson.output() == transcript("03_rate_limits")
        assert clock.waits == [0.5]

    def test_fast_responses_are_paced_to_one_request_per_second(
        self, lesson: Lesson, clock: FakeClock
    ) -> None:
        for _ in range(3):
            lesson.add_response(seconds=0)
        assert lesson.output().endswith(
            "\n\nRequest 1: Success\n"
            "Request 2: Rate limiting: waiting 1s\nSuccess\n"
            "Request 3: Rate limiting: waiting 1s\nSuccess\n" + STATS % 3
        )
        assert clock.waits == [1.0, 1.0]


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("retry_after", "seconds"),
        [
            pytest.param("2", 2, id="as the server says"),
            pytest.param(None, 1, id="a second without Retry-After"),
            pytest.param("60", 60, id="a minute at most"),
        ],
    )
    def test_429_is_retried_once_after_the_wait(
        self, retry_after: str | None, seconds: int, lesson: Lesson, clock: FakeClock
    ) -> None:
        lesson.add_response(429, retry_after=retry_after, seconds=0)
        for _ in range(3):
            lesson.add_response()
        assert lesson.output().endswith(
            f"\n\nRequest 1: Rate limited. Waiting {seconds} seconds...\nSuccess\n"
            "Request 2: Success\nRequest 3: Success\n" + STATS % 3
        )
        assert clock.waits == [seconds]

    @pytest.mark.parametrize(
        ("rejections", "first_lines", "waits"),
        [
            pytest.param(
                ["2", "2"], "Rate limited. Waiting 2 seconds...\n", [2.0], id="rejected twice"
            ),
            pytest.param(["61"], "", [], id="asked to wait longer than a minute"),
        ],
    )
    def test_429_that_stays_is_an_error_and_the_lesson_goes_on(
        self,
        rejections: list[str],
        first_lines: str,
        waits: list[float],
        lesson: Lesson,
        clock: FakeClock,
    ) -> None:
        for retry_after in rejections:
            lesson.add_response(429, retry_after=retry_after)
        lesson.add_response()
        lesson.add_response()
        assert lesson.output().endswith(
            f"\n\nRequest 1: {first_lines}Error: Too fast\n"
            "Request 2: Success\nRequest 3: Success\n" + STATS % 2
        )
        assert clock.waits == pytest.approx(waits)  # each response takes a second: no more waits


def test_other_errors_are_not_retried_and_stats_count_successes_only(
    lesson: Lesson, clock: FakeClock
) -> None:
    for status in (401, 503, 500):
        lesson.add_response(status)
    assert lesson.output().endswith(
        "\n\nRequest 1: Error: Too fast\nRequest 2: Error: Too fast\nRequest 3: Error: Too fast\n"
        'Stats: {"requests_made": 0, "last_request": null}\n\n'
    )
    assert clock.waits == []
