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
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from examples.exercises.checker.child import verdicts
from examples.exercises.checker.hints import FIRST_PART, STRETCH_PART
from examples.exercises.checker.judge import rules_of
from examples.exercises.checker.report import Part, Result, print_hint, print_part
from examples.support.lesson import FAILED, Parser, UsageError, run_command

# Exercise N has its rules in checker/rules_N.py, and wrong solutions in tests/wrong_solutions.
EXERCISES = {
    1: "ex1_retry_pool.py",
    2: "ex2_cost_control.py",
    3: "ex3_health_monitor.py",
    4: "ex4_capstone.py",
    5: "ex5_retry_storm.py",
}
HOW_TO_START = """\
Read the top of the file, write your code between "TODO: yours from here" and
"to here", and check again."""
WELL_DONE = "Compare it with examples/solutions/"


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
        print(f"Exercise {number}: {shown} is not started.\n\n{HOW_TO_START}")
        print_hint(number, hint, FIRST_PART[number])
        return FAILED
    print(f"Exercise {number}: {shown}\n")
    try:
        first, stretch = parts_of(number, path)
    except CannotLoadError as error:
        print(f"  ✗ {error}")
        return FAILED
    part = first
    if first.is_done:
        print(f"  ✓ ok          All {first.held} rules of the first part hold.")
        part = stretch
    if part is stretch and not stretch.is_started:
        print(
            f"{WELL_DONE}{EXERCISES[number]}\nThe stretch part is not started: read on in the file."
        )
        return 0
    print_part(part)
    if part.is_done:
        print(f"{WELL_DONE}{EXERCISES[number]}")
        return 0
    print_hint(number, hint, part.hints)
    return FAILED


def parts_of(number: int, path: Path) -> tuple[Part, Part]:
    """Check the rules of the two parts. Raises CannotLoadError."""
    loaded, *found = verdicts(number, path)
    if loaded.outcome != "ok":
        raise CannotLoadError(loaded.actual)
    results = list(map(Result, itertools.count(1), rules_of(number), found))
    first = [result for result in results if not result.rule.is_stretch]
    return (
        Part("", first, FIRST_PART[number]),
        Part("The stretch part:\n", results[len(first) :], STRETCH_PART[number]),
    )


def not_started(path: Path) -> bool:
    """Return True if all functions but __init__ still only raise NotImplementedError."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return False
    bodies = {
        ast.unparse(ast.Module(function.body[1:], type_ignores=[]))
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        and function.name != "__init__"
    }
    return bodies == {"raise NotImplementedError"}


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
