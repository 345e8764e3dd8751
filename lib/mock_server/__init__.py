# SPDX-License-Identifier: MIT-0
"""A local stand-in for the Mistral API that fails on demand.

    with MockServer("503,429:2") as server:
        client = MistralClient("any-key", base_url=server.url)

or, for curl, another SDK or your own project:

    python -m lib.mock_server --port 8080 --faults 503,429:2 --rpm 60 --tpm 20000

The failures are real ones, over a real socket; ``faults.py`` lists the words of a fault
script, ``api.py`` says what a normal response is. Standard library only; it listens on this
machine only and accepts any bearer key.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque

from . import api
from .api import Response
from .faults import FAULT_SYNTAX, OK, Fault, parse_faults
from .http_server import HTTPServer, LoggedRequest
from .limits import RateLimits

__all__ = ["FAULT_SYNTAX", "Fault", "LoggedRequest", "MockServer", "parse_faults"]

MAX_LOG_ENTRIES = 100_000

_logger = logging.getLogger(__name__)


class MockServer:
    """The server in a thread of its own: a context manager with ``.url`` and ``.log``.

    ``faults`` is a fault script, and ``seed`` decides which requests a word with @ hits.
    ``requests_per_minute`` and ``tokens_per_minute`` limit the chat requests of any 60
    seconds; one that exceeds them gets a 429. ``port`` 0 takes a free one.

    Raises ValueError for a fault script that cannot be right and for a limit below 1,
    OSError for a port that is taken. Leaving the context closes the port and ends every
    thread.
    """

    def __init__(
        self,
        faults: str = "",
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        port: int = 0,
        seed: int = 0,
    ) -> None:
        for name, limit in [
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ]:
            if limit is not None and (type(limit) is not int or limit < 1):
                raise ValueError(f"{name} must be an integer >= 1, got {limit!r}")
        self._faults = parse_faults(faults, seed)
        self._limits = RateLimits(requests_per_minute, tokens_per_minute)
        self._log: deque[LoggedRequest] = deque(maxlen=MAX_LOG_ENTRIES)
        self._lock = threading.Lock()
        self._server = HTTPServer(port, self.respond)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def log(self) -> list[LoggedRequest]:
        """The requests so far, in the order in which they arrived."""
        with self._lock:
            return list(self._log)

    def __enter__(self) -> MockServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop()
        self._thread.join()

    def respond(
        self, method: str, path: str, key: str, body: bytes
    ) -> tuple[Response | None, LoggedRequest]:
        """Decide on one request and log it. A None closes the connection without a response."""
        normal = api.respond(method, path, key, body)
        with self._lock:
            now = time.monotonic()
            fault = next(self._faults, OK)
            if fault.kind not in ("drop", "status", "html", "noquota") and path == api.CHAT_PATH:
                normal = self._limits.apply(normal, now)
            response = _with_fault(normal, fault)
            request = LoggedRequest(now, None, method, path, _outcome(response, fault))
            self._log.append(request)
        _logger.info("%s %s -> %s", method, path, request.outcome)
        return response, request


def _with_fault(normal: Response, fault: Fault) -> Response | None:
    """Return the normal response with the fault in it, or what is sent in its place."""
    if fault.kind == "drop":
        return None
    if fault.kind == "status":
        return api.error_response(fault.status, fault.seconds)
    if fault.kind == "html":
        return api.gateway_page(fault.status)
    if fault.kind == "noquota":
        return api.no_quota_response()
    if fault.kind == "badjson":
        normal.body = api.truncated_json(normal.body)
    elif fault.kind == "cut":
        normal.truncated = True
    elif fault.kind == "timeout":
        normal.delay = math.inf
    elif fault.kind == "slow":
        normal.delay = fault.seconds or 0.0
    elif fault.kind == "drip":
        normal.seconds_per_byte = fault.seconds or 0.0
    return normal


def _outcome(response: Response | None, fault: Fault) -> str:
    """Return the log's short text: the status, and the fault where the status can't tell."""
    if response is None or fault.kind == "timeout":
        return fault.kind
    if fault.kind in ("ok", "status"):
        return str(response.status)
    return f"{response.status} ({fault.kind})"
