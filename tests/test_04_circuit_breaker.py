"""Example 4 against a mocked API: what reaches it, what doesn't, and the one wait."""

from __future__ import annotations

import pytest
import responses

from conftest import FakeClock
from support import CHAT_URL, completion, error_body, run_in_process, transcript

TITLE = "=== Example 4: Circuit Breaker Pattern ===\n\n"
FAILED = "Failed: Simulated failure"
REFUSED = "Failed: Circuit breaker is open"


def add_answers(api: responses.RequestsMock, *statuses: int) -> None:
    for status in statuses:
        body = completion("fine") if status == 200 else error_body("Simulated failure")
        api.post(CHAT_URL, status=status, json=body)


def lesson(*requests: str) -> str:
    """What the script prints, from "state - outcome" of each request."""
    lines = [f"Request {n}: Circuit state: {end}\n" for n, end in enumerate(requests, start=1)]
    return TITLE + "".join(lines) + "\n"


def test_a_service_that_recovers_prints_the_transcript(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Four answers for five requests: the fourth request is never sent."""
    add_answers(api, 200, 503, 503, 200)

    assert run_in_process("04_circuit_breaker", monkeypatch) == 0

    assert capsys.readouterr().out == transcript("04_circuit_breaker")
    assert clock.waits == [1.1]


def test_a_service_that_stays_down_is_asked_three_times_and_not_five(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_answers(api, 503, 500, 503)

    assert run_in_process("04_circuit_breaker", monkeypatch) == 0

    assert capsys.readouterr().out == lesson(
        f"closed - {FAILED}",
        f"closed - {FAILED}",
        f"open - {REFUSED}",
        f"open - {REFUSED}",
        f"half-open - {FAILED}",
    )
    assert clock.waits == [1.1]


@pytest.mark.parametrize(
    "statuses",
    [
        pytest.param((200, 200, 200, 200, 200), id="no failure"),
        pytest.param((503, 200, 503, 200, 503), id="never two failures in a row"),
        pytest.param((401, 401, 404, 400, 422), id="errors that are not the service's fault"),
    ],
)
def test_the_circuit_stays_closed_and_nothing_is_waited_for(
    statuses: tuple[int, ...],
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_answers(api, *statuses)

    assert run_in_process("04_circuit_breaker", monkeypatch) == 0

    ends = ["closed - Success" if status == 200 else f"closed - {FAILED}" for status in statuses]
    assert capsys.readouterr().out == lesson(*ends)
    assert clock.waits == []
