"""Check the rules on one file, in a process of its own.

child.py starts this process and reads what it writes to stdout: a line of JSON for the loading of
the file, and one for each rule. Each line begins with a mark that child.py has sent, so that the
learner's file cannot write it. If a call does not return, Python's faulthandler writes where each
thread is, and ends the process; that works in a loop that is written in C, too.
"""

from __future__ import annotations

import faulthandler
import importlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from examples.exercises.checker.rules import Rule, describe, is_unwritten, load

MAX_PRINTED = 500_000  # characters that a learner's file may print while a rule is checked
LINES_SHOWN = 5
CHECKED = ("examples", "lib", "asyncio", "builtins", "random", "time")  # what a verdict depends on

Outcome = Literal["ok", "not yet", "not written", "not tried"]


class Verdict(NamedTuple):
    """The outcome of one rule; ``actual`` says what happened, or why the rule was not tried."""

    outcome: Outcome
    actual: str = ""
    printed: str = ""  # the last lines that the learner's file printed


def judge(number: int, path: Path) -> Iterator[Verdict]:
    """Yield a verdict on the loading of the file, and then on each rule of the exercise."""
    rules = rules_of(number)
    modules = fingerprint()
    try:
        solution = load(path)
    except BaseException as error:  # SystemExit, too
        yield Verdict("not yet", describe(error))
        return
    yield Verdict("ok")
    for verdict in check_rules(rules, solution):
        changed = sorted(modules.items() - fingerprint().items())
        yield _tampered(changed[0][0]) if changed else verdict


def rules_of(number: int) -> list[Rule]:
    """Return the rules of an exercise, in the order of its file."""
    module = importlib.import_module(f"examples.exercises.checker.rules_{number}")
    return [value for value in vars(module).values() if isinstance(value, Rule)]


def check_rules(rules: Sequence[Rule], solution: Any) -> Iterator[Verdict]:
    """Check each rule on the learner's module, unless a rule that it needs does not hold."""
    failed: dict[Rule, int] = {}
    for number, rule in enumerate(rules, 1):
        needed = min((failed[other] for other in rule.needs if other in failed), default=None)
        not_tried = Verdict("not tried", f"needs rule {needed}")
        verdict = not_tried if needed else _check(rule, solution)
        if verdict.outcome != "ok":
            failed[rule] = needed or number
        yield verdict


def _check(rule: Rule, solution: Any) -> Verdict:
    try:
        problem = rule.check(solution)
    except BaseException as error:  # sys.exit() in the learner's file must not end the check
        return Verdict("not written" if is_unwritten(error) else "not yet", describe(error))
    return Verdict("not yet", problem) if problem else Verdict("ok")


def _tampered(name: str) -> Verdict:
    return Verdict("not yet", f"your code has changed {name}, which the check relies on")


def fingerprint() -> dict[str, int]:
    """Return the identity of everything that the modules of the check define."""
    found: dict[str, int] = {}
    for name, module in sys.modules.copy().items():
        if name.partition(".")[0] in CHECKED:
            for key, value in vars(module).items():
                found[f"{name}.{key}"] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    members = vars(value).items()
                    found |= {f"{name}.{key}.{member}": id(part) for member, part in members}
    return found


class TooMuchPrintedError(BaseException):
    """The learner's file prints without an end."""


class Output(io.TextIOBase):
    """Keeps the end of what is printed, so that a flood reaches no terminal and no disk."""

    def __init__(self) -> None:
        self._printed = 0
        self._end = ""

    def write(self, text: str) -> int:
        """Print the text."""
        self._printed += len(text)
        if self._printed > MAX_PRINTED:
            raise TooMuchPrintedError(
                f"it printed more than {MAX_PRINTED:,} characters: print less"
            )
        self._end = (self._end + text)[-1000:]
        return len(text)

    def take(self) -> str:
        """Return the last lines since the last call of this method."""
        end, self._end, self._printed = self._end, "", 0
        return "\n".join(end.splitlines()[-LINES_SHOWN:])


def no_settrace(function: object) -> NoReturn:
    """Stand for sys.settrace: with another trace function, no thread would be interrupted."""
    raise RuntimeError("the check needs sys.settrace for itself (so does breakpoint())")


def main() -> None:
    """Write the verdicts to stdout, and nothing else."""
    number, path, seconds = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    mark = sys.stdin.readline().strip()
    report = os.fdopen(os.dup(1), "w", encoding="ascii")
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.stdout = sys.stderr = output = Output()
    sys.settrace = no_settrace
    rules_of(number)  # imports lib, which is slow, before the time runs
    print(file=report, flush=True)
    faulthandler.dump_traceback_later(seconds, exit=True, file=report)
    for verdict in judge(number, path):
        faulthandler.dump_traceback_later(seconds, exit=True, file=report)
        print(mark + json.dumps(verdict._replace(printed=output.take())), file=report, flush=True)
    os._exit(0)  # threads of the learner's file may still run
