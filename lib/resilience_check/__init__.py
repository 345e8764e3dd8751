# SPDX-License-Identifier: MIT-0
"""Check how a program handles the failures of an LLM API, and judge it from both sides.

    python -m lib.resilience_check -- python my_app.py

runs the program once for each rule, against a mock server with the faults of that rule. The
verdict depends on what the server saw and on what the program made of it. The program may be
in any language. It finds the server's URL in OPENAI_BASE_URL and MISTRAL_BASE_URL, and a key in
OPENAI_API_KEY and MISTRAL_API_KEY; it must send its requests there, print the answer, and end.

In a test, with a function that asks your program:

    for verdict in check(ask):  # ask(base_url, api_key) returns the answer, or raises
        assert verdict.verdict != "fail", verdict

``rules.py`` has the table of the rules, and ``programs.py`` runs a program.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..mock_server import MockServer
from ..mock_server.answers import make_up
from .programs import Call, CheckError, Ending, Process, Program
from .rules import ANSWER, ANSWERED, KEY, RULES, Evidence, NotTriedError, Rule, Run, result

__all__ = ["RULES", "CheckError", "Verdict", "check", "check_command", "verdicts"]

PASS, FAIL, NOT_TRIED = "pass", "fail", "not tried"
STARTUP = 60.0  # seconds that a program may take until its first request
Start = Callable[[str, str], Program]  # (base_url, api_key)


@dataclass(frozen=True)
class Verdict:
    """The verdict on a rule ("pass", "fail" or "not tried"), and what happened."""

    rule: str
    verdict: str
    requests: int
    happened: str
    why: str


def check(ask: Callable[[str, str], str], **options: Any) -> list[Verdict]:
    """Check a function: ``ask(base_url, api_key)`` returns the model's answer, or raises.

    Each call stands for a new program: build your client in it. It runs in a thread, and in twenty
    threads at once for the rules about many callers. For the options and errors, see
    ``verdicts``.
    """
    return list(verdicts(partial(Call, ask), **options))


def check_command(command: Sequence[str], **options: Any) -> list[Verdict]:
    """Check a program: a command that prints the model's answer. See ``verdicts``."""
    return list(verdicts(partial(Process, command), **options))


def verdicts(
    start: Start,
    *,
    rules: Sequence[Rule] = RULES,
    patience: float = 30.0,
    dialect: str = "mistral",
) -> Iterator[Verdict]:
    """Yield the verdict on each rule.

    ``patience`` is how many seconds the program may take after its first request. ``dialect``
    is the API that the program is written for: "mistral" or "openai".

    Raises ValueError for an invalid argument, and CheckError if the program gets no answer from
    a server without faults.
    """
    if not 0 < patience < math.inf:
        raise ValueError(f"patience must be a number of seconds > 0, got {patience!r}")
    runner = _Runner(start, patience, dialect)
    (healthy,) = runner.run_many("", 1)
    if problem := _problem(healthy):
        raise CheckError(problem)
    for rule in rules:
        yield runner.judge(rule, healthy)


class _Runner:
    """Run the program with a rule's faults, and have the rule judge the runs."""

    def __init__(self, start: Start, patience: float, dialect: str) -> None:
        self._start = start
        self._patience = patience
        self._dialect = dialect
        self._runs: dict[tuple[str, int], list[Run]] = {}  # rules with the same faults share them
        self._cancelled = threading.Event()

    def judge(self, rule: Rule, healthy: Run) -> Verdict:
        """Return the verdict on a rule."""
        if rule.needs_stream and not any(each.body.get("stream") for each in healthy.requests):
            return Verdict(rule.name, NOT_TRIED, 0, "does not stream", rule.why)
        if (rule.faults, rule.callers) not in self._runs:
            faults = rule.faults.format(drip=f"{self._patience / 100:.4f}")
            by_model = {str(each.model): faults for each in healthy.requests}
            self._runs[rule.faults, rule.callers] = self.run_many(by_model, rule.callers)
        runs = self._runs[rule.faults, rule.callers]
        all_runs = [healthy, *itertools.chain.from_iterable(self._runs.values())]
        evidence = Evidence(healthy, runs, all_runs)
        requests = sum(len(run.requests) for run in runs)
        try:
            problem = rule.judge(evidence)
        except NotTriedError as reason:
            return Verdict(rule.name, NOT_TRIED, requests, str(reason), rule.why)
        happened = _happened(evidence, problem).replace(KEY, "[the key]")
        return Verdict(rule.name, FAIL if problem else PASS, requests, happened, rule.why)

    def run_many(self, faults: str | Mapping[str, str], callers: int) -> list[Run]:
        """Run the program for several callers at once, each in a thread that ends its program.

        Each starts when the one before has sent a request: starting a program takes a lot of
        CPU time, which would disturb the waits of the others.
        """
        with ThreadPoolExecutor(callers) as pool:
            try:
                running = []
                for _ in range(callers):
                    has_begun = threading.Event()
                    running.append(pool.submit(self._run, faults, has_begun))
                    has_begun.wait()
                return [each.result() for each in running]
            except BaseException:
                self._cancelled.set()
                raise

    def _run(self, faults: str | Mapping[str, str], has_begun: threading.Event) -> Run:
        """Run the program once, until it ends or its time is up."""
        deadline = time.monotonic() + STARTUP
        with MockServer(faults, replies=_reply, dialect=self._dialect) as server:
            try:
                program = self._start(server.url, KEY)
                try:
                    while not program.wait(0.02) and time.monotonic() < deadline:
                        if self._cancelled.is_set():
                            break
                        if server.log and not has_begun.is_set():
                            deadline = server.log[0].arrived + self._patience
                            has_begun.set()
                finally:
                    ended_at = time.monotonic()
                    ending = program.stop()
            finally:
                has_begun.set()
            log = server.log
        return Run(log, ending, ended_at - log[0].arrived if log else 0.0)


def _reply(body: Any) -> str | None:
    """Return the answer that the judges look for, as JSON if the program asked for JSON."""
    text, _ = make_up(body)
    wants_json = text.startswith("{") and body.get("response_format")
    return text.replace(': "text"', f": {json.dumps(ANSWER)}") if wants_json else ANSWER


def _problem(healthy: Run) -> str:
    """Return why no rule can be tried, and what to do; "" if the program got its answer."""
    if healthy.ending.running:
        ended = "It was still running when its time was up."
    else:
        ended = f"It ended{_how(healthy.ending) or ' without an error'}."
    if not healthy.log:
        return (
            "The program sent no request to the mock server. It must read the server's URL from "
            "OPENAI_BASE_URL or MISTRAL_BASE_URL, and the key from OPENAI_API_KEY or "
            f"MISTRAL_API_KEY. {ended}"
        )
    last = healthy.log[-1]
    if last.outcome != "200":
        return (
            f"Without faults, {last.method} {last.path} got a {last.outcome} from the mock "
            "server, which stands in for the Mistral API. If your program is written for the "
            f"OpenAI API, use --dialect openai. {ended}"
        )
    if result(healthy, healthy) != ANSWERED:
        return (
            f'The program did not print the mock server\'s answer, "{ANSWER}", and end. The check '
            f"needs the answer to see what the program makes of a response. {ended}"
        )
    return ""


def _happened(evidence: Evidence, problem: str) -> str:
    """Return what the program did, what the server saw, and how the program failed."""
    requests = sum(len(run.requests) for run in evidence.runs)
    seen = f"{requests} request{'s' if requests != 1 else ''}"
    if len(evidence.runs) > 1:
        return f"{problem or evidence.result} ({seen} from {len(evidence.runs)} callers)"
    seen = f"{seen}, {evidence.run.seconds:.1f} s"
    return f"{problem or evidence.result} ({seen}){_how(evidence.run.ending)}"


def _how(ending: Ending) -> str:
    """Return how a program failed, in one short line; "" if it did not."""
    words = " ".join(ending.failure.split())
    return f": {words[:100]}" if words else ""
