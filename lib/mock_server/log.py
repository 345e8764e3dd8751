# SPDX-License-Identifier: MIT-0
"""Keep the mock server's log: each request and its outcome."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

MAX_ENTRIES = 100_000
MAX_BYTES = 100_000_000  # of the requests' bodies


@dataclass
class LoggedRequest:
    """One request and its outcome. Headers are not kept, and so the key is not.

    ``arrived`` is a time on the monotonic clock. ``duration`` is the seconds until the
    response was sent or given up; it is None before that. ``outcome`` is the status of the
    response and the fault, if there is one that the status does not show: "503",
    "200 (cut)", "drop".
    """

    arrived: float
    duration: float | None
    method: str
    path: str
    outcome: str
    content: bytes = field(default=b"", repr=False)

    @property
    def body(self) -> Any:
        """The parsed body of the request; None if it has none, or if it is not JSON."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return None

    @property
    def model(self) -> str | None:
        """The model that the request names, or None."""
        model = self.body.get("model") if isinstance(self.body, dict) else None
        return model if isinstance(model, str) else None


class Log:
    """The latest requests, in order of arrival; older ones are dropped to bound the memory."""

    def __init__(self) -> None:
        self._entries: deque[LoggedRequest] = deque()
        self._bytes = 0

    def add(self, request: LoggedRequest) -> None:
        """Append a request, and drop the oldest ones if there are too many."""
        self._entries.append(request)
        self._bytes += len(request.content)
        while len(self._entries) > MAX_ENTRIES or self._bytes > MAX_BYTES:
            self._bytes -= len(self._entries.popleft().content)

    def entries(self) -> list[LoggedRequest]:
        """Return a copy of the log."""
        return list(self._entries)
