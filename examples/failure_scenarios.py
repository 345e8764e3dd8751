"""Failure scenarios: the same examples, and what each does when the API fails in its own way.

    python examples/failure_scenarios.py        # all of them
    python examples/failure_scenarios.py 02     # those of example 2

Each line of SCENARIOS is a command that you can run by itself; what it must print stands
under tests/expected/failure_scenarios/.
"""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).resolve().parent


class Scenario(NamedTuple):
    """An example, its weather, and the name of its transcript."""

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


def main() -> None:
    chosen = [scenario for scenario in SCENARIOS if scenario.script.startswith(tuple(sys.argv[1:]) or "")]
    if not chosen:
        print("Which example? Give its number, 01 to 06, or none for all.", file=sys.stderr)
        sys.exit(2)
    for scenario in chosen:
        print(f"$ python examples/{scenario.script}.py --faults '{scenario.faults}'", flush=True)
        script = EXAMPLES / f"{scenario.script}.py"
        child = subprocess.run([sys.executable, script, "--faults", scenario.faults], check=False)
        if child.returncode in (130, 141):  # Ctrl-C, or nobody reads on
            sys.exit(child.returncode)
        if child.returncode:
            sys.exit(f"{scenario.script} ended with {child.returncode} in the weather {scenario.faults}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
