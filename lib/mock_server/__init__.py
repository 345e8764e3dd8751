# SPDX-License-Identifier: MIT-0
"""Run a local stand-in for the Mistral API that fails on demand.

In a test or a script:

    with MockServer("503,429:2") as server:
        client = MistralClient("any-key", base_url=server.url)

As a command, for curl, another SDK or your own project:

    python -m lib.mock_server --port 8080 --faults 503,429:2 --rpm 60 --tpm 20000

The first argument is a fault script: one word per request says what happens to it (fault
injection). ``faults.py`` lists the words; ``api.py`` builds the normal responses. The
failures are real HTTP failures over a real socket. The server needs the standard library
only, listens on this machine only, and accepts any bearer key.
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
    """Run the server in a background thread: a context manager with ``.url`` and ``.log``.

    ``faults`` is a fault script; ``seed`` decides which requests a word with @ affects.
    ``requests_per_minute`` and ``tokens_per_minute`` limit the chat requests in any 60
    seconds; a request above a limit gets a 429. With ``port=0``, the system picks a free
    port. Leaving the context closes the port and ends all threads of the server.

    Raises ValueError for an invalid fault script or a limit below 1, and OSError if the port
    is in use.
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
        """The requests so far, in order of arrival."""
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
        """Choose the response to a request and log the request. None means: send no response."""
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
    """Apply the fault to a normal response; return the result, or None for no response."""
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
    """Return a short text for the log: the status, and the fault if the status can't show it."""
    if response is None or fault.kind == "timeout":
        return fault.kind
    if fault.kind in ("ok", "status"):
        return str(response.status)
    return f"{response.status} ({fault.kind})"
