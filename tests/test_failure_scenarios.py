"""Failure scenarios: each prints its transcript, and the command runs them all.

test_transcripts.py runs those with a timeout or a slow body, which need real time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from conftest import FakeClock, RunScript
from examples.failure_scenarios import SCENARIOS
from support import EXPECTED, ROOT, Outcome, script_child, transcript, without_time

WAITS = {
    "01_wrong_key_and_rate_limit": [],
    "01_bad_requests": [],
    "01_broken_connections": [],
    "02_recovers": [1.0, 2.0],
    "02_gives_up": [1.0, 2.0],
    "02_no_retry_after_401": [],
    "02_retry_after": [2.0, 2.0],
    "02_permanent_429": [],
    "03_retry_after": [2.0, 1.0, 1.0],
    "03_no_retry_after": [1.0, 1.0, 1.0],
    "03_rejected_twice": [2.0, 1.0, 1.0],
    "04_probe_fails": [1.1],
    "04_client_errors_do_not_count": [],
    "05_primary_answers": [],
    "05_smaller_model_answers": [],
    "05_wrong_key_is_raised": [],
}


@pytest.mark.parametrize("name", WAITS)
def test_scenario_prints_its_transcript(name: str, clock: FakeClock, run_script: RunScript) -> None:
    (scenario,) = [each for each in SCENARIOS if each.name == name]
    code, out, err = run_script(scenario.script, "--faults", scenario.faults)
    assert (code, without_time(out)) == (0, transcript(f"failure_scenarios/{name}")), err
    assert clock.waits == pytest.approx(WAITS[name])


def test_each_transcript_belongs_to_one_scenario() -> None:
    files = [path.stem for path in (EXPECTED / "failure_scenarios").iterdir()]
    assert sorted(each.name for each in SCENARIOS) == sorted(files)


class TestCommand:
    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[list[str]]]:
        """Replace the child processes by an exit code; the list fills with their commands."""

        def replace(code: int) -> list[list[str]]:
            commands: list[list[str]] = []

            def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
                commands.append(command)
                return subprocess.CompletedProcess(command, code)

            monkeypatch.setattr(subprocess, "run", run)
            return commands

        return replace

    def test_it_runs_all_scenarios_in_order(
        self, commands: Callable[[int], list[list[str]]], run_script: RunScript
    ) -> None:
        run = commands(0)
        code, out, _ = run_script("failure_scenarios")
        assert code == 0
        assert run == [
            [sys.executable, str(ROOT / f"examples/{each.script}.py"), "--faults", each.faults]
            for each in SCENARIOS
        ]
        assert out.splitlines() == [
            f"$ python examples/{each.script}.py --faults '{each.faults}'" for each in SCENARIOS
        ]

    @script_child("failure_scenarios", "06", MISTRAL_TIMEOUT="0.7")
    def test_it_runs_one_lesson(self, outcome: Outcome) -> None:
        command = "$ python examples/06_error_logger.py --faults 'ok,503,timeout,429:2,401'\n"
        assert (outcome.code, outcome.out) == (
            0,
            command + transcript("failure_scenarios/06_alert"),
        )

    @pytest.mark.parametrize(
        ("code", "err"),
        [
            pytest.param(130, "", id="Ctrl-C"),
            pytest.param(141, "", id="closed pipe"),
            pytest.param(3, "02_recovers failed with exit code 3.\n", id="failure"),
        ],
    )
    def test_it_stops_at_the_first_failure(
        self,
        code: int,
        err: str,
        commands: Callable[[int], list[list[str]]],
        run_script: RunScript,
    ) -> None:
        run = commands(code)
        outcome = run_script("failure_scenarios", "02")
        assert (outcome.code, outcome.err, len(run)) == (code, err, 1)

    def test_unknown_lesson_is_one_sentence_and_exit_2(self, run_script: RunScript) -> None:
        message = "There is no such lesson: give its number, 01 to 06, or none for all.\n"
        assert run_script("failure_scenarios", "99") == (2, "", message)
