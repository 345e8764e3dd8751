# SPDX-License-Identifier: MIT-0
"""Build the mock server's responses: ``respond`` is a function from a request to a response.

It does no I/O and keeps no state; only a completion's ``created`` field depends on the clock.
The bodies have the shapes that the real API sends. The message of a simulated server error
says that it is simulated. Each word counts as one token.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

MODELS = (
    "mistral-small-latest", "mistral-medium-latest", "mistral-large-latest", "ministral-8b-latest",
)  # fmt: skip
PARAMETERS = {
    "model", "messages", "temperature", "top_p", "max_tokens", "stream", "stop", "random_seed",
    "response_format", "tools", "tool_choice", "presence_penalty", "frequency_penalty", "n",
    "prediction", "parallel_tool_calls", "prompt_mode", "reasoning_effort", "safe_prompt",
    "metadata", "guardrails", "prompt_cache_key", "service_tier", "min_tokens", "top_k",
    "repetition_penalty", "logprobs", "top_logprobs", "prompt_logprobs", "top_prompt_logprobs",
}  # fmt: skip
CHAT_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"
GATEWAY_PAGE = "<html><head><title>{0}</title></head><body><h1>{0}</h1>gateway</body></html>"


@dataclass
class Response:
    """An HTTP response and how to send it. A ``body`` that is a list is an event stream."""

    status: int
    body: str | list[str]
    headers: dict[str, str] = field(default_factory=dict)
    tokens: int = 0  # charged to the token limit
    delay: float = 0.0  # seconds before the response is sent
    seconds_per_byte: float = 0.0
    truncated: bool = False


def respond(method: str, path: str, key: str, body: bytes) -> Response:
    """Return the API's normal response to a request."""
    if not key:
        return error_response(401)
    if (method, path) == ("GET", MODELS_PATH):
        return json_response(200, {"object": "list", "data": [_model(name) for name in MODELS]})
    if (method, path) != ("POST", CHAT_PATH):
        served = f"Not Found: the mock serves POST {CHAT_PATH} and GET {MODELS_PATH} only"
        return json_response(404, {"detail": served})
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return json_response(400, _error_body("The body is not JSON", "invalid_request_error"))
    if errors := _validation_errors(request):
        return json_response(422, _error_body({"detail": errors}, "invalid_request_error"))
    if request["model"] not in MODELS:
        return json_response(404, _error_body("Model not found", "invalid_model", "1500"))
    completion = _chat_completion(request, uuid.uuid5(uuid.NAMESPACE_URL, body.hex()).hex)
    if request.get("stream") is True:
        response = Response(200, _to_sse(completion), {"Content-Type": "text/event-stream"})
    else:
        response = json_response(200, completion)
    response.tokens = completion["usage"]["total_tokens"]
    return response


def error_response(status: int, retry_after: float | None = None) -> Response:
    """Return an error response in the shape that the real API sends."""
    response = json_response(status, ERROR_BODIES.get(status, {"detail": _phrase(status)}))
    if status == 504:
        response = Response(status, "")  # a gateway's timeout has an empty body
    elif status == 520:
        response = gateway_page(status)
    if retry_after is not None:
        response.headers["Retry-After"] = f"{retry_after:.6f}".rstrip("0").rstrip(".")
    return response


def no_quota_response() -> Response:
    """Return the 429 of a plan that allows no requests at all: waiting does not help."""
    response = error_response(429)
    response.headers["x-ratelimit-limit-req-minute"] = "0"
    response.headers["x-ratelimit-remaining-req-minute"] = "0"
    return response


def gateway_page(status: int) -> Response:
    """Return what a gateway in front of the API sends: an HTML page."""
    page = GATEWAY_PAGE.format(f"{status} {_phrase(status)}")
    return Response(status, page, {"Content-Type": "text/html"})


def json_response(status: int, body: dict[str, Any]) -> Response:
    """Return a response with a JSON body."""
    return Response(status, json.dumps(body), {"Content-Type": "application/json"})


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"HTTP status {status}"


def _validation_errors(request: Any) -> list[dict[str, Any]]:
    """Return what is wrong with a chat request, in the format of the API's validator."""
    if not isinstance(request, dict):
        return [{"type": "dict_type", "loc": ["body"], "msg": "Input should be an object"}]
    found = [
        {"type": "missing", "loc": ["body", name], "msg": "Field required"}
        for name in ("model", "messages")
        if name not in request
    ]
    found += [
        {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
        for name in request
        if name not in PARAMETERS
    ]
    if not isinstance(request.get("model", ""), str):
        found.append({"type": "string_type", "loc": ["body", "model"], "msg": "Not a string"})
    messages = request.get("messages", [{"role": "user"}])
    if not isinstance(messages, list) or not messages:
        found.append({"type": "list_type", "loc": ["body", "messages"], "msg": "Not a list"})
    elif not all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in messages):
        found.append({"type": "missing", "loc": ["body", "messages", "role"], "msg": "No role"})
    return found


def truncated_json(body: str | list[str]) -> str | list[str]:
    """Return half of a JSON body, or half of a stream's events and half of the next event."""
    half = len(body) // 2
    if isinstance(body, str):
        return body[:half]
    return [*body[:half], body[half][: len(body[half]) // 2] + "\n\n"]


def _chat_completion(request: dict[str, Any], completion_id: str) -> dict[str, Any]:
    prompt = _prompt_text(request["messages"][-1].get("content"))
    reply = "Hello! How can I assist you today?" if prompt == "Hello!" else f"{prompt} response"
    tokens_in = sum(len(_prompt_text(item.get("content")).split()) for item in request["messages"])
    tokens_out = len(reply.split())
    message = {"role": "assistant", "content": reply, "tool_calls": None}
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        },
    }


def _to_sse(completion: dict[str, Any]) -> list[str]:
    """Return the completion as stream events: one per word, the finish reason, the end mark."""
    words = re.findall(r"\S+\s*", completion["choices"][0]["message"]["content"])
    choices: list[dict[str, Any]] = [
        {"index": 0, "delta": {"content": word}, "finish_reason": None} for word in words
    ]
    choices[0]["delta"]["role"] = "assistant"
    choices.append({"index": 0, "delta": {"content": ""}, "finish_reason": "stop"})
    head = {name: completion[name] for name in ("id", "created", "model")}
    events: list[dict[str, Any]] = [
        {**head, "object": "chat.completion.chunk", "choices": [choice]} for choice in choices
    ]
    events[-1]["usage"] = completion["usage"]
    return [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]


def _prompt_text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(chunk.get("text", "")) for chunk in content if isinstance(chunk, dict))
    return str(content or "")


def _model(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "type": "base",
        "created": 1782199134,
        "owned_by": "mistralai",
        "capabilities": {"completion_chat": True, "function_calling": True, "vision": False},
    }


def _error_body(message: Any, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


# Error bodies in the real API's format; the message says where the error is simulated.
ERROR_BODIES: dict[int, dict[str, Any]] = {
    400: _error_body("The request is invalid", "invalid_request_error"),
    401: {"detail": "Unauthorized"},
    402: _error_body("API budget exhausted.", "billing_api_budget_exhausted", "2303"),
    404: {"detail": "Not Found"},
    422: {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}]},
    429: _error_body("Rate limit exceeded", "rate_limited", "1300"),
    500: _error_body("Simulated failure", "internal_server_error", "1000"),
    503: _error_body("Simulated failure", "unreachable_backend", "1100"),
}
