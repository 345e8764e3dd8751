"""examples/timeline.py: what --trace draws. And the short lessons print their transcripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from examples.timeline import WIDTH, timeline
from lib.mock_server import LoggedRequest
from support import ROOT, Child, Outcome, run, transcript

SHOWN = {
    ("02_backoff", "503,503"): [(0.0, "503"), (1.0, "503"), (3.0, "200")],
    ("03_rate_limits", "slow:0.5,slow:1"): [
        (0.0, "200 (slow)"),
        (1.0, "200 (slow)"),
        (2.0, "200"),
    ],
    ("04_circuit_breaker", "ok,503,503"): [(0.0, "200"), (0.0, "503"), (0.0, "503"), (1.1, "200")],
}

SHORT = ("token_limits", "asyncio_client")


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


def children(folder: Path) -> dict[str, Child]:
    def script(name: str, *arguments: str) -> Child:
        return Child((str(ROOT / "examples" / f"{name}.py"), *arguments))

    traced = {f"trace {name}": script(name, "--faults", f, "--trace") for name, f in SHOWN}
    return {**traced, **{f"short {name}": script(name) for name in SHORT}}


@pytest.mark.parametrize(("script", "faults"), SHOWN)
class TestTrace:
    def test_the_lessons_timeline_shows_when_each_request_came(
        self, script: str, faults: str, outcome_of: Callable[[str], Outcome]
    ) -> None:
        """Half a second late at most: the machine may be busy."""
        outcome = outcome_of(f"trace {script}")
        lines = [line for line in outcome.err.splitlines() if " s  |" in line]
        seen = [(float(line.split(" s")[0]), line.rsplit("| ", 1)[1]) for line in lines]
        assert [outcome for _, outcome in seen] == [each for _, each in SHOWN[script, faults]]
        for (start, _), (expected, _) in zip(seen, SHOWN[script, faults], strict=True):
            assert expected - 0.1 <= start <= expected + 0.5


def test_plain_ascii_where_the_console_can_do_no_more() -> None:
    script = str(ROOT / "examples" / "01_basic_errors.py")
    outcome = run(script, "--trace", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "|#" in outcome.err


@pytest.mark.parametrize("script", SHORT)
def test_a_short_lesson_prints_its_transcript(
    script: str, outcome_of: Callable[[str], Outcome]
) -> None:
    outcome = outcome_of(f"short {script}")
    assert (outcome.code, outcome.out) == (0, transcript(script)), outcome.err
