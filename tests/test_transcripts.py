"""Each lesson as a child process against the mock server prints its transcript."""

from __future__ import annotations

import pytest

from support import SCRIPTS, Outcome, script_child, transcript, without_time

LESSONS = {
    "01_basic_errors": [],
    "02_backoff": [],
    "03_rate_limits": ["--trace"],  # which leaves stdout as it is
    "04_circuit_breaker": ["--trace"],
    "05_fallbacks": [],
    "06_error_logger": [],
    "streaming": [],
    "token_limits": [],
    "asyncio_client": [],
}
# Each request's arrival and duration in seconds, and its outcome.
TIMELINES = {
    ("02_backoff", "--faults", "503,503", "--trace"): [
        (0.0, 0.0, "503"), (1.0, 0.0, "503"), (3.0, 0.0, "200"),
    ],
    ("03_rate_limits", "--trace"): [
        (0.0, 0.5, "200 (slow)"), (1.0, 1.0, "200 (slow)"), (2.0, 0.0, "200"),
    ],
    ("04_circuit_breaker", "--trace"): [
        (0.0, 0.0, "200"), (0.0, 0.0, "503"), (0.0, 0.0, "503"), (1.1, 0.0, "200"),
    ],
    ("asyncio_client", "--trace"): [(0.0, 0.0, "200"), (0.5, 0.0, "200"), (1.0, 0.0, "200")],
    ("streaming", "--faults", "drop,drop", "--trace"): [
        (0.0, 0.0, "drop"), (0.0, 0.0, "drop"), (0.2, 0.0, "200"), (0.2, 0.0, "200"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=script_child(name, *args)) for name, args in LESSONS.items()],
)
def test_lesson_prints_its_transcript(name: str, outcome: Outcome) -> None:
    assert (outcome.code, without_time(outcome.out)) == (0, transcript(name)), outcome.err
    assert "Traceback" not in outcome.err


def test_there_are_six_lessons() -> None:
    assert [path.name[:3] for path in SCRIPTS] == [f"0{number}_" for number in range(1, 7)]
    assert {path.stem for path in SCRIPTS} <= set(LESSONS)


@pytest.mark.parametrize(
    "expected",
    [pytest.param(times, marks=script_child(*args)) for args, times in TIMELINES.items()],
    ids=[args[0] for args in TIMELINES],
)
def test_trace_shows_when_each_request_arrived(
    expected: list[tuple[float, float, str]], outcome: Outcome
) -> None:
    heading = f"The server saw {len(expected)} requests:\n"
    lines = outcome.err.partition(heading)[2].splitlines()
    assert [line.rpartition("| ")[2] for line in lines] == [outcome for *_, outcome in expected]
    for line, (seconds, *_) in zip(lines, expected, strict=True):
        assert -0.1 <= float(line.partition(" s ")[0]) - seconds <= 0.5  # a busy machine is late
