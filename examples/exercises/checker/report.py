"""What the check prints: a line for each rule, and more about those that do not hold."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from examples.exercises.checker.judge import Verdict
from examples.exercises.checker.rules import Rule

WIDTH = 96
MARKS = {"ok": "✓", "not yet": "✗", "not written": "✗", "not tried": "-"}


class Result(NamedTuple):
    """A rule, its number in the exercise, and its verdict."""

    number: int
    rule: Rule
    verdict: Verdict


class Part(NamedTuple):
    """The first or the stretch part of an exercise."""

    title: str
    results: list[Result]
    hints: tuple[str, ...]

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


def print_part(part: Part) -> None:
    """Print a line for each rule, more for those that do not hold, and how many hold."""
    if part.title:
        print(f"\n{part.title}")
    for result in part.results:
        print("\n".join(_lines(*result)))
    print(f"\n{part.held} of {len(part.results)} rules hold.", end="\n" if part.is_done else " ")
    if not part.is_done:
        print("Fix the first one that fails, and check again.")


def print_hint(number: int, hint: int, hints: tuple[str, ...]) -> None:
    """Print the hint, and how to get a stronger one."""
    print("\n" + textwrap.fill(f"Hint {hint} of {len(hints)}: {hints[hint - 1]}", WIDTH))
    if hint < len(hints):
        print(f"A stronger hint: make check N={number} ARGS='--hint {hint + 1}'")


def _lines(number: int, rule: Rule, verdict: Verdict) -> Iterator[str]:
    outcome, actual, printed = verdict
    reason = f" ({actual})" if outcome == "not tried" else ""
    line = f"  {MARKS[outcome]} {outcome:<12}{number:>2}. {rule.description}{reason}"
    yield textwrap.fill(line, WIDTH, subsequent_indent=" " * 20)
    if MARKS[outcome] == "✗":
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
