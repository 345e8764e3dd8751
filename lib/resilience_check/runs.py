# SPDX-License-Identifier: MIT-0
"""Run a program against a mock server with faults, and note what both sides saw."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any, NamedTuple

from ..mock_server import LoggedRequest, MockServer
from ..mock_server.answers import make_up, without_nulls
from ..mock_server.api import CHAT_PATH
from .programs import Ending, Program

WORDS = ("kestrel", "linnet", "merlin", "osprey")  # the server's answer: rare, so easy to find
ANSWER = " ".join(WORDS)
KEY = "sk-resilience-check-3f9c2a7e51d8"
STARTUP = 60.0  # seconds that a program may take until its first request

Start = Callable[[str, str], Program]  # (base_url, api_key)


class Run(NamedTuple):
    """One run of the program, seen from both sides.

    ``log`` is the server's, and ``seconds`` is the time from the first request to the end.
    """

    log: list[LoggedRequest]
    ending: Ending
    seconds: float

    @property
    def requests(self) -> list[LoggedRequest]:
        """The requests that asked the model."""
        return [each for each in self.log if each.path == CHAT_PATH and each.model is not None]

    @property
    def arrivals(self) -> list[float]:
        """When the first request arrived, and when the same body arrived again."""
        return [
            request.arrived
            for request in self.requests
            if request.content == self.requests[0].content
        ]


class Runner:
    """Run a program; ``patience`` is how many seconds it may take after its first request."""

    def __init__(self, start: Start, patience: float, dialect: str) -> None:
        self._start = start
        self._patience = patience
        self._dialect = dialect
        self._cancelled = threading.Event()

    def run_many(self, faults: str | Mapping[str, str], callers: int) -> list[Run]:
        """Run the program for several callers at once, each in a thread that ends its program.

        Each starts when the one before has sent a request: starting a program takes a lot of
        CPU time, which would disturb the waits of the others.
        """
        with futures.ThreadPoolExecutor(callers) as pool:
            try:
                running = []
                for _ in range(callers):
                    has_begun = threading.Event()
                    running.append(pool.submit(self._run, faults, has_begun))
                    while not has_begun.wait(0.1):
                        pass  # in steps: a Ctrl-C may be noticed only when a wait ends
                while futures.wait(running, 0.1).not_done:
                    pass
                return [each.result() for each in running]
            except BaseException:
                self._cancelled.set()
                raise

    def _run(self, faults: str | Mapping[str, str], has_begun: threading.Event) -> Run:
        with contextlib.ExitStack() as stack:
            stack.callback(has_begun.set)  # however it ends
            server = stack.enter_context(MockServer(faults, replies=_reply, dialect=self._dialect))
            program = self._start(server.url, KEY)
            try:
                self._wait(program, server, has_begun)
            finally:
                ended_at = time.monotonic()
                ending = program.stop()
            log = server.log
        return Run(log, ending, ended_at - log[0].arrived if log else 0.0)

    def _wait(self, program: Program, server: MockServer, has_begun: threading.Event) -> None:
        """Wait until the program ends, or its time is up."""
        deadline = time.monotonic() + STARTUP
        while not program.wait(0.02) and time.monotonic() < deadline:
            if self._cancelled.is_set():
                return
            if server.log:
                deadline = server.log[0].arrived + self._patience
                has_begun.set()


def _reply(body: Any) -> str:
    """Return the answer that the judges look for, as JSON if the program asked for JSON."""
    request = without_nulls(body)
    if request.get("response_format", {}).get("type") not in ("json_object", "json_schema"):
        return ANSWER
    json_text, _ = make_up(request)
    return json_text.replace(': "text"', f': "{ANSWER}"')
