"""examples/timeline.py: what --trace draws. And the short lessons print their transcripts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from examples.timeline import WIDTH, timeline
from lib.mock_server import LoggedRequest
from support import ROOT, Outcome, run, run_parallel, transcript

SHOWN = {
    ("02_backoff", "503,503"): [(0.0, "503"), (1.0, "503"), (3.0, "200")],
    ("03_rate_limits", "slow:0.5,slow:1"): [
        (0.0, "200 (slow)"),
        (1.0, "200 (slow)"),
        (2.0, "200"),
    ],
    ("04_circuit_breaker", "ok,503,503"): [(0.0, "200"), (0.0, "503"), (0.0, "503"), (1.1, "200")],
}


def request(arrived: float, duration: float | None, outcome: str = "200") -> LoggedRequest:
    return LoggedRequest(1000 + arrived, duration, "POST", "/v1/chat/completions", outcome)


class TestTimeline:
    def test_starts_and_lengths_are_to_scale_and_no_bar_is_empty(self) -> None:
        drawn = timeline([request(0, 0.5), request(1, 1, "503"), request(3, 0.001)], bar="#")
        assert drawn == [
            "The server saw 3 requests:",
            "    0.0 s  |#####                         | 200",
            "    1.0 s  |          ##########          | 503",
            "    3.0 s  |                             #| 200",
        ]

    def test_a_long_one_is_scaled_to_the_width(self) -> None:
        drawn = timeline([request(0, 30), request(60, 0)], bar="#")
        assert drawn[1].count("#") == WIDTH // 2
        assert all(len(line.split("|")[1]) == WIDTH for line in drawn[1:])

    def test_a_request_that_has_not_ended_is_drawn_to_the_end(self) -> None:
        assert timeline([request(0, None, "timeout")], bar="#")[1].count("#") == WIDTH

    def test_no_requests(self) -> None:
        assert timeline([]) == ["The server saw no requests."]


@pytest.fixture(scope="module")
def traced() -> Callable[[str], Outcome]:
    """The lessons with --trace, run in parallel."""

    def start(script: str, faults: str) -> Callable[[], Outcome]:
        path = str(ROOT / "examples" / f"{script}.py")
        return lambda: run(path, "--faults", faults, "--trace")

    return run_parallel({script: start(script, faults) for script, faults in SHOWN})


@pytest.mark.parametrize(("script", "faults"), SHOWN)
class TestTrace:
    def test_the_lessons_timeline_shows_when_each_request_came(
        self, script: str, faults: str, traced: Callable[[str], Outcome]
    ) -> None:
        """Half a second late at most: the machine may be busy."""
        outcome = traced(script)
        lines = [line for line in outcome.err.splitlines() if " s  |" in line]
        seen = [(float(line.split(" s")[0]), line.rsplit("| ", 1)[1]) for line in lines]
        assert [outcome for _, outcome in seen] == [each for _, each in SHOWN[script, faults]]
        for (start, _), (expected, _) in zip(seen, SHOWN[script, faults], strict=True):
            assert expected - 0.1 <= start <= expected + 0.5


def test_plain_ascii_where_the_console_can_do_no_more() -> None:
    script = str(ROOT / "examples" / "01_basic_errors.py")
    outcome = run(script, "--trace", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "|#" in outcome.err


@pytest.mark.parametrize("script", ["token_limits", "asyncio_client"])
def test_a_short_lesson_prints_its_transcript(script: str) -> None:
    outcome = run(str(ROOT / "examples" / f"{script}.py"))
    assert (outcome.code, outcome.out) == (0, transcript(script)), outcome.err
