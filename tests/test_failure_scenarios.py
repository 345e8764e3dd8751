"""Every scenario is run as a user would run it, and prints its transcript."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.failure_scenarios import SCENARIOS
from support import EXPECTED, ROOT, Child, Outcome, run, start, without_time


def children(folder: Path) -> dict[str, Child]:
    return {
        scenario.name: Child(
            (str(ROOT / "examples" / f"{scenario.script}.py"), "--faults", scenario.faults),
            folder,
            # Nobody waits two seconds for a timeout here.
            {"MISTRAL_LOG_FILE": str(folder / f"{scenario.name}.log"), "MISTRAL_TIMEOUT": "0.7"},
        )
        for scenario in SCENARIOS
    }


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
def test_scenario_prints_its_transcript(name: str, outcome_of: Callable[[str], Outcome]) -> None:
    code, out, err = outcome_of(name)
    expected = (EXPECTED / "failure_scenarios" / f"{name}.txt").read_text("utf-8")
    assert (code, without_time(out)) == (0, expected), err
    assert "Traceback" not in err


def test_every_transcript_belongs_to_a_scenario_and_none_is_listed_twice() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    files = [path.stem for path in sorted(Path(EXPECTED, "failure_scenarios").iterdir())]
    assert sorted(names) == files


def test_each_of_the_first_five_examples_has_two_to_four_scenarios() -> None:
    for number in ("01", "02", "03", "04", "05"):
        assert 2 <= sum(scenario.script.startswith(number) for scenario in SCENARIOS) <= 6


def test_an_example_that_does_not_exist_is_a_sentence_and_exit_2() -> None:
    code, out, err = run(str(ROOT / "examples" / "failure_scenarios.py"), "99")
    assert (code, out) == (2, "")
    assert err == "Which example? Give its number, 01 to 06, or none for all.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no process can press Ctrl-C for another there")
def test_ctrl_c_ends_the_scenarios_without_a_traceback() -> None:
    with start(str(ROOT / "examples" / "failure_scenarios.py"), "02") as child:
        assert child.stdout
        assert child.stdout.readline().startswith("$ python examples/02_backoff.py")
        os.kill(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in err
