"""Lesson 1 against a mocked API: each category of errors has its own line and its own log."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
import requests
import responses

from conftest import FakeClock, RunScript
from lib.client import MistralClient
from support import CHAT_URL, MODELS_URL, completion, error_body, transcript

HELLO = [{"role": "user", "content": "Hello!"}]
MODEL_NOT_FOUND = {"status": 404, "json": error_body("Model not found", "1500")}
DISCONNECTED = requests.ConnectionError(ConnectionResetError())
LINES: list[tuple[dict[str, Any], str]] = [
    ({"status": 401, "json": {"detail": "Wrong key"}}, "Authentication Error (401): Wrong key"),
    ({"status": 429, "json": error_body("Too fast")}, "Rate Limited (429): Too fast"),
    ({"status": 400, "json": error_body("Too long")}, "API Error (400): Too long"),
    ({"status": 500, "json": error_body("Down")}, "API Error (500): Down"),
    ({"body": requests.ReadTimeout()}, "Timeout: api.mistral.ai did not respond in time"),
    (
        {"body": DISCONNECTED},
        "Network Error: api.mistral.ai closed the connection before the response was complete",
    ),
    ({"body": '{"choices": ['}, "Unexpected Error: the response is truncated or not JSON"),
]
LOGS: list[tuple[dict[str, Any], str]] = [
    ({"status": 401}, "Authentication failed: check your API key"),
    ({"status": 429, "headers": {"Retry-After": "7"}}, "Rate limited: retry after 7 seconds"),
    ({"status": 429, "headers": {"Retry-After": "0"}}, "Rate limited: retry after 0 seconds"),
    ({"status": 429}, "Rate limited: retry after 60 seconds"),
    (MODEL_NOT_FOUND, "API error (404): Model not found"),
    ({"status": 503}, "API error (503): Service Unavailable"),
    ({"body": requests.ReadTimeout()}, "No usable answer: api.mistral.ai did not respond in time"),
    ({"body": "{"}, "No usable answer: the response is truncated or not JSON"),
]


class TestLesson:
    def test_success_and_missing_model_print_the_transcript(
        self, live_api: responses.RequestsMock, clock: FakeClock, run_script: RunScript
    ) -> None:
        live_api.post(CHAT_URL, json=completion("Hello! How can I assist you today?"))
        live_api.post(CHAT_URL, **MODEL_NOT_FOUND)
        code, out, err = run_script("01_basic_errors")
        assert (code, out) == (0, transcript("01_basic_errors"))
        assert "https://api.mistral.ai/v1, which may charge for them; --offline is free." in err
        sent = [json.loads(call.request.body or "") for call in list(live_api.calls)[1:]]
        assert [body["model"] for body in sent] == ["mistral-small-latest", "invalid-model-name"]
        assert [body["messages"] for body in sent] == [HELLO] * 2
        assert clock.waits == []

    def test_each_category_has_its_own_line(
        self, api: responses.RequestsMock, run_script: RunScript
    ) -> None:
        success = "✓ Success: Hello! How can I assist you today?"
        for response, line in LINES:
            api.get(MODELS_URL)
            api.post(CHAT_URL, **response)
            api.post(CHAT_URL, **MODEL_NOT_FOUND)
            code, out, _ = run_script("01_basic_errors")
            assert (code, out) == (0, transcript("01_basic_errors").replace(success, f"✗ {line}"))

    def test_50_characters_of_an_answer_are_shown(
        self, live_api: responses.RequestsMock, run_script: RunScript
    ) -> None:
        live_api.post(CHAT_URL, json=completion("x" * 80))
        live_api.post(CHAT_URL, **MODEL_NOT_FOUND)
        assert f"  ✓ Success: {'x' * 50}\n" in run_script("01_basic_errors").out


class TestSafeAPICall:
    @pytest.fixture
    def safe_api_call(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
        monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds to it
        call: Callable[..., str | None]
        call = importlib.import_module("examples.01_basic_errors").safe_api_call
        return call

    def test_success_returns_the_text_and_logs_nothing(
        self,
        safe_api_call: Callable[..., str | None],
        api: responses.RequestsMock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, logger="examples.01_basic_errors")
        api.post(CHAT_URL, json=completion("Hello!"))
        with MistralClient("test-key") as client:
            assert safe_api_call(client, HELLO, model="mistral-large-latest") == "Hello!"
        assert json.loads(api.calls[0].request.body or "")["model"] == "mistral-large-latest"
        assert caplog.messages == []

    def test_error_returns_none_and_logs_why(
        self,
        safe_api_call: Callable[..., str | None],
        api: responses.RequestsMock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with MistralClient("test-key") as client:
            for response, _ in LOGS:
                api.post(CHAT_URL, **response)
                assert safe_api_call(client, HELLO) is None
        assert caplog.messages == [message for _, message in LOGS]
        assert {record.levelno for record in caplog.records} == {logging.ERROR}

    def test_wrong_argument_is_raised(self, safe_api_call: Callable[..., str | None]) -> None:
        with MistralClient("test-key") as client, pytest.raises(ValueError, match="messages"):
            safe_api_call(client, [])
