# SPDX-License-Identifier: MIT-0
"""Check how a program handles the failures of an LLM API, and judge it from both sides.

    python -m lib.resilience_check -- python my_app.py

runs the program once for each rule, against a mock server with the faults of that rule. The verdict
depends on which requests the server got, and on what the program did with the responses. The
program may be in any language. It finds the server's URL in OPENAI_BASE_URL and MISTRAL_BASE_URL,
and a key in OPENAI_API_KEY and MISTRAL_API_KEY; it must send its requests there, print the answer,
and end.

In a test, with a function that asks your program:

    for verdict in check(ask):  # ask(base_url, api_key) returns the answer, or raises
        assert verdict.verdict != "fail", verdict

``rules.py`` has the table of the rules, and ``programs.py`` runs a program.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .programs import Call, CheckError, Ending, Process
from .rules import ANSWERED, RULES, Evidence, NotTriedError, Rule, result
from .runs import ANSWER, KEY, Run, Runner, Start

__all__ = ["RULES", "CheckError", "Verdict", "check", "check_command", "verdicts"]

PASS, FAIL, NOT_TRIED = "pass", "fail", "not tried"


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

    Each call counts as a new program, so build your client in it. It runs in a thread, and in
    twenty threads at once for the rules about many callers. For the options and errors, see
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
    runner = Runner(start, patience, dialect)
    (healthy,) = runner.run_many("", 1)
    if problem := _problem(healthy):
        raise CheckError(problem)
    judge = _Judge(runner, healthy, patience)
    for rule in rules:
        yield judge.verdict(rule)


class _Judge:
    """Run the program with a rule's faults, and let the rule judge the runs."""

    def __init__(self, runner: Runner, healthy: Run, patience: float) -> None:
        self._runner = runner
        self._patience = patience
        self._healthy = healthy
        self._models = {str(request.model) for request in healthy.requests}
        self._streams = any(request.body.get("stream") for request in healthy.requests)
        self._runs: dict[tuple[str, int], list[Run]] = {}  # rules with the same faults share them

    def verdict(self, rule: Rule) -> Verdict:
        """Return the verdict on a rule."""
        if rule.needs_stream and not self._streams:
            return Verdict(rule.name, NOT_TRIED, 0, "does not stream", rule.why)
        evidence = self._evidence(rule)
        requests = sum(len(run.requests) for run in evidence.runs)
        try:
            problem = rule.judge(evidence)
        except NotTriedError as reason:
            return Verdict(rule.name, NOT_TRIED, requests, str(reason), rule.why)
        happened = _happened(evidence, requests, problem).replace(KEY, "[the key]")
        return Verdict(rule.name, FAIL if problem else PASS, requests, happened, rule.why)

    def _evidence(self, rule: Rule) -> Evidence:
        same = rule.faults, rule.callers
        if same not in self._runs:
            script = rule.faults.format(drip=f"{self._patience / 100:.4f}")  # it would last longer
            faults = dict.fromkeys(self._models, script)
            self._runs[same] = self._runner.run_many(faults, rule.callers)
        all_runs = [self._healthy, *itertools.chain.from_iterable(self._runs.values())]
        return Evidence(self._healthy, self._runs[same], all_runs)


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
            f"OpenAI API, use --dialect openai (with make: ARGS='--dialect openai'). {ended}"
        )
    if result(healthy, healthy) != ANSWERED:
        return (
            f'The program did not print the mock server\'s answer, "{ANSWER}", and end. The check '
            f"needs the answer to see what the program makes of a response. {ended}"
        )
    return ""


def _happened(evidence: Evidence, requests: int, problem: str) -> str:
    """Return what the program did, what the server saw, and how the program failed."""
    what = problem or evidence.result
    seen = f"{requests} request{'s' if requests != 1 else ''}"
    if len(evidence.runs) > 1:
        return f"{what} ({seen} from {len(evidence.runs)} callers)"
    return f"{what} ({seen}, {evidence.run.seconds:.1f} s){_how(evidence.run.ending)}"


def _how(ending: Ending) -> str:
    """Return how a program failed, in one short line; "" if it did not."""
    words = "".join(filter(str.isprintable, " ".join(ending.failure.split())))
    return f": {words[:200]}" if words else ""
