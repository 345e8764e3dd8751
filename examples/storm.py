"""Storm weather: the same examples, and what each does when the API fails in its own way.

    python examples/storm.py        # all of them
    python examples/storm.py 02     # those of example 2

Each line of STORMS is a command that you can run by itself; what it must print stands
under tests/expected/storm/.
"""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).resolve().parent


class Storm(NamedTuple):
    """An example, its weather, and the name of its transcript."""

    script: str
    faults: str
    name: str


STORMS = (
    Storm("01_basic_errors", "401,429:2", "01_wrong_key_then_too_fast"),
    Storm("01_basic_errors", "400,422", "01_bad_requests"),
    Storm("01_basic_errors", "html:502,timeout", "01_gateway_page_then_silence"),
    Storm("01_basic_errors", "cut,drop", "01_broken_connections"),
    Storm("02_backoff", "503,503", "02_recovers"),
    Storm("02_backoff", "503*", "02_gives_up"),
    Storm("02_backoff", "401", "02_does_not_retry"),
    Storm("02_backoff", "429:2,drop", "02_waits_as_told"),
    Storm("03_rate_limits", "429:2", "03_waits_as_told"),
    Storm("03_rate_limits", "429", "03_is_not_told"),
    Storm("03_rate_limits", "429:2,429:2", "03_refused_twice"),
    Storm("04_circuit_breaker", "ok,timeout,500", "04_probe_heals"),
    Storm("04_circuit_breaker", "503*", "04_probe_fails"),
    Storm("04_circuit_breaker", "404*", "04_not_the_services_fault"),
    Storm("05_fallbacks", "ok", "05_primary_answers"),
    Storm("05_fallbacks", "404", "05_smaller_model_answers"),
    Storm("05_fallbacks", "401", "05_may_not_be_hidden"),
    Storm("06_error_logger", "ok,503,timeout,429:2,401", "06_alert"),
)


def main() -> None:
    chosen = [storm for storm in STORMS if storm.script.startswith(tuple(sys.argv[1:]) or "")]
    if not chosen:
        print("Which example? Give its number, 01 to 06, or none for all.", file=sys.stderr)
        sys.exit(2)
    for storm in chosen:
        print(f"$ python examples/{storm.script}.py --faults '{storm.faults}'", flush=True)
        script = EXAMPLES / f"{storm.script}.py"
        child = subprocess.run([sys.executable, script, "--faults", storm.faults], check=False)
        if child.returncode in (130, 141):  # Ctrl-C, or nobody reads on
            sys.exit(child.returncode)
        if child.returncode:
            sys.exit(f"{storm.script} ended with {child.returncode} in the weather {storm.faults}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
