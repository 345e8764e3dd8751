"""`make workshop N=2`: the page's own steps, in the terminal."""

from __future__ import annotations

import itertools
import re
from functools import partial

import pytest

from conftest import Commands, RunScript
from examples.support.workshop import LESSONS, PAGE, steps
from support import ROOT, run

TEXT = PAGE.read_text("utf-8")
COMMANDS = {
    "walk": partial(run, str(ROOT / "examples/support/workshop.py"), "6", MISTRAL_TIMEOUT="0.7")
}


@pytest.mark.parametrize("number", LESSONS)
def test_each_command_of_the_lesson_is_run_after_a_pause(number: int) -> None:
    section = TEXT.partition(f"## Lesson {number}:")[2].partition("\n## ")[0]
    commands = [line[2:] for line in section.splitlines() if line.startswith("$ ")]
    kinds = list(steps(TEXT, number))
    assert commands == [step.text for step in kinds if step.kind == "run"]
    for before, step in itertools.pairwise(kinds):
        assert step.kind != "run" or before.kind == "pause"


@pytest.mark.parametrize("number", LESSONS)
def test_what_the_page_expects_is_not_shown_before_a_prediction(number: int) -> None:
    """Not even the part of an output that follows an empty line."""
    section = TEXT.partition(f"## Lesson {number}:")[2].partition("**Investigate:**")[0]
    expected = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    shown = "\n".join(step.text for step in steps(TEXT, number) if step.kind == "text")
    predictions = shown.partition("Investigate:")[0]
    assert expected
    for output in expected:
        for line in output.splitlines():
            assert not line or line not in predictions
    assert "```" not in predictions


def test_the_walk_prints_what_the_scripts_print(commands: Commands) -> None:
    outcome = commands("walk")
    assert outcome.code == 0, outcome.err
    assert "ALERT: 67% of the last 3 requests failed" in outcome.out


def test_a_lesson_that_does_not_exist_is_one_sentence(run_script: RunScript) -> None:
    outcome = run_script("workshop", "7", folder=ROOT / "examples" / "support")
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert len(outcome.err.splitlines()) == 1
