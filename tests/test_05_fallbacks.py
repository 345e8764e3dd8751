"""Example 5 against a mocked API: each strategy answers, and one error stops the fall."""

from __future__ import annotations

import json

import pytest
import requests
import responses

from conftest import FakeClock
from support import CHAT_URL, completion, error_body, run_in_process, transcript

HEADING = (
    "=== Example 5: Fallback Strategies ===\n\n"
    "Testing fallback strategies:\n  Trying primary (mistral-large)...\n"
)
SMALLER = "  Trying fallback 1 (mistral-small)...\n"


def models_asked(api: responses.RequestsMock) -> list[str]:
    return [json.loads(call.request.body or "")["model"] for call in api.calls]


def test_the_primary_answers_and_nothing_else_is_tried(
    api: responses.RequestsMock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    api.post(CHAT_URL, json=completion("42"))

    assert run_in_process("05_fallbacks", monkeypatch) == 0

    assert capsys.readouterr().out == HEADING + "Response: 42\n\n"
    assert models_asked(api) == ["mistral-large-latest"]
    assert caplog.messages == []


def test_the_smaller_model_answers_for_the_primary_at_once(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    api.post(CHAT_URL, status=429, json=error_body("Rate limit exceeded"))
    api.post(CHAT_URL, json=completion("42"))

    assert run_in_process("05_fallbacks", monkeypatch) == 0

    assert capsys.readouterr().out == HEADING + SMALLER + "Response: 42\n\n"
    assert models_asked(api) == ["mistral-large-latest", "mistral-small-latest"]
    assert caplog.messages == ["Fallback strategy 'primary' failed: Rate limit exceeded"]
    assert clock.waits == []


def test_both_models_failing_prints_the_transcript(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    api.post(CHAT_URL, status=503, json=error_body("Simulated failure"))
    api.post(CHAT_URL, body=requests.ReadTimeout())

    assert run_in_process("05_fallbacks", monkeypatch) == 0

    assert capsys.readouterr().out == transcript("05_fallbacks")
    assert caplog.messages == [
        "Fallback strategy 'primary' failed: Simulated failure",
        "Fallback strategy 'fallback1' failed: api.mistral.ai did not respond in time",
    ]
    assert clock.waits == []


@pytest.mark.parametrize("status", [400, 401, 422])
def test_our_own_mistake_is_not_hidden_by_a_fallback(
    status: int,
    api: responses.RequestsMock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.post(CHAT_URL, status=status, json={"detail": "Ours to mend"})

    assert run_in_process("05_fallbacks", monkeypatch) == 0

    assert capsys.readouterr().out == HEADING + "Not a case for a fallback: Ours to mend\n\n"


@pytest.mark.parametrize("status", [404, 400])
def test_a_model_that_is_not_there_is_a_case_for_the_smaller_one(
    status: int,
    api: responses.RequestsMock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The text shows a 404; the real API says it with a 400 and a code of its own."""
    api.post(CHAT_URL, status=status, json=error_body("Invalid model", "1500"))
    api.post(CHAT_URL, json=completion("42"))

    assert run_in_process("05_fallbacks", monkeypatch) == 0

    assert capsys.readouterr().out == HEADING + SMALLER + "Response: 42\n\n"


def test_live_it_says_that_its_faults_are_shown_offline(
    api: responses.RequestsMock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.post(CHAT_URL, json=completion("42"))

    assert run_in_process("05_fallbacks", monkeypatch) == 0

    out, err = capsys.readouterr()
    assert out.endswith("Response: 42\n\n")
    assert "This lesson relies on simulated failures, which only --offline shows." in err
