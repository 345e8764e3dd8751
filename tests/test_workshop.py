"""The workshop's pages are true: each scenario shown, each change tried, each name in the code."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.failure_scenarios import SCENARIOS, Scenario
from support import EXPECTED, ROOT, Child, Outcome

WORKSHOP = (ROOT / "examples" / "README.md").read_text("utf-8")
MODIFIES = re.findall(
    r"\*\*Modify:\*\* change `([^`]+)` to `([^`]+)`, run\n"
    r"`(\w+)\.py ?([^`]*)`:\n\n```text\n(.*?)```",
    WORKSHOP,
    re.DOTALL,
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_is_shown_with_its_command_and_output(
    scenario: Scenario,
) -> None:
    expected = (EXPECTED / "failure_scenarios" / f"{scenario.name}.txt").read_text("utf-8")
    lesson = expected.partition("\n\n")[2].rstrip("\n")
    command = f"python examples/{scenario.script}.py --faults '{scenario.faults}'"
    summary = f"<code>{command}</code> prints</summary>"
    assert f"{summary}\n\n```text\n{lesson}\n```" in WORKSHOP


def test_every_block_is_part_of_a_transcript_or_of_a_change() -> None:
    transcripts = [path.read_text("utf-8") for path in EXPECTED.rglob("*.txt")]
    changes = [shown for *_, shown in MODIFIES]
    for block in re.findall(r"```text\n(.*?)```", WORKSHOP, re.DOTALL):
        assert block in changes or any(block in transcript for transcript in transcripts), block


def test_every_lesson_has_a_change_to_make() -> None:
    assert [script for _, _, script, _, _ in MODIFIES] == [
        path.stem for path in sorted((ROOT / "examples").glob("0*.py"))
    ]


def children(folder: Path) -> dict[str, Child]:
    """The scripts, each with its change, in a project of their own."""
    project = folder / "modified"
    for name in ("examples", "lib"):
        shutil.copytree(ROOT / name, project / name)
    children = {}
    for before, after, script, arguments, _ in MODIFIES:
        source = (ROOT / "examples" / f"{script}.py").read_text("utf-8")
        copy = project / "examples" / f"{script}.py"
        copy.write_text(source.replace(before, after), "utf-8")
        log = {"MISTRAL_LOG_FILE": str(project / f"{script}.log")}
        children[f"modified {script}"] = Child((str(copy), *arguments.split()), project, log)
    return children


@pytest.mark.parametrize(
    ("before", "script", "shown"), [(found[0], found[2], found[4]) for found in MODIFIES]
)
def test_the_change_prints_what_the_page_says(
    before: str, script: str, shown: str, outcome_of: Callable[[str], Outcome]
) -> None:
    source = (ROOT / "examples" / f"{script}.py").read_text("utf-8")
    if source.count(before) != 1 and not os.environ.get("CI"):
        pytest.skip(f"{script} has been changed already: git restore examples/{script}.py")
    assert source.count(before) == 1
    assert shown in outcome_of(f"modified {script}").out


def test_every_name_that_the_page_points_at_is_in_the_code() -> None:
    code = "\n".join(
        path.read_text("utf-8")
        for folder in (ROOT / "lib", ROOT / "examples")
        for path in Path(folder).glob("*.py")
    )
    names = re.findall(r"`(?:[A-Z]\w+\.)?(_?[a-zA-Z]\w+)(?:\([^`]*\))?`", WORKSHOP)
    assert len(names) > 15
    missing = [name for name in names if not re.search(rf"\b{name}\b", code)]
    assert missing == []
