"""Failure scenarios: every example under the faults that teach most.

    python examples/failure_scenarios.py        # all of them, in half a minute
    python examples/failure_scenarios.py 02     # those of example 2

Each line of SCENARIOS is a command that you can run by itself; what it prints is in
tests/expected/failure_scenarios/.
"""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.lesson import CLOSED_PIPE, INTERRUPTED, UsageError, run_command

EXAMPLES = Path(__file__).resolve().parent


class Scenario(NamedTuple):
    """An example, its fault script, and the name of its transcript."""

    script: str
    faults: str
    name: str


SCENARIOS = (
    Scenario("01_basic_errors", "401,429:2", "01_wrong_key_then_too_fast"),
    Scenario("01_basic_errors", "400,422", "01_bad_requests"),
    Scenario("01_basic_errors", "html:502,timeout", "01_gateway_page_then_silence"),
    Scenario("01_basic_errors", "cut,drop", "01_broken_connections"),
    Scenario("02_backoff", "503,503", "02_recovers"),
    Scenario("02_backoff", "503*", "02_gives_up"),
    Scenario("02_backoff", "401", "02_does_not_retry"),
    Scenario("02_backoff", "429:2,drop", "02_waits_as_told"),
    Scenario("02_backoff", "noquota", "02_permanent_429"),
    Scenario("02_backoff", "drip:0.2", "02_drips"),
    Scenario("03_rate_limits", "429:2", "03_waits_as_told"),
    Scenario("03_rate_limits", "429", "03_is_not_told"),
    Scenario("03_rate_limits", "429:2,429:2", "03_refused_twice"),
    Scenario("04_circuit_breaker", "ok,timeout,500", "04_probe_heals"),
    Scenario("04_circuit_breaker", "503*", "04_probe_fails"),
    Scenario("04_circuit_breaker", "404*", "04_not_the_services_fault"),
    Scenario("05_fallbacks", "ok", "05_primary_answers"),
    Scenario("05_fallbacks", "404", "05_smaller_model_answers"),
    Scenario("05_fallbacks", "401", "05_may_not_be_hidden"),
    Scenario("06_error_logger", "ok,503,timeout,429:2,401", "06_alert"),
)


def main() -> int:
    chosen = [item for item in SCENARIOS if item.script.startswith(tuple(sys.argv[1:]) or "")]
    if not chosen:
        raise UsageError("Which example? Give its number, 01 to 06, or none for all.")
    for scenario in chosen:
        print(f"$ python examples/{scenario.script}.py --faults '{scenario.faults}'", flush=True)
        script = str(EXAMPLES / f"{scenario.script}.py")
        command = [sys.executable, script, "--faults", scenario.faults]
        code = subprocess.run(command, check=False).returncode
        if code in (INTERRUPTED, CLOSED_PIPE):
            return code
        if code:
            raise UsageError(f"{scenario.script} ended with {code} under {scenario.faults}")
    return 0


if __name__ == "__main__":
    run_command(main)
