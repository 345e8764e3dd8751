"""Failure scenarios: each lesson with its most instructive faults.

    python examples/failure_scenarios.py        # all of them, in half a minute
    python examples/failure_scenarios.py 02     # those of lesson 2

Each scenario is a command that you can also run by itself. What it prints is in
tests/expected/failure_scenarios/.
"""

import runpy
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import CLOSED_PIPE, INTERRUPTED, UsageError, print_err, run_command

EXAMPLES = Path(__file__).resolve().parent


class Scenario(NamedTuple):
    """A lesson's script, its fault script, and the name of its transcript."""

    script: str
    faults: str
    name: str


SCENARIOS = (
    Scenario("01_basic_errors", "401,429:2", "01_wrong_key_and_rate_limit"),
    Scenario("01_basic_errors", "400,422", "01_bad_requests"),
    Scenario("01_basic_errors", "html:502,timeout", "01_gateway_page_and_timeout"),
    Scenario("01_basic_errors", "cut,drop", "01_broken_connections"),
    Scenario("02_backoff", "503,503", "02_recovers"),
    Scenario("02_backoff", "503*", "02_gives_up"),
    Scenario("02_backoff", "401", "02_no_retry_after_401"),
    Scenario("02_backoff", "429:2,drop", "02_retry_after"),
    Scenario("02_backoff", "noquota", "02_permanent_429"),
    Scenario("02_backoff", "drip:0.2", "02_slow_body"),
    Scenario("03_rate_limits", "429:2", "03_retry_after"),
    Scenario("03_rate_limits", "429", "03_no_retry_after"),
    Scenario("03_rate_limits", "429:2,429:2", "03_rejected_twice"),
    Scenario("04_circuit_breaker", "ok,timeout,500", "04_probe_succeeds"),
    Scenario("04_circuit_breaker", "503*", "04_probe_fails"),
    Scenario("04_circuit_breaker", "404*", "04_client_errors_do_not_count"),
    Scenario("05_fallbacks", "ok", "05_primary_answers"),
    Scenario("05_fallbacks", "404", "05_smaller_model_answers"),
    Scenario("05_fallbacks", "401", "05_wrong_key_is_raised"),
    Scenario("06_error_logger", "ok,503,timeout,429:2,401", "06_alert"),
    Scenario("answers", "empty*", "answers_empty"),
    Scenario("failover", "503*", "failover_both_models_are_down"),
    Scenario("failover", "401", "failover_wrong_key"),
    Scenario("streaming", "drop,drop", "streaming_retries_before_the_first_piece"),
)


def main() -> int:
    chosen = [item for item in SCENARIOS if item.script.startswith(tuple(sys.argv[1:]) or "")]
    if not chosen:
        raise UsageError("There is no such lesson: give its number, 01 to 06, or none for all.")
    for scenario in chosen:
        print(f"$ python examples/{scenario.script}.py --faults '{scenario.faults}'")
        sys.argv = [str(EXAMPLES / f"{scenario.script}.py"), "--faults", scenario.faults]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:  # every lesson ends with it
            code = int(end.code or 0)
        if code not in (0, INTERRUPTED, CLOSED_PIPE):
            print_err(f"{scenario.name} failed with exit code {code}.")
        if code:
            return code
    return 0


if __name__ == "__main__":
    run_command(main)
