"""Example 1 against a mocked API: each category of error has its own line, and its own log."""

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

from conftest import FakeClock
from lib.client import MistralClient
from support import (
    CHAT_URL,
    completion,
    error_body,
    refusing_url,
    run_in_process,
    transcript,
)

HELLO = [{"role": "user", "content": "Hello!"}]
MODEL_NOT_FOUND = {"status": 404, "json": error_body("Model not found", "1500")}
HTML_PAGE = "<html><body>Welcome to the hotel</body></html>"


def asked_for(api: responses.RequestsMock, field: str) -> list[Any]:
    """What each request had in that field of its body."""
    return [json.loads(call.request.body or "").get(field) for call in api.calls]


def test_a_good_answer_and_a_missing_model_print_the_transcript(
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.post(CHAT_URL, json=completion("Hello! How can I assist you today?"))
    api.post(CHAT_URL, **MODEL_NOT_FOUND)

    assert run_in_process("01_basic_errors", monkeypatch) == 0

    assert capsys.readouterr().out == transcript("01_basic_errors")
    assert asked_for(api, "model") == ["mistral-small-latest", "invalid-model-name"]
    assert asked_for(api, "messages") == [HELLO] * 2
    assert clock.waits == []


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        pytest.param(
            {"status": 401, "json": {"detail": "Invalid API Key"}},
            "Authentication Error (401): Invalid API Key",
            id="401",
        ),
        pytest.param(
            {"status": 429, "json": error_body("Rate limit exceeded")},
            "Rate Limited (429): Rate limit exceeded",
            id="429",
        ),
        pytest.param(
            {"status": 400, "json": error_body("Invalid model: X")},
            "API Error (400): Invalid model: X",
            id="400",
        ),
        pytest.param(
            {"status": 500, "json": error_body("Service unavailable.")},
            "API Error (500): Service unavailable.",
            id="500",
        ),
        pytest.param(
            {"status": 502, "body": HTML_PAGE}, "API Error (502): Bad Gateway", id="HTML page"
        ),
        pytest.param(
            {"body": requests.ReadTimeout()},
            "Timeout: api.mistral.ai did not respond in time",
            id="timeout",
        ),
        pytest.param(
            {"body": requests.ConnectionError(ConnectionResetError())},
            "Network Error: api.mistral.ai closed the connection before the response was complete",
            id="cut off",
        ),
        pytest.param(
            {"status": 200, "body": '{"choices": ['},
            "Unexpected Error: the response is truncated or not JSON",
            id="bad JSON",
        ),
        pytest.param(
            {"status": 200, "body": HTML_PAGE},
            "Unexpected Error: the response is an HTML page, not JSON",
            id="a 200 that is an HTML page",
        ),
    ],
)
def test_each_category_has_a_line_of_its_own_and_the_lesson_goes_on(
    answer: dict[str, Any],
    line: str,
    api: responses.RequestsMock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.post(CHAT_URL, **answer)
    api.post(CHAT_URL, **MODEL_NOT_FOUND)

    assert run_in_process("01_basic_errors", monkeypatch) == 0

    good = "  ✓ Success: Hello! How can I assist you today?"
    assert capsys.readouterr().out == transcript("01_basic_errors").replace(good, f"  ✗ {line}")


def test_a_refused_connection_is_a_network_error_and_no_timeout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over a real socket: what requests makes of a refusal is wrapped four deep."""
    monkeypatch.setenv("MISTRAL_API_KEY", "test-key")
    with refusing_url() as url:
        monkeypatch.setenv("MISTRAL_BASE_URL", url)
        assert run_in_process("01_basic_errors", monkeypatch) == 1

    out = capsys.readouterr().out
    assert out.count("  ✗ Network Error: 127.0.0.1 refused the connection\n") == 2


def test_a_long_answer_is_shown_by_its_beginning(
    api: responses.RequestsMock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.post(CHAT_URL, json=completion("x" * 80))
    api.post(CHAT_URL, **MODEL_NOT_FOUND)

    assert run_in_process("01_basic_errors", monkeypatch) == 0

    assert f"  ✓ Success: {'x' * 50}\n" in capsys.readouterr().out


@pytest.fixture
def safe_api_call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds to it
    lesson = importlib.import_module("examples.01_basic_errors")
    call: Callable[..., str | None] = lesson.safe_api_call
    return call


def test_safe_api_call_returns_the_text_and_logs_nothing(
    safe_api_call: Callable[..., str | None],
    api: responses.RequestsMock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="examples.01_basic_errors")
    api.post(CHAT_URL, json=completion("Hello!"))
    with MistralClient("test-key") as client:
        assert safe_api_call(client, HELLO, model="mistral-large-latest") == "Hello!"
    assert asked_for(api, "model") == ["mistral-large-latest"]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(
            {"status": 401, "json": {"detail": "Unauthorized"}},
            "Authentication failed: check your API key",
            id="401",
        ),
        pytest.param(
            {"status": 429, "headers": {"Retry-After": "7"}},
            "Rate limited: retry after 7 seconds",
            id="429 with Retry-After",
        ),
        pytest.param({"status": 429}, "Rate limited: retry after 60 seconds", id="429 without"),
        pytest.param(
            {"status": 429, "headers": {"Retry-After": "0"}},
            "Rate limited: retry after 0 seconds",
            id="429 with a Retry-After of 0",
        ),
        pytest.param(MODEL_NOT_FOUND, "API error (404): Model not found", id="404"),
        pytest.param({"status": 503}, "API error (503): Service Unavailable", id="503"),
        pytest.param(
            {"body": requests.ReadTimeout()},
            "No usable answer: api.mistral.ai did not respond in time",
            id="timeout",
        ),
        pytest.param(
            {"body": requests.ConnectionError(ConnectionRefusedError())},
            "No usable answer: api.mistral.ai refused the connection",
            id="refused",
        ),
        pytest.param(
            {"status": 200, "body": "{"},
            "No usable answer: the response is truncated or not JSON",
            id="bad JSON",
        ),
    ],
)
def test_safe_api_call_returns_none_and_logs_why(
    answer: dict[str, Any],
    reason: str,
    safe_api_call: Callable[..., str | None],
    api: responses.RequestsMock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    api.post(CHAT_URL, **answer)
    with MistralClient("test-key") as client:
        assert safe_api_call(client, HELLO) is None
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, reason)
    ]


def test_safe_api_call_does_not_hide_a_mistake_in_the_program(
    safe_api_call: Callable[..., str | None],
) -> None:
    with MistralClient("test-key") as client, pytest.raises(ValueError, match="messages"):
        safe_api_call(client, [])
