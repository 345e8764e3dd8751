"""Lesson 4 against a mocked API: which requests reach it, and the one wait."""

from __future__ import annotations

import pytest
import responses

from conftest import FakeClock, RunScript
from support import CHAT_URL, completion, error_body, transcript

PROBE_FAILS = transcript("failure_scenarios/04_probe_fails")


def all_closed(*outcomes: str) -> str:
    lines = [f"Request {n}: Circuit state: closed - {each}\n" for n, each in enumerate(outcomes, 1)]
    return "=== Example 4: Circuit Breaker Pattern ===\n\n" + "".join(lines) + "\n"


OK, FAILED = "Success", "Failed: Simulated failure"


@pytest.mark.parametrize(
    ("statuses", "out", "waits"),
    [
        pytest.param([200, 503, 503, 200], transcript("04_circuit_breaker"), [1.1], id="recovers"),
        pytest.param([503, 500, 503], PROBE_FAILS, [1.1], id="probe fails"),
        pytest.param([200] * 5, all_closed(*[OK] * 5), [], id="no failure"),
        pytest.param(
            [503, 200, 503, 200, 503],
            all_closed(FAILED, OK, FAILED, OK, FAILED),
            [],
            id="success resets the count",
        ),
        pytest.param(
            [401, 401, 404, 400, 422], all_closed(*[FAILED] * 5), [], id="client errors don't count"
        ),
    ],
)
def test_requests_sent_and_states(
    statuses: list[int],
    out: str,
    waits: list[float],
    live_api: responses.RequestsMock,
    clock: FakeClock,
    run_script: RunScript,
) -> None:
    """The API has one response per request that is sent, and all must be asked for."""
    for status in statuses:
        body = completion("fine") if status == 200 else error_body("Simulated failure")
        live_api.post(CHAT_URL, status=status, json=body)
    assert run_script("04_circuit_breaker")[:2] == (0, out)
    assert clock.waits == waits
