"""Example 5 against a mocked API: each strategy can answer, and some errors are not hidden."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
import responses

from conftest import FakeClock, RunScript
from support import CHAT_URL, completion, error_body, transcript

TITLE = "=== Example 5: Fallback Strategies ===\n\n"
PRIMARY = "Testing fallback strategies:\n  Trying primary (mistral-large)...\n"
SMALLER = "  Trying fallback 1 (mistral-small)...\n"
ANSWER: dict[str, Any] = {"json": completion("42")}
DOWN: dict[str, Any] = {"status": 503, "json": error_body("Down")}
LARGE_FAILED = "Fallback strategy 'primary' failed: "
SMALL_FAILED = "Fallback strategy 'fallback1' failed: "


@pytest.mark.parametrize(
    ("responses_sent", "out", "logged"),
    [
        pytest.param([ANSWER], TITLE + PRIMARY + "Response: 42\n\n", [], id="primary"),
        pytest.param(
            [DOWN, ANSWER],
            TITLE + PRIMARY + SMALLER + "Response: 42\n\n",
            [LARGE_FAILED + "Down"],
            id="smaller model",
        ),
        pytest.param(
            [DOWN, {"body": requests.ReadTimeout()}],
            transcript("05_fallbacks"),
            [LARGE_FAILED + "Down", SMALL_FAILED + "api.mistral.ai did not respond in time"],
            id="apology",
        ),
        pytest.param(
            [{"status": 404, "json": error_body("Gone")}, ANSWER],
            TITLE + PRIMARY + SMALLER + "Response: 42\n\n",
            [LARGE_FAILED + "Gone"],
            id="missing model",
        ),
        pytest.param(
            # The tutorial shows a 404; the real API sends a 400 with a code of its own.
            [{"status": 400, "json": error_body("Invalid model", "1500")}, ANSWER],
            TITLE + PRIMARY + SMALLER + "Response: 42\n\n",
            [LARGE_FAILED + "Invalid model"],
            id="missing model, as the real API says it",
        ),
    ],
)
def test_strategies_are_tried_in_order_without_a_wait(
    responses_sent: list[dict[str, Any]],
    out: str,
    logged: list[str],
    live_api: responses.RequestsMock,
    clock: FakeClock,
    run_script: RunScript,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for response in responses_sent:
        live_api.post(CHAT_URL, **response)
    assert run_script("05_fallbacks")[:2] == (0, out)
    sent = [json.loads(call.request.body or "") for call in list(live_api.calls)[1:]]
    models = ["mistral-large-latest", "mistral-small-latest"]
    assert [body["model"] for body in sent] == models[: len(sent)]
    assert caplog.messages == logged
    assert clock.waits == []


@pytest.mark.parametrize("status", [400, 401, 422])
def test_client_error_is_not_hidden(
    status: int, live_api: responses.RequestsMock, run_script: RunScript
) -> None:
    live_api.post(CHAT_URL, status=status, json={"detail": "Yours to fix"})
    out = TITLE + PRIMARY + "Not a case for a fallback: Yours to fix\n\n"
    assert run_script("05_fallbacks")[:2] == (0, out)
