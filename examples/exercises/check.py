"""Check an exercise, rule by rule.

    python examples/exercises/check.py 1                # your file, ex1_retry_pool.py
    python examples/exercises/check.py 1 --hint 2       # with a stronger hint (1 to 3)
    python examples/exercises/check.py 1 examples/solutions/ex1_retry_pool.py

Exit code: 0 when every rule holds, 1 when one doesn't, 2 for a command that can't be right.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples.exercises.rules import DidNotComeBackError, Rule, in_words, load, within
from examples.lesson import prepare_console

EXERCISES = {
    1: "ex1_retry_pool.py",
    2: "ex2_cost_control.py",
    3: "ex3_health_monitor.py",
    4: "ex4_capstone.py",
    5: "ex5_retry_storm.py",
}
SECONDS_A_RULE = 5.0
WIDTH = 96


class Verdict(NamedTuple):
    """How a rule fared: "ok", "not yet" or "not tried"."""

    rule: Rule
    outcome: str
    came_back: str = ""
    error: BaseException | None = None


class NotEvenLoadedError(Exception):
    """The learner's file can't be run at all; the message says why."""


def main(arguments: list[str] | None = None) -> int:
    prepare_console()
    options = _parse(arguments)
    path = options.file or Path(__file__).with_name(EXERCISES[options.number])
    return check(options.number, path, hint=options.hint, limit=options.limit)


def check(
    number: int,
    path: Path,
    *,
    hint: int = 1,
    limit: float = SECONDS_A_RULE,
    say: Callable[[str], object] = print,
) -> int:
    """Try every rule of the exercise on the file, and ``say`` how each fared; 0 if all hold."""
    say(f"Exercise {number}: {_shown(path)}\n")
    try:
        their = load_learners_file(path, limit)
    except NotEvenLoadedError as error:
        say(f"  ✗ not yet    {error}")
        return 1
    held, rules = 0, rules_of(number)
    told_unwritten = False  # once is enough: an exercise not begun yet is no failure
    for verdict in judge(rules, their, limit):
        unwritten = isinstance(verdict.error, NotImplementedError)
        say(_in_lines(verdict, details=not (unwritten and told_unwritten)))
        held += verdict.outcome == "ok"
        told_unwritten = told_unwritten or unwritten
    if held == len(rules):
        say(f"\nAll {held} rules hold.")
        if path.parent.name != "solutions":
            say(f"Compare: examples/solutions/{EXERCISES[number]}")
        return 0
    say(f"\n{held} of {len(rules)} rules hold. Fix the first that doesn't, and check again.")
    hints = getattr(their, "HINTS", ())
    if hint <= len(hints):
        say("\n" + textwrap.fill(f"Hint {hint} of {len(hints)}: {hints[hint - 1]}", WIDTH))
    if hint < len(hints):
        say(f"A stronger one: make check N={number} ARGS='--hint {hint + 1}'")
    return 1


def load_learners_file(path: Path, limit: float = SECONDS_A_RULE) -> Any:
    """The file as a module. Raises NotEvenLoadedError, with a sentence to act on."""
    try:
        return within(limit, lambda: load(path))
    except SyntaxError as error:
        where = f" at line {error.lineno}: {error.text.strip()}" if error.text else ""
        raise NotEvenLoadedError(f"Python can't read your file ({error.msg}){where}") from error
    except DidNotComeBackError as error:
        message = f"your file did not return within {limit:g} s: is there an endless loop?"
        raise NotEvenLoadedError(message) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise NotEvenLoadedError(in_words(error, str(path))) from error


def judge(rules: list[Rule], their: Any, limit: float = SECONDS_A_RULE) -> Iterator[Verdict]:
    """Try each rule on the learner's module."""
    stuck = False
    for rule in rules:
        # After a rule that hangs, its threads still run and would spoil the others.
        verdict = Verdict(rule, "not tried") if stuck else _try(rule, their, limit)
        stuck = stuck or isinstance(verdict.error, DidNotComeBackError)
        yield verdict


def rules_of(number: int) -> list[Rule]:
    """The rules of an exercise, in the order in which they stand in its file."""
    module = importlib.import_module(f"examples.exercises.rules_{number}")
    return [value for value in vars(module).values() if isinstance(value, Rule)]


def _try(rule: Rule, their: Any, limit: float) -> Verdict:
    try:
        came_back = within(limit, lambda: rule.judge(their))
    except KeyboardInterrupt:
        raise
    except DidNotComeBackError as error:
        why = "is a lock held while waiting, or taken twice by one thread?"
        came_back = f"it did not return within {limit:g} s: {why}"
        return Verdict(rule, "not yet", came_back, error)
    except BaseException as error:
        return Verdict(rule, "not yet", in_words(error, their.__file__), error)
    return Verdict(rule, "not yet", came_back) if came_back else Verdict(rule, "ok")


def _in_lines(verdict: Verdict, *, details: bool) -> str:
    mark = {"ok": "✓", "not yet": "✗"}.get(verdict.outcome, "-")
    lines = [f"  {mark} {verdict.outcome:<10} {verdict.rule.says}"]
    if verdict.outcome == "not yet" and details:
        lines += _field("called:", verdict.rule.called)
        lines += _field("came back:", verdict.came_back)
        lines += _field("expected:", verdict.rule.expected)
    return "\n".join(lines)


def _field(name: str, text: str) -> Iterator[str]:
    label = f"        {name:<11}"
    indent = " " * len(label)
    for line in text.splitlines():
        yield textwrap.fill(line, WIDTH, initial_indent=label, subsequent_indent=indent)
        label = indent


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"check.py: {message}\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="check.py", allow_abbrev=False, description="Check an exercise.")
    parser.add_argument("number", nargs="?", help="which exercise: 1 to 5")
    parser.add_argument("file", nargs="?", type=Path, help="another file than the exercise itself")
    parser.add_argument("--hint", type=int, choices=(1, 2, 3), default=1, help="how strong a hint")
    parser.add_argument("--limit", type=float, default=SECONDS_A_RULE,
                        help="seconds that a rule may take, default: 5")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.number not in [str(number) for number in EXERCISES]:
        parser.error("which exercise? Give a number from 1 to 5, as in `make check N=1` "
                     "or `python examples/exercises/check.py 1`.")  # fmt: skip
    options.number = int(options.number)
    if not 0 < options.limit <= 3600:
        parser.error("--limit must be a number of seconds above 0, and an hour at most.")
    if options.file and not (options.file.is_file() and os.access(options.file, os.R_OK)):
        parser.error(f"there is no file {options.file} that can be read.")
    return options


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def _run() -> int:
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    return code


if __name__ == "__main__":
    # Not sys.exit: that would wait for whatever threads the learner's code left behind.
    os._exit(_run())
