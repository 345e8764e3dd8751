"""Lesson 6: its transcript, the log that it writes, and a log that can't be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import responses

from conftest import FakeClock, RunScript
from support import transcript

OUT = transcript("06_error_logger")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "errors.log"
    monkeypatch.setenv("MISTRAL_LOG_FILE", str(path))
    return path


def records(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("ascii").splitlines()]


class TestSimulatedResults:
    def test_it_prints_the_transcript_and_sends_no_chat_request(
        self, live_api: responses.RequestsMock, clock: FakeClock, run_script: RunScript
    ) -> None:
        assert run_script("06_error_logger")[:2] == (0, OUT)
        assert len(live_api.calls) == 1  # for the models
        assert clock.waits == []

    def test_log_has_one_json_line_per_result(self, log: Path, run_script: RunScript) -> None:
        run_script("06_error_logger")
        logged = [(each["type"], each["success"], each["error"]) for each in records(log)]
        assert [
            (*head, error and (error["class"], error["message"])) for *head, error in logged
        ] == [
            ("chat", True, None),
            ("chat", False, ("APITimeoutError", "Network timeout")),
            ("embedding", True, None),
            ("moderation", False, ("RateLimitError", "Rate limited")),
        ]

    def test_a_second_run_appends_to_the_log_and_counts_from_zero(
        self, log: Path, run_script: RunScript
    ) -> None:
        assert [run_script("06_error_logger").out for _ in range(2)] == [OUT, OUT]
        assert len(records(log)) == 8

    def test_a_log_that_cannot_be_written_is_one_sentence_and_exit_1(
        self, log: Path, run_script: RunScript
    ) -> None:
        log.mkdir()
        code, out, err = run_script("06_error_logger")
        assert (code, out) == (1, OUT)
        assert err.count(f"The log {log} can't be written (") == 1
        assert len(err.splitlines()) == 2  # Offline, and this


class TestRealCalls:
    def test_log_of_this_run_is_read_back_and_the_alert_fires_once(
        self, log: Path, run_script: RunScript
    ) -> None:
        first, second = (run_script("06_error_logger", "--faults", "ok,503,401") for _ in range(2))
        assert (first.code, first.out) == (second.code, second.out)
        assert first.out.count("ALERT: 67% of the last 3 requests failed") == 1
        assert first.out.count("\n  Call ") == 6
        assert "  Call 2: InternalServerError: Simulated failure\n" in first.out
        assert "  Call 3: AuthenticationError: Unauthorized\n" in first.out
        assert len(records(log)) == 12

    def test_a_log_that_cannot_be_written_is_exit_1(self, log: Path, run_script: RunScript) -> None:
        log.mkdir()
        code, out, err = run_script("06_error_logger", "--faults", "ok")
        assert code == 1
        assert "The log, read back" not in out
        assert "Traceback" not in err
