# SPDX-License-Identifier: MIT-0
"""Run a local stand-in for the Mistral API that fails on demand.

In a test or a script:

    with MockServer("503,429:2") as server:
        client = MistralClient("any-key", base_url=server.url)

As a command, for curl, another SDK or your own project:

    python -m lib.mock_server --port 8080 --faults 503,429:2 --rpm 60 --tpm 20000

The first argument is a fault script: one word per request says what happens to it (fault
injection). ``faults.py`` lists the words, and ``effects.py`` says what they do; ``api.py``
builds the normal responses, and ``answers.py`` what the model says. The failures are real HTTP
failures over a real socket. The server needs only the standard library, listens only on this
machine, and accepts any bearer key.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from . import effects
from .api import API, CHAT_PATH, Change, Reply, Request, Response, unchanged
from .dialects import DIALECTS
from .faults import FAULT_SYNTAX, OK, Fault, parse_faults
from .http_server import HTTPServer
from .limits import RateLimits
from .log import Log, LoggedRequest

__all__ = ["FAULT_SYNTAX", "Fault", "LoggedRequest", "MockServer", "parse_faults"]

_logger = logging.getLogger(__name__)


class MockServer:
    """Run the server in a background thread: a context manager with ``.url`` and ``.log``.

    ``faults`` is a fault script, or a dict with a fault script for each model; ``seed`` decides
    which requests a word with @ affects. ``requests_per_minute`` and ``tokens_per_minute`` limit
    the chat requests in any ``window`` of 60 seconds; a request above a limit gets a 429.
    ``replies`` sets the answers: a list of texts, one for each completion, or a function from
    the body of a request to a text (several may run at the same time). After the list, and
    where the function returns None, the usual answer is sent. ``dialect="openai"`` accepts any
    model and OpenAI's fields, and sends OpenAI's errors and headers. With ``port=0``, the
    system picks a free port. Leaving the context closes the port and ends all threads of the
    server.

    Raises ValueError for an invalid argument, and OSError if the port is in use.
    """

    def __init__(
        self,
        faults: str | Mapping[str, str] = "",
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        window: float = 60.0,
        replies: Sequence[str] | Reply | None = None,
        dialect: str = "mistral",
        port: int = 0,
        seed: int = 0,
    ) -> None:
        for name, limit in [
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ]:
            if limit is not None and (type(limit) is not int or limit < 1):
                raise ValueError(f"{name} must be an integer >= 1, got {limit!r}")
        if not 0 < window < math.inf:
            raise ValueError(f"window must be a number of seconds > 0, got {window!r}")
        if dialect not in DIALECTS:
            raise ValueError(f"dialect must be one of {', '.join(DIALECTS)}, got {dialect!r}")
        self._next_fault = _fault_source(faults, seed)
        self._api = API(DIALECTS[dialect], _reply_source(replies))
        self._limits = RateLimits(self._api, requests_per_minute, tokens_per_minute, window)
        self._log = Log()
        self._lock = threading.Lock()
        self._server = HTTPServer(port, self._respond, self._api.dialect.request_id_header)
        self._thread = threading.Thread(target=self._server.serve)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def log(self) -> list[LoggedRequest]:
        """The requests so far, in order of arrival: time, path, body, outcome; never the key."""
        with self._lock:
            return self._log.entries()

    def __enter__(self) -> MockServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._thread.is_alive():
            self._server.stop()
            self._thread.join()
        self._server.server_close()

    def _respond(self, request: Request) -> tuple[Response | None, LoggedRequest]:
        """Log a request and choose its response. None means: send no response."""
        entry = LoggedRequest(0.0, None, request.method, request.path, "", request.content)
        with self._lock:
            entry.arrived = time.monotonic()
            fault = self._next_fault(entry)
            self._log.add(entry)
        response = effects.respond(self._api, partial(self._normal, request), fault)
        entry.outcome = _outcome(response, fault)
        _logger.info("%s %s -> %s", request.method, request.path, entry.outcome)
        return response, entry

    def _normal(self, request: Request, change: Change = unchanged) -> Response:
        """Return the response without a fault, and charge the limits."""
        response = self._api.respond(request, change)
        if request.path != CHAT_PATH:
            return response
        with self._lock:
            return self._limits.apply(response, time.monotonic())


def _fault_source(faults: str | Mapping[str, str], seed: int) -> Callable[[LoggedRequest], Fault]:
    """Return a function that gives the fault of each request, in order of arrival."""
    if isinstance(faults, str):
        script = parse_faults(faults, seed)
        return lambda request: next(script, OK)
    scripts: dict[str | None, Iterator[Fault]] = {
        model: parse_faults(script, seed) for model, script in faults.items()
    }
    no_faults: Iterator[Fault] = iter(())
    return lambda request: next(scripts.get(request.model, no_faults), OK)


def _reply_source(replies: Sequence[str] | Reply | None) -> Reply:
    """Return a function that gives the text of each answer, or None for the usual one."""
    if callable(replies):
        return replies
    texts = iter(replies or ())
    return lambda body: next(texts, None)


def _outcome(response: Response | None, fault: Fault) -> str:
    """Return a short text for the log: the status, and the fault if the status can't show it."""
    if response is None or fault.kind == "timeout":
        return fault.kind
    if fault.kind in ("ok", "status"):
        return str(response.status)
    return f"{response.status} ({fault.kind})"
