"""Example 6: its transcript, the file it writes, and a log that cannot be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import responses

from conftest import FakeClock
from support import run_in_process, transcript


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the script writes."""
    path = tmp_path / "errors.log"
    monkeypatch.setenv("MISTRAL_LOG_FILE", str(path))
    return path


def records(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("ascii").splitlines()]


def test_it_prints_the_transcript_sends_no_request_and_waits_for_nothing(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The API has no answer at hand: a request would fail."""
    assert run_in_process("06_error_logger", monkeypatch) == 0

    assert capsys.readouterr().out == transcript("06_error_logger")
    assert len(api.calls) == 0
    assert clock.waits == []


def test_the_file_has_one_line_of_json_for_each_result(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_process("06_error_logger", monkeypatch)

    assert [(record["type"], record["success"]) for record in records(log)] == [
        ("chat", True),
        ("chat", False),
        ("embedding", True),
        ("moderation", False),
    ]
    errors = [record["error"] for record in records(log)]
    assert [error and (error["class"], error["message"]) for error in errors] == [
        None,
        ("APITimeoutError", "Network timeout"),
        None,
        ("RateLimitError", "Rate limited"),
    ]


def test_a_second_run_adds_to_the_file_and_counts_from_zero(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in_process("06_error_logger", monkeypatch)
    run_in_process("06_error_logger", monkeypatch)

    assert len(records(log)) == 8
    assert capsys.readouterr().out == transcript("06_error_logger") * 2


def test_a_log_that_cannot_be_written_is_said_once_and_fails_the_lesson_at_its_end(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its place is a folder: the counts are right all the same."""
    log.mkdir()

    assert run_in_process("06_error_logger", monkeypatch) == 1

    out, err = capsys.readouterr()
    assert out == transcript("06_error_logger")
    assert err.count(f"The log {log} can't be written") == 1


def test_real_calls_are_read_back_from_where_this_run_began_with_one_alert(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = ("--faults", "ok,503,401")
    run_in_process("06_error_logger", monkeypatch, *faults)
    first = capsys.readouterr().out
    run_in_process("06_error_logger", monkeypatch, *faults)

    assert capsys.readouterr().out == first
    assert first.count("ALERT: 67% of the last 3 requests failed") == 1
    assert first.count("\n  Call ") == 6
    assert "  Call 2: InternalServerError: Simulated failure\n" in first
    assert "  Call 3: AuthenticationError: Unauthorized\n" in first
    assert len(records(log)) == 12
