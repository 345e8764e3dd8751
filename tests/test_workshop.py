"""The workshop's page is true: each scenario shown, each change tried, each name in the code."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import Commands
from examples.failure_scenarios import SCENARIOS
from examples.support.timeline import timeline
from lib.mock_server import LoggedRequest
from support import EXPECTED, ROOT, SCRIPTS, run, transcript
from test_transcripts import TIMELINES

WORKSHOP = (ROOT / "examples" / "README.md").read_text("utf-8")
TRANSCRIPTS = [path.read_text("utf-8") for path in EXPECTED.rglob("*.txt")]


class Change(NamedTuple):
    """A change to a script that the workshop proposes, and what the script prints then."""

    before: str
    after: str
    script: str
    arguments: str
    shown: str

    @property
    def path(self) -> Path:
        return ROOT / "examples" / f"{self.script}.py"


CHANGES = [
    Change(*found)
    for found in re.findall(
        r"\*\*Modify:\*\* change `([^`]+)` to `([^`]+)`, and run it again:\n\n"
        r"```console\n\$ python examples/(\w+)\.py ?(.*)\n```\n\n```text\n([^`]*)```",
        WORKSHOP,
    )
]

# Runs a script with a change: argv is its path, what is replaced, by what, and its arguments.
RUN_CHANGED = """
import pathlib, sys
__file__, before, after = sys.argv[1:4]
sys.argv[:4] = [__file__]
source = pathlib.Path(__file__).read_text("utf-8").replace(before, after)
exec(compile(source, __file__, "exec"))
"""
COMMANDS = {
    f"changed {each.script}": partial(
        run, "-c", RUN_CHANGED, str(each.path), each.before, each.after, *each.arguments.split()
    )
    for each in CHANGES
}


def test_every_scenario_is_shown_with_its_command_and_output() -> None:
    for scenario in SCENARIOS:
        output = transcript(f"failure_scenarios/{scenario.name}").partition("\n\n")[2].rstrip("\n")
        command = f"$ python examples/{scenario.script}.py --faults '{scenario.faults}'"
        shown = [
            f"```console\n{command}{trace}\n```\n\n<details><summary>Output</summary>\n\n"
            f"```text\n{output}\n```"
            for trace in ("", " --trace")
        ]
        assert any(block in WORKSHOP for block in shown), scenario.name


def test_every_block_is_part_of_a_transcript_a_timeline_or_a_change() -> None:
    timelines = [
        timeline([LoggedRequest(at, length, "POST", "", end) for at, length, end in requests])
        for requests in TIMELINES.values()
    ]
    shown = [*TRANSCRIPTS, *("\n".join(lines) + "\n" for lines in timelines)]
    shown += [change.shown for change in CHANGES]
    for block in re.findall(r"```text\n(.*?)```", WORKSHOP, re.DOTALL):
        assert any(block in text for text in shown)


def test_every_lesson_has_a_change() -> None:
    lessons = [*(path.stem for path in SCRIPTS), "answers", "failover", "batch_job"]
    assert [change.script for change in CHANGES] == lessons


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.script)
def test_change_prints_what_the_page_says(change: Change, commands: Commands) -> None:
    source = change.path.read_text("utf-8")
    if source.count(change.before) != 1 and not os.environ.get("CI"):
        pytest.skip(f"it has been changed already: git restore examples/{change.script}.py")
    assert source.count(change.before) == 1
    outcome = commands(f"changed {change.script}")
    assert change.shown in outcome.out, outcome.err


def test_every_name_on_the_page_is_in_the_code() -> None:
    folders = (ROOT / "lib", ROOT / "examples")
    code = "\n".join(path.read_text("utf-8") for folder in folders for path in folder.glob("*.py"))
    names = re.findall(r"`(?:[A-Z]\w+\.)?(_?[a-zA-Z]\w+)(?:\([^`]*\))?`", WORKSHOP)
    assert len(names) > 15
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []
