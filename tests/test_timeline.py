"""examples/support/timeline.py: what --trace draws."""

from __future__ import annotations

from examples.support import timeline as timeline_module
from examples.support.timeline import WIDTH, timeline
from lib.mock_server import LoggedRequest


def request(arrived: float, duration: float | None, outcome: str = "200") -> LoggedRequest:
    return LoggedRequest(1000 + arrived, duration, "POST", "/v1/chat/completions", outcome)


class TestTimeline:
    def test_bars_are_to_scale_and_never_empty(self) -> None:
        assert timeline([request(0, 0.5), request(1, 1, "503"), request(2.95, 0.001)]) == [
            "The server saw 3 requests:",
            "    0.0 s  |█████                         | 200",
            "    1.0 s  |          ██████████          | 503",
            "    3.0 s  |                             █| 200",
        ]

    def test_example_in_the_docstring(self) -> None:
        log = [request(0, 0.01, "503"), request(1.01, 0.01, "503"), request(3.02, 0.01)]
        assert "\n".join(timeline(log)) in (timeline_module.__doc__ or "")

    def test_a_longer_log_fills_the_width(self) -> None:
        _, first, last = timeline([request(0, 40), request(60, 60)])
        assert [first.split("|")[1], last.split("|")[1]] == [
            "█" * (WIDTH // 3) + " " * (WIDTH * 2 // 3),
            " " * (WIDTH // 2) + "█" * (WIDTH // 2),
        ]

    def test_a_request_that_has_not_ended_is_drawn_to_the_end(self) -> None:
        assert timeline([request(0, 0.5), request(2.5, None, "timeout")]) == [
            "The server saw 2 requests:",
            "    0.0 s  |█████                         | 200",
            "    2.5 s  |                         █████| timeout",
        ]

    def test_the_model_is_named_if_there_are_several(self) -> None:
        large, small = request(0, 0, "503"), request(0, 0)
        large.content, small.content = b'{"model": "large"}', b'{"model": "small"}'
        assert [line.rpartition("| ")[2] for line in timeline([large, small])[1:]] == [
            "503  large",
            "200  small",
        ]
        assert [line.rpartition("| ")[2] for line in timeline([large, large])[1:]] == ["503"] * 2

    def test_one_request(self) -> None:
        assert timeline([request(0, 0)])[0] == "The server saw 1 request:"

    def test_no_requests(self) -> None:
        assert timeline([]) == ["The server saw no requests."]
