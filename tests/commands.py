"""The commands that take long, such as those whose output the pages show.

Each runs once, as a child process behind the other tests: see the fixture ``commands``.
"""

from __future__ import annotations

import re

from examples.failure_scenarios import SCENARIOS
from support import ROOT, script

LESSONS = (
    "01_basic_errors", "02_backoff", "03_rate_limits", "04_circuit_breaker", "05_fallbacks",
    "06_error_logger", "streaming", "token_limits", "asyncio_client", "answers",
    "failover", "batch_job",
)  # fmt: skip
# A timeout and a slow body need real time, and the waits of two lessons are random;
# test_failure_scenarios.py runs the others with a fake clock.
SLOW_SCENARIOS = [
    each
    for each in SCENARIOS
    if re.search("timeout|drip", each.faults) or each.script in ("streaming", "answers")
]

# By the name of the transcript. --trace leaves stdout as it is.
TRANSCRIPTS = {
    **{name: script(name, "--trace") for name in LESSONS},
    "failure_scenarios/02_recovers": script("02_backoff", "--faults", "503,503", "--trace"),
    **{
        f"failure_scenarios/{each.name}": script(each.script, "--faults", each.faults, "--trace")
        for each in SLOW_SCENARIOS
    },
}
COMMANDS = {
    **TRANSCRIPTS,
    "walk": [str(ROOT / "examples" / "support" / "workshop.py"), "6"],
    "development mode": ["-X", "dev", str(ROOT / "examples" / "01_basic_errors.py")],
}
