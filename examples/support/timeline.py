"""Draw the mock server's log as a timeline: when each request arrived, how long it took.

The server saw 3 requests:
    0.0 s  |█                             | 503
    1.0 s  |          █                   | 503
    3.0 s  |                             █| 200

Each line is one request. Its bar is to scale, and at least one character wide. If the requests
ask several models, each line names the model.
"""

from collections.abc import Sequence

from lib.mock_server import LoggedRequest

WIDTH = 30  # characters
MIN_SECONDS = 3.0  # the time that a full line stands for; more if the log is longer


def timeline(log: Sequence[LoggedRequest]) -> list[str]:
    """Return a heading, then one line per request.

    A request that has not ended yet has a bar to the end of the line.
    """
    if not log:
        return ["The server saw no requests."]
    first = log[0].arrived
    ends = [request.arrived - first + (request.duration or 0.0) for request in log]
    several_models = len({request.model for request in log} - {None}) > 1
    scale = WIDTH / max(MIN_SECONDS, *ends)
    lines = [f"The server saw {len(log)} request{'s' if len(log) > 1 else ''}:"]
    for request in log:
        start = request.arrived - first
        indent = min(WIDTH - 1, round(start * scale))
        room = WIDTH - indent
        length = room if request.duration is None else round(request.duration * scale)
        bar = " " * indent + "█" * max(1, min(room, length))
        model = f"  {request.model}" if several_models else ""
        lines.append(f"{start:7.1f} s  |{bar:<{WIDTH}}| {request.outcome}{model}")
    return lines
