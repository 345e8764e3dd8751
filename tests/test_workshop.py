"""The workshop's page is true: each scenario shown, each change tried, each name in the code."""

from __future__ import annotations

import os
import re

import pytest

from examples.failure_scenarios import SCENARIOS
from examples.support.timeline import timeline
from lib.mock_server import LoggedRequest
from support import EXPECTED, ROOT, SCRIPTS, Outcome, transcript
from test_transcripts import TIMELINES

WORKSHOP = (ROOT / "examples" / "README.md").read_text("utf-8")
TRANSCRIPTS = [path.read_text("utf-8") for path in EXPECTED.rglob("*.txt")]
# Each is (before, after, script, arguments, output).
CHANGES = re.findall(
    r"\*\*Modify:\*\* change `([^`]+)` to `([^`]+)`, and run it again:\n\n"
    r"```console\n\$ python examples/(\w+)\.py ?(.*)\n```\n\n```text\n([^`]*)```",
    WORKSHOP,
)

# Changes a script and runs it: argv is before, after, the script's path, its arguments.
RUN_CHANGED = """
import sys
before, after, path = sys.argv[1:4]
sys.argv = sys.argv[3:]
source = open(path, encoding="utf-8").read().replace(before, after)
exec(compile(source, path, "exec"), {"__name__": "__main__", "__file__": path})
"""


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
    shown += [output for *_, output in CHANGES]
    for block in re.findall(r"```text\n(.*?)```", WORKSHOP, re.DOTALL):
        assert any(block in text for text in shown)


def test_every_lesson_has_a_change() -> None:
    assert [script for _, _, script, _, _ in CHANGES] == [path.stem for path in SCRIPTS]


@pytest.mark.parametrize(
    ("before", "script", "shown"),
    [
        pytest.param(
            before,
            script,
            output,
            marks=pytest.mark.child(
                "-c", RUN_CHANGED, before, after, str(ROOT / f"examples/{script}.py"),
                *arguments.split(),
            ),
            id=script,
        )
        for before, after, script, arguments, output in CHANGES
    ],
)  # fmt: skip
def test_change_prints_what_the_page_says(
    before: str, script: str, shown: str, outcome: Outcome
) -> None:
    source = (ROOT / "examples" / f"{script}.py").read_text("utf-8")
    if source.count(before) != 1 and not os.environ.get("CI"):
        pytest.skip(f"{script} has been changed already: git restore examples/{script}.py")
    assert source.count(before) == 1
    assert shown in outcome.out, outcome.err


def test_every_name_on_the_page_is_in_the_code() -> None:
    folders = (ROOT / "lib", ROOT / "examples")
    code = "\n".join(path.read_text("utf-8") for folder in folders for path in folder.glob("*.py"))
    names = re.findall(r"`(?:[A-Z]\w+\.)?(_?[a-zA-Z]\w+)(?:\([^`]*\))?`", WORKSHOP)
    assert len(names) > 15
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []
