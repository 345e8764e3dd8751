"""Example 4 against a mocked API: which requests reach it, and the one wait."""

from __future__ import annotations

import pytest
import responses

from conftest import FakeClock, RunScript
from support import CHAT_URL, completion, error_body, transcript

FAILED = "Failed: Simulated failure"
REJECTED = "Failed: Circuit breaker is open"


def lesson(*requests: str) -> str:
    """Return the output for requests given as "state - outcome"."""
    lines = [f"Request {n}: Circuit state: {end}\n" for n, end in enumerate(requests, start=1)]
    return "=== Example 4: Circuit Breaker Pattern ===\n\n" + "".join(lines) + "\n"


@pytest.mark.parametrize(
    ("statuses", "out", "waits"),
    [
        pytest.param(
            [200, 503, 503, 200], transcript("04_circuit_breaker"), [1.1], id="probe succeeds"
        ),
        pytest.param(
            [503, 500, 503],
            lesson(
                f"closed - {FAILED}",
                f"closed - {FAILED}",
                f"open - {REJECTED}",
                f"open - {REJECTED}",
                f"half-open - {FAILED}",
            ),
            [1.1],
            id="probe fails",
        ),
        pytest.param([200] * 5, lesson(*["closed - Success"] * 5), [], id="no failure"),
        pytest.param(
            [503, 200, 503, 200, 503],
            lesson(*[f"closed - {FAILED}", "closed - Success"] * 2, f"closed - {FAILED}"),
            [],
            id="success resets the count",
        ),
        pytest.param(
            [401, 401, 404, 400, 422],
            lesson(*[f"closed - {FAILED}"] * 5),
            [],
            id="client errors do not count",
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
