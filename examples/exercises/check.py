"""Check an exercise, rule by rule.

    python examples/exercises/check.py                  # an overview of your progress
    python examples/exercises/check.py 1                # your file, ex1_retry_pool.py
    python examples/exercises/check.py 1 --hint 2       # with a stronger hint (1 to 3)
    python examples/exercises/check.py 1 examples/solutions/ex1_retry_pool.py

Exit code: 0 if every rule holds (the overview: always), 1 if one does not, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from examples.exercises.checker.child import verdicts
from examples.exercises.checker.hints import FIRST_PART, STRETCH_PART
from examples.exercises.checker.judge import Verdict, rules_of
from examples.exercises.checker.rules import Rule
from examples.support.lesson import FAILED, Parser, UsageError, run_command

# Exercise N has its rules in checker/rules_N.py, and wrong solutions in tests/wrong_solutions.
EXERCISES = {
    1: "ex1_retry_pool.py",
    2: "ex2_cost_control.py",
    3: "ex3_health_monitor.py",
    4: "ex4_capstone.py",
    5: "ex5_retry_storm.py",
}
WIDTH = 96
MARKS = {"ok": "✓", "not yet": "✗", "not written": "✗", "not tried": "-"}


class Result(NamedTuple):
    """A rule, its number in the exercise, and its verdict."""

    number: int
    rule: Rule
    verdict: Verdict


class CannotLoadError(Exception):
    """The learner's file cannot be run at all; the message says why."""


def main() -> int:
    options = _parse()
    if options.number is None:
        return show_overview()
    path = options.file or HERE / EXERCISES[options.number]
    return check_exercise(options.number, path, hint=options.hint)


def show_overview() -> int:
    """Print the progress in each exercise."""
    for number, file in EXERCISES.items():
        print(f"  {number}  {file:<24}{_progress(number, HERE / file)}")
    print("\nCheck one of them, rule by rule: make check N=1")
    return 0


def check_exercise(number: int, path: Path, *, hint: int = 1) -> int:
    """Check each rule of the exercise on the file and print the verdicts. Return the exit code."""
    shown = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
    if not_started(path):
        print(f"Exercise {number}: {shown} is not started.\n")
        print('Read the top of the file, write your code between "TODO: yours from here" and')
        print('"to here", and check again.')
        _print_hint(number, hint, FIRST_PART[number])
        return FAILED
    print(f"Exercise {number}: {shown}\n")
    try:
        first, stretch = parts_of(number, path)
    except CannotLoadError as error:
        print(f"  ✗ {error}")
        return FAILED
    if not first.is_done:
        _print_part(first, "")
        _print_hint(number, hint, FIRST_PART[number])
        return FAILED
    print(f"  ✓ ok          All {len(first.results)} rules of the first part hold.")
    if not stretch.is_started:
        _print_solution(number, path)
        print("The stretch part is not started: it is at the end of the exercise.")
        return 0
    print("\nThe stretch part:")
    _print_part(stretch, " of the stretch part")
    if not stretch.is_done:
        _print_hint(number, hint, STRETCH_PART[number])
        return FAILED
    _print_solution(number, path)
    return 0


class Part(NamedTuple):
    """The results of the first or the stretch part of an exercise."""

    results: list[Result]

    @property
    def held(self) -> int:
        """Return how many rules hold."""
        return sum(result.verdict.outcome == "ok" for result in self.results)

    @property
    def is_done(self) -> bool:
        """Return True if all rules hold."""
        return self.held == len(self.results)

    @property
    def is_started(self) -> bool:
        """Return False if the functions of this part are not written."""
        return any(result.verdict.outcome in ("ok", "not yet") for result in self.results)


def parts_of(number: int, path: Path) -> tuple[Part, Part]:
    """Check the rules of the two parts. Raises CannotLoadError."""
    loaded, *found = verdicts(number, path)
    if loaded.outcome != "ok":
        raise CannotLoadError(loaded.actual)
    results = list(map(Result, itertools.count(1), rules_of(number), found))
    first = [result for result in results if not result.rule.is_stretch]
    return Part(first), Part(results[len(first) :])


def not_started(path: Path) -> bool:
    """Return True if all functions but __init__ still only raise NotImplementedError."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return False
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "__init__"
    ]
    bodies = [[ast.unparse(line) for line in function.body[1:]] for function in functions]
    return bool(bodies) and all(body == ["raise NotImplementedError"] for body in bodies)


def _progress(number: int, path: Path) -> str:
    if not_started(path):
        return "not started"
    try:
        first, stretch = parts_of(number, path)
    except CannotLoadError as error:
        return str(error)
    if not first.is_done:
        return f"{first.held} of {len(first.results)} rules"
    if not stretch.is_done:
        return f"first part done, stretch part: {stretch.held} of {len(stretch.results)} rules"
    return "done"


def _print_part(part: Part, name: str) -> None:
    for result in part.results:
        print("\n".join(_lines(*result)))
    if part.is_done:
        print(f"\nAll {part.held} rules{name} hold.")
    else:
        print(f"\n{part.held} of {len(part.results)} rules{name} hold.", end=" ")
        print("Fix the first one that fails, and check again.")


def _lines(number: int, rule: Rule, verdict: Verdict) -> Iterator[str]:
    outcome, actual, printed = verdict
    reason = f" ({actual})" if outcome == "not tried" else ""
    line = f"  {MARKS[outcome]} {outcome:<12}{number:>2}. {rule.description}{reason}"
    yield textwrap.fill(line, WIDTH, subsequent_indent=" " * 20)
    if outcome in ("not yet", "not written"):
        yield from _field("called:", rule.called)
        yield from _field("actual:", actual)
        yield from _field("expected:", rule.expected)
        yield from _field("printed:", printed)


def _field(name: str, text: str) -> Iterator[str]:
    label = f"        {name:<11}"
    indent = " " * len(label)
    for line in text.splitlines():
        yield textwrap.fill(line, WIDTH, initial_indent=label, subsequent_indent=indent)
        label = indent


def _print_hint(number: int, hint: int, hints: tuple[str, ...]) -> None:
    print("\n" + textwrap.fill(f"Hint {hint} of {len(hints)}: {hints[hint - 1]}", WIDTH))
    if hint < len(hints):
        print(f"A stronger hint: make check N={number} ARGS='--hint {hint + 1}'")


def _print_solution(number: int, path: Path) -> None:
    if path.parent.name != "solutions":
        print(f"Compare it with examples/solutions/{EXERCISES[number]}")


def _parse() -> argparse.Namespace:
    parser = Parser(prog="check.py", description="Check an exercise, or show your progress.")
    parser.add_argument("number", nargs="?", type=int, choices=EXERCISES, help="which exercise")
    parser.add_argument("file", nargs="?", type=Path, help="a file other than the exercise's own")
    parser.add_argument("--hint", type=int, choices=(1, 2, 3), default=1, help="how strong a hint")
    options = parser.parse_args()
    if options.file and not (options.file.is_file() and os.access(options.file, os.R_OK)):
        raise UsageError(f"There is no readable file {options.file}.")
    return options


if __name__ == "__main__":
    run_command(main)
