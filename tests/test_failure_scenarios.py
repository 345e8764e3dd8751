"""Failure scenarios: each prints its transcript, and the command runs them all."""

from __future__ import annotations

import time

import pytest

from conftest import FakeClock, RunScript
from examples.failure_scenarios import SCENARIOS
from support import EXPECTED, transcript, without_time
from test_transcripts import SLOW_SCENARIOS

PACED = 1 / 0.985  # seconds between two requests at 60 per minute
WAITS = {
    "01_wrong_key_and_rate_limit": [],
    "01_bad_requests": [],
    "01_broken_connections": [],
    "02_recovers": [1.0, 2.0],
    "02_gives_up": [1.0, 2.0],
    "02_no_retry_after_401": [],
    "02_retry_after": [2.0, 2.0],
    "02_permanent_429": [],
    "03_retry_after": [2.0, PACED, PACED],
    "03_no_retry_after": [PACED, PACED, PACED],
    "03_rejected_twice": [2.0, PACED, PACED],
    "04_probe_fails": [1.1],
    "04_client_errors_do_not_count": [],
    "05_primary_answers": [],
    "05_smaller_model_answers": [],
    "05_wrong_key_is_raised": [],
    "failover_both_models_are_down": [0.55, 0.55],
    "failover_wrong_key": [0.55, 0.55],
}


@pytest.mark.parametrize("name", WAITS)
def test_scenario_prints_its_transcript(name: str, clock: FakeClock, run_script: RunScript) -> None:
    (scenario,) = [each for each in SCENARIOS if each.name == name]
    code, out, err = run_script(scenario.script, "--faults", scenario.faults)
    assert (code, without_time(out)) == (0, transcript(f"failure_scenarios/{name}")), err
    assert clock.waits == pytest.approx(WAITS[name])


def test_each_scenario_has_a_test_and_a_transcript() -> None:
    names = sorted(each.name for each in SCENARIOS)
    assert names == sorted([*WAITS, *(each.name for each in SLOW_SCENARIOS)])
    assert names == sorted(path.stem for path in (EXPECTED / "failure_scenarios").iterdir())


class TestCommand:
    def test_it_runs_the_scenarios_of_a_lesson_in_order(self, run_script: RunScript) -> None:
        code, out, _ = run_script("failure_scenarios", "05")
        assert (code, out) == (0, "".join(
            f"$ python examples/{each.script}.py --faults '{each.faults}'\n"
            + transcript(f"failure_scenarios/{each.name}")
            for each in SCENARIOS
            if each.script == "05_fallbacks"
        ))  # fmt: skip

    def test_it_stops_at_a_failure_and_names_it(
        self, monkeypatch: pytest.MonkeyPatch, run_script: RunScript
    ) -> None:
        monkeypatch.setenv("MISTRAL_TIMEOUT", "0")
        code, out, err = run_script("failure_scenarios", "02")
        assert (code, len(out.splitlines())) == (2, 1)
        assert err.endswith("02_recovers failed with exit code 2.\n")

    def test_ctrl_c_ends_it_at_once(
        self, monkeypatch: pytest.MonkeyPatch, run_script: RunScript
    ) -> None:
        def interrupt(seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", interrupt)
        code, out, err = run_script("failure_scenarios", "02")
        assert (code, out.count("$ python")) == (130, 1)
        assert "failed" not in err

    def test_unknown_lesson_is_one_sentence_and_exit_2(self, run_script: RunScript) -> None:
        message = "There is no such lesson: give its number, 01 to 06, or none for all.\n"
        assert run_script("failure_scenarios", "99") == (2, "", message)
