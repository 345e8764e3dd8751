"""Failure scenarios: each prints its transcript, and the command runs them all."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from conftest import FakeClock, RunScript
from examples.failure_scenarios import SCENARIOS
from support import EXPECTED, ROOT, Outcome, script_child, transcript, without_time

# A timeout and a slow body need real time; the others run with a fake clock.
SLOW = [each for each in SCENARIOS if re.search("timeout|drip", each.faults)]
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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            each.name,
            marks=script_child(each.script, "--faults", each.faults, MISTRAL_TIMEOUT="0.7"),
        )
        for each in SLOW
    ],
)
def test_slow_scenario_prints_its_transcript(name: str, outcome: Outcome) -> None:
    assert (outcome.code, outcome.out) == (0, transcript(f"failure_scenarios/{name}")), outcome.err


def test_each_scenario_has_a_test_and_a_transcript() -> None:
    names = sorted(each.name for each in SCENARIOS)
    assert names == sorted([*WAITS, *(each.name for each in SLOW)])
    assert names == sorted(path.stem for path in (EXPECTED / "failure_scenarios").iterdir())


class FakeRun:
    """Replaces ``subprocess.run``: notes each command and returns the same exit code."""

    def __init__(self) -> None:
        self.code = 0
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        assert not check
        self.commands.append(command)
        return subprocess.CompletedProcess(command, self.code)


class TestCommand:
    @pytest.fixture
    def fake_run(self, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
        fake = FakeRun()
        monkeypatch.setattr(subprocess, "run", fake)
        return fake

    def test_it_runs_all_scenarios_in_order(self, fake_run: FakeRun, run_script: RunScript) -> None:
        code, out, err = run_script("failure_scenarios")
        assert (code, err) == (0, "")
        assert fake_run.commands == [
            [sys.executable, str(ROOT / f"examples/{each.script}.py"), "--faults", each.faults]
            for each in SCENARIOS
        ]
        assert out.splitlines() == [
            f"$ python examples/{each.script}.py --faults '{each.faults}'" for each in SCENARIOS
        ]

    @script_child("failure_scenarios", "06", MISTRAL_TIMEOUT="0.7")
    def test_it_runs_one_lesson(self, outcome: Outcome) -> None:
        command = "$ python examples/06_error_logger.py --faults 'ok,503,timeout,429:2,401'\n"
        assert outcome[:2] == (0, command + transcript("failure_scenarios/06_alert"))

    @pytest.mark.parametrize(
        ("code", "err"),
        [
            pytest.param(130, "", id="Ctrl-C"),
            pytest.param(141, "", id="closed pipe"),
            pytest.param(3, "02_recovers failed with exit code 3.\n", id="failure"),
        ],
    )
    def test_it_stops_at_the_first_failure(
        self, code: int, err: str, fake_run: FakeRun, run_script: RunScript
    ) -> None:
        fake_run.code = code
        outcome = run_script("failure_scenarios", "02")
        assert (outcome.code, outcome.err, len(fake_run.commands)) == (code, err, 1)

    def test_unknown_lesson_is_one_sentence_and_exit_2(self, run_script: RunScript) -> None:
        message = "There is no such lesson: give its number, 01 to 06, or none for all.\n"
        assert run_script("failure_scenarios", "99") == (2, "", message)
