"""Each command prints its transcript, as a child process, against a real server."""

from __future__ import annotations

import re
from functools import partial

import pytest

from conftest import Commands
from examples.failure_scenarios import SCENARIOS
from support import SCRIPTS, run, script, transcript, without_time

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
COMMANDS = {
    **{name: partial(run, *script(name, "--trace")) for name in LESSONS},
    "failure_scenarios/02_recovers": partial(
        run, *script("02_backoff", "--faults", "503,503", "--trace")
    ),
    **{
        f"failure_scenarios/{each.name}": partial(
            run, *script(each.script, "--faults", each.faults, "--trace"), MISTRAL_TIMEOUT="0.7"
        )
        for each in SLOW_SCENARIOS
    },
}

# Each request's arrival and duration in seconds, and its outcome.
TIMELINES = {
    "failure_scenarios/02_recovers": [(0.0, 0.0, "503"), (1.0, 0.0, "503"), (3.0, 0.0, "200")],
    "03_rate_limits": [(0.0, 0.5, "200 (slow)"), (1.0, 1.1, "200 (slow)"), (2.1, 0.0, "200")],
    "04_circuit_breaker": [
        (0.0, 0.0, "200"), (0.0, 0.0, "503"), (0.0, 0.0, "503"), (1.1, 0.0, "200"),
    ],
    "asyncio_client": [(0.0, 0.0, "200"), (0.5, 0.0, "200"), (1.0, 0.0, "200")],
    "failure_scenarios/streaming_retries_before_the_first_piece": [
        (0.0, 0.0, "drop"), (0.0, 0.0, "drop"), (0.1, 0.0, "200"), (0.1, 0.0, "200"),
    ],
    "failover": [
        (0.0, 0.0, "503  mistral-large-latest"),
        (0.0, 0.0, "200  mistral-small-latest"),
        (0.0, 0.0, "503  mistral-large-latest"),
        (0.0, 0.0, "200  mistral-small-latest"),
        (0.0, 0.0, "200  mistral-small-latest"),  # the circuit of the first model is open
        (0.0, 0.0, "200  mistral-small-latest"),
        (0.6, 0.0, "503  mistral-large-latest"),  # a probe
        (0.6, 0.0, "200  mistral-small-latest"),
        (1.1, 0.0, "200  mistral-large-latest"),  # a probe
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_command_prints_its_transcript(name: str, commands: Commands) -> None:
    code, out, err = commands(name)
    assert (code, without_time(out)) == (0, transcript(name)), err
    assert "Traceback" not in err


def test_there_are_six_lessons() -> None:
    assert [path.name[:3] for path in SCRIPTS] == [f"0{number}_" for number in range(1, 7)]
    assert {path.stem for path in SCRIPTS} <= set(LESSONS)


@pytest.mark.parametrize("name", TIMELINES)
def test_trace_shows_when_each_request_arrived(name: str, commands: Commands) -> None:
    expected = TIMELINES[name]
    heading = f"The server saw {len(expected)} requests:\n"
    lines = commands(name).err.partition(heading)[2].splitlines()
    assert [line.rpartition("| ")[2] for line in lines] == [outcome for *_, outcome in expected]
    for line, (seconds, *_) in zip(lines, expected, strict=True):
        assert -0.1 <= float(line.partition(" s ")[0]) - seconds <= 0.6  # a busy machine is late
