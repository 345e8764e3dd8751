"""Draw the mock server's log as a timeline: when each request came, and how long it took.

      0.0 s  |#                             | 503
      1.0 s  |     #                        | 503
      3.0 s  |               #              | 200

Each line is a request; the bar is its start and length to scale, and never empty.
"""

from collections.abc import Sequence

from lib.mock_server import LoggedRequest

WIDTH = 30  # characters
MIN_SECONDS = 3.0  # that the width stands for; longer timelines are scaled


def timeline(log: Sequence[LoggedRequest], bar: str = "█") -> list[str]:
    """Return a line per request; times are rounded to a tenth of a second.

    A request that has not ended yet has a bar to the end of the line.
    """
    if not log:
        return ["The server saw no requests."]
    first = log[0].arrived
    ends = [request.arrived - first + (request.duration or 0.0) for request in log]
    scale = WIDTH / max(MIN_SECONDS, round(max(ends), 1))
    lines = [f"The server saw {len(log)} request{'s' * (len(log) != 1)}:"]
    for request in log:
        start = round(request.arrived - first, 1)
        left = min(WIDTH - 1, int(start * scale + 0.01))
        if request.duration is None:
            length = WIDTH - left
        else:
            length = max(1, min(WIDTH - left, round(round(request.duration, 1) * scale)))
        drawn = (" " * left + bar * length).ljust(WIDTH)
        lines.append(f"{start:7.1f} s  |{drawn}| {request.outcome}")
    return lines
