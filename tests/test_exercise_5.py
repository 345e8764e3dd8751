"""Exercise 5: which clients the check accepts, and which rule notices which mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from examples.exercises import check, rules
from examples.exercises.rules_5 import CallsNeverEndError
from support import ROOT

SOLUTION = ROOT / "examples" / "solutions" / "ex5_retry_storm.py"
RIGHT = ROOT / "tests" / "right_solutions"
WRONG = ROOT / "tests" / "wrong_solutions" / "ex5.diff"

Check = Callable[[Any], "str | None"]


def description_and_check(rule: rules.Rule) -> tuple[str, Check]:
    description, *_, check_rule = vars(rule).values()
    return description, check_rule


RULES = dict(map(description_and_check, check.rules_of(5)))


class Slip(NamedTuple):
    """A right solution with one mistake, and the rule that the mistake breaks."""

    rule: str
    source: str


def read_slips() -> Iterator[Slip]:
    """Read ex5.diff: the rule, the right lines (-), the wrong lines (+)."""
    for block in WRONG.read_text("utf-8").split("\n\n"):
        rule, *lines = block.splitlines()
        path = SOLUTION
        if lines[0].startswith("# in "):
            path = RIGHT / lines.pop(0).removeprefix("# in ")
        right, wrong = (
            "\n".join(["", *(line[1:] for line in lines if line[0] == sign), ""]) for sign in "-+"
        )
        source = path.read_text("utf-8")
        assert source.count(right) == 1, right
        yield Slip(rule.removeprefix("# "), source.replace(right, wrong))


SLIPS = list(read_slips())


@pytest.mark.parametrize("path", sorted(RIGHT.glob("ex5_*.py")), ids=lambda path: str(path.stem))
def test_another_right_client_keeps_every_rule(path: Path) -> None:
    solution = rules.load(path)
    problems = {rule: check_rule(solution) for rule, check_rule in RULES.items()}
    assert problems == dict.fromkeys(RULES)


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.rule)
def test_slip_breaks_its_rule(slip: Slip, tmp_path: Path) -> None:
    path = tmp_path / "solution.py"
    path.write_text(slip.source, "utf-8")
    try:
        problem = RULES[slip.rule](rules.load(path))
    except CallsNeverEndError as error:
        problem = str(error)
    assert problem


def test_every_rule_is_broken_by_a_slip() -> None:
    assert {slip.rule for slip in SLIPS} == set(RULES)
