"""Every storm is run as a user would run it, and prints its transcript."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.storm import STORMS
from support import EXPECTED, ROOT, Child, Outcome, run, start, without_time


def children(folder: Path) -> dict[str, Child]:
    return {
        storm.name: Child(
            (str(ROOT / "examples" / f"{storm.script}.py"), "--faults", storm.faults),
            folder,
            # Nobody waits two seconds for a timeout here.
            {"MISTRAL_LOG_FILE": str(folder / f"{storm.name}.log"), "MISTRAL_TIMEOUT": "0.7"},
        )
        for storm in STORMS
    }


@pytest.mark.parametrize("name", [storm.name for storm in STORMS])
def test_storm_prints_its_transcript(name: str, outcome_of: Callable[[str], Outcome]) -> None:
    code, out, err = outcome_of(name)
    expected = (EXPECTED / "storm" / f"{name}.txt").read_text("utf-8")
    assert (code, without_time(out)) == (0, expected), err
    assert "Traceback" not in err


def test_every_transcript_belongs_to_a_storm_and_none_is_listed_twice() -> None:
    names = [storm.name for storm in STORMS]
    files = [path.stem for path in sorted(Path(EXPECTED, "storm").iterdir())]
    assert sorted(names) == files


def test_each_of_the_first_five_examples_has_two_to_four_storms() -> None:
    for number in ("01", "02", "03", "04", "05"):
        assert 2 <= sum(storm.script.startswith(number) for storm in STORMS) <= 4


def test_an_example_that_does_not_exist_is_a_sentence_and_exit_2() -> None:
    code, out, err = run(str(ROOT / "examples" / "storm.py"), "99")
    assert (code, out) == (2, "")
    assert err == "Which example? Give its number, 01 to 06, or none for all.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no process can press Ctrl-C for another there")
def test_ctrl_c_ends_the_storm_without_a_traceback() -> None:
    with start(str(ROOT / "examples" / "storm.py"), "02") as child:
        assert child.stdout
        assert child.stdout.readline().startswith("$ python examples/02_backoff.py")
        os.kill(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in err
