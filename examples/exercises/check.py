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
import contextlib
import importlib
import io
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from examples.exercises.checker.rules import DidNotReturnError, Rule, describe, load, within
from examples.support.lesson import FAILED, Parser, UsageError, run_command

# Exercise N has its rules in rules_N.py, and wrong solutions in tests/wrong_solutions/exN.diff.
EXERCISES = {
    1: "ex1_retry_pool.py",
    2: "ex2_cost_control.py",
    3: "ex3_health_monitor.py",
    4: "ex4_capstone.py",
    5: "ex5_retry_storm.py",
}
SECONDS_PER_RULE = 5.0  # gives up on an endless loop; a rule takes a fraction of a second
WIDTH = 96
MARKS = {"ok": "✓", "not yet": "✗", "not tried": "-"}


class Verdict(NamedTuple):
    """The outcome of one rule; ``actual`` says what happened, or why the rule was not tried."""

    number: int
    rule: Rule
    outcome: Literal["ok", "not yet", "not tried"]
    actual: str = ""


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
    try:
        solution = load_solution(path)
    except CannotLoadError as error:
        print(f"Exercise {number}: {shown}\n\n  ✗ {error}")
        return FAILED
    rules = rules_of(number)
    if not_started(path):
        print(f"Exercise {number}: {shown} is not started.\n")
        print('Read the top of the file, write your code between "TODO: yours from here" and')
        print(f'"to here", and check again. There are {len(rules)} rules.')
        _print_hint(number, solution, hint)
        return FAILED
    print(f"Exercise {number}: {shown}\n")
    held = 0
    for verdict in check_rules(rules, solution):
        held += verdict.outcome == "ok"
        print("\n".join(_lines(verdict)))
    if held == len(rules):
        print(f"\nAll {held} rules hold.")
        if path.parent.name != "solutions":
            print(f"Compare it with examples/solutions/{EXERCISES[number]}")
        return 0
    print(f"\n{held} of {len(rules)} rules hold. Fix the first one that fails, and check again.")
    _print_hint(number, solution, hint)
    return FAILED


def load_solution(path: Path) -> Any:
    """Load the learner's file as a module. Raises CannotLoadError."""
    try:
        return within(SECONDS_PER_RULE, lambda: load(path))
    except SyntaxError as error:
        where = f" at line {error.lineno}: {error.text.strip()}" if error.text else ""
        raise CannotLoadError(f"Python can't read your file ({error.msg}){where}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise CannotLoadError(describe(error, str(path))) from error


def rules_of(number: int) -> list[Rule]:
    """Return the rules of an exercise, in the order of its file."""
    module = importlib.import_module(f"examples.exercises.checker.rules_{number}")
    return [value for value in vars(module).values() if isinstance(value, Rule)]


def check_rules(rules: Sequence[Rule], solution: Any) -> Iterator[Verdict]:
    """Check each rule on the learner's module, unless a rule that it needs does not hold."""
    endless_loop = False
    failed: dict[Rule, int] = {}
    for number, rule in enumerate(rules, 1):
        needed = [failed[other] for other in rule.needs if other in failed]
        if endless_loop:
            yield Verdict(number, rule, "not tried", "the call above has not returned")
        elif needed:
            failed[rule] = min(needed)
            yield Verdict(number, rule, "not tried", f"needs rule {min(needed)}")
        else:
            actual, endless_loop = _check(rule, solution)
            if actual:
                failed[rule] = number
            yield Verdict(number, rule, "not yet" if actual else "ok", actual)


def not_started(path: Path) -> bool:
    """Return True if all functions but __init__ still only raise NotImplementedError."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "__init__"
    ]
    bodies = [[ast.unparse(line) for line in function.body[1:]] for function in functions]
    return bool(bodies) and all(body == ["raise NotImplementedError"] for body in bodies)


def _progress(number: int, path: Path) -> str:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            solution = load_solution(path)
            if not_started(path):
                return "not started"
            outcomes = [verdict.outcome for verdict in check_rules(rules_of(number), solution)]
    except CannotLoadError as error:
        return str(error)
    held = outcomes.count("ok")
    return "done" if held == len(outcomes) else f"{held} of {len(outcomes)} rules"


def _check(rule: Rule, solution: Any) -> tuple[str, bool]:
    """Return what happened instead of what the rule expects, and whether the call is running."""
    try:
        return within(SECONDS_PER_RULE, lambda: rule.check(solution)) or "", False
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return describe(error, solution.__file__), isinstance(error, DidNotReturnError)


def _lines(verdict: Verdict) -> Iterator[str]:
    number, rule, outcome, actual = verdict
    reason = f" ({actual})" if outcome == "not tried" else ""
    line = f"  {MARKS[outcome]} {outcome:<10}{number:>3}. {rule.description}{reason}"
    yield textwrap.fill(line, WIDTH, subsequent_indent=" " * 19)
    if outcome == "not yet":
        yield from _field("called:", rule.called)
        yield from _field("actual:", actual)
        yield from _field("expected:", rule.expected)


def _field(name: str, text: str) -> Iterator[str]:
    label = f"        {name:<11}"
    indent = " " * len(label)
    for line in text.splitlines():
        yield textwrap.fill(line, WIDTH, initial_indent=label, subsequent_indent=indent)
        label = indent


def _print_hint(number: int, solution: Any, hint: int) -> None:
    hints = getattr(solution, "HINTS", ())
    if hint <= len(hints):
        print("\n" + textwrap.fill(f"Hint {hint} of {len(hints)}: {hints[hint - 1]}", WIDTH))
    if hint < len(hints):
        print(f"A stronger hint: make check N={number} ARGS='--hint {hint + 1}'")


def _parse() -> argparse.Namespace:
    parser = Parser(prog="check.py", description="Check an exercise, or show your progress.")
    parser.add_argument("number", nargs="?", type=int, choices=EXERCISES, help="which exercise")
    parser.add_argument("file", nargs="?", type=Path, help="a file other than the exercise's own")
    parser.add_argument("--hint", type=int, choices=(1, 2, 3), default=1, help="how strong a hint")
    options = parser.parse_args()
    if options.file and not (options.file.is_file() and os.access(options.file, os.R_OK)):
        raise UsageError(f"There is no readable file {options.file}.")
    return options


def run() -> NoReturn:
    """Run the command and exit, even if a call in the learner's file never returns."""
    try:
        run_command(main)
    except SystemExit as exit_:
        os._exit(int(exit_.code or 0))  # sys.exit would wait for the threads of that call


if __name__ == "__main__":
    run()
