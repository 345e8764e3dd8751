"""The mock server's normal responses: in the shapes of the real APIs."""

from __future__ import annotations

import base64
import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import FakeClock
from lib.mock_server import MockServer
from lib.mock_server.dialects import MISTRAL
from mock_client import (
    CHAT,
    GREETING,
    HELLO,
    MODELS,
    REQUEST,
    STREAM,
    Reply,
    request,
    request_in_progress,
    send_bytes,
    statuses,
)


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    """A server without faults, shared by the tests that change nothing about it."""
    with MockServer() as server:
        yield server


@pytest.fixture(scope="module")
def openai() -> Iterator[MockServer]:
    with MockServer(dialect="openai") as server:
        yield server


WRONG_FIELDS: list[tuple[Any, list[list[str]]]] = [
    ([], [["body"]]),
    ({}, [["body", "model"], ["body", "messages"]]),
    ({"messages": HELLO["messages"]}, [["body", "model"]]),
    ({"model": "mistral-small-latest"}, [["body", "messages"]]),
    ({**HELLO, "model": None}, [["body", "model"]]),
    ({**HELLO, "model": ["mistral-small-latest"]}, [["body", "model"]]),
    ({**HELLO, "messages": []}, [["body", "messages"]]),
    ({**HELLO, "messages": [], "tools": []}, [["body", "messages"]]),
    (
        {**HELLO, "messages": [], "response_format": {"type": "json_object"}},
        [["body", "messages"]],
    ),
    ({**HELLO, "messages": None}, [["body", "messages"]]),
    ({**HELLO, "messages": {"role": "user"}}, [["body", "messages"]]),
    ({**HELLO, "max_tokens": "5"}, [["body", "max_tokens"]]),
    ({**STREAM, "stream_options": "x"}, [["body", "stream_options"]]),
    ({**HELLO, "max_completion_tokens": 5}, [["body", "max_completion_tokens"]]),
    ({**HELLO, "store": True, "a.b": 1}, [["body", "store"], ["body", "a.b"]]),
    (
        {**HELLO, "stream_options": {"include_usage": True}},
        [["body", "stream_options", "include_usage"]],
    ),
]
WRONG_MESSAGES: list[tuple[Any, str]] = [  # and the part that is wrong
    ("Hello!", "role"),
    ({"content": "Hello!"}, "role"),
    ({"role": None, "content": "Hello!"}, "role"),
    ({"role": 5, "content": "Hello!"}, "role"),
    ({"role": "user", "content": 5}, "content"),
    ({"role": "user", "content": {"text": "Hello!"}}, "content"),
    ({"role": "user", "content": ["Hello!"]}, "content"),
    ({"role": "user", "content": [{"type": "text", "text": 5}]}, "content"),
]
REPLIES: list[tuple[Any, str]] = [
    ("Hello!", "Hello! How can I assist you today?"),
    ("Test retry logic", "Test retry logic response"),
    ("Grüße, 世界 🌍 \ud800", "Grüße, 世界 🌍 \ud800 response"),
    ([{"type": "text", "text": "One"}, {"type": "text", "text": "two"}], "One two response"),
    ([{"type": "image_url"}], " response"),
    ([{"type": "text", "text": None}], " response"),
    (None, " response"),
]


class TestEndpoints:
    """What the endpoints send without faults, in the real API's shapes."""

    def test_chat_completion(self, server: MockServer) -> None:
        reply = request(server, {**HELLO, "max_tokens": 7, "temperature": 0.2, "stop": ["."]})
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
        assert re.fullmatch(r"[0-9a-f-]{36}", reply.headers["mistral-correlation-id"])
        body = reply.json
        assert re.fullmatch(r"[0-9a-f]{32}", body.pop("id"))
        assert abs(body.pop("created") - time.time()) < 60
        message = {"role": "assistant", "content": GREETING, "tool_calls": None}
        assert body == {
            "object": "chat.completion",
            "model": "mistral-small-latest",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8},
        }

    def test_max_tokens_cut_a_longer_answer(self, server: MockServer) -> None:
        for body in (HELLO, STREAM):
            reply = request(server, {**body, "max_tokens": 2})
            last = reply.chunks[-1] if body is STREAM else reply.json
            assert "can" not in reply.text
            assert last["choices"][0]["finish_reason"] == "length"
            assert last["usage"]["completion_tokens"] == 2

    def test_reply_repeats_the_prompt(self, server: MockServer) -> None:
        for content, text in REPLIES:
            body = {**HELLO, "messages": [{"role": "user", "content": content}]}
            assert request(server, body).content == text

    def test_null_is_a_field_that_is_not_set(self, server: MockServer) -> None:
        unset = dict.fromkeys(["max_tokens", "tools", "response_format", "stream_options"])
        assert request(server, {**HELLO, **unset}).content == GREETING

    def test_same_request_gets_the_same_id(self, server: MockServer) -> None:
        embedding = {"model": "mistral-embed", "input": "Hello!"}
        for path, body in ((CHAT, HELLO), ("/v1/embeddings", embedding)):
            first, second = (request(server, body, path=path).json["id"] for _ in range(2))
            assert first == second
            assert (
                request(server, {**body, "model": "ministral-8b-latest"}, path=path).json["id"]
                != first
            )

    def test_last_message_is_the_prompt_and_usage_counts_all(self, server: MockServer) -> None:
        messages = [
            {"role": "system", "content": "Be very brief."},
            {"role": "user", "content": "One two"},
        ]
        reply = request(server, {**HELLO, "messages": messages})
        assert reply.content == "One two response"
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        assert reply.json["usage"] == usage

    def test_models_are_those_that_chat_accepts(self, server: MockServer) -> None:
        reply = request(server, method="GET", path=MODELS)
        assert (reply.status, reply.json["object"]) == (200, "list")
        assert [model["id"] for model in reply.json["data"]] == list(MISTRAL.models)
        for model in reply.json["data"]:
            assert {"id", "object", "created", "owned_by", "capabilities"} <= set(model)
            assert (model["object"], model["capabilities"]["completion_chat"]) == ("model", True)
            assert request(server, {**HELLO, "model": model["id"]}).json["model"] == model["id"]
            assert request(server, method="GET", path=f"{MODELS}/{model['id']}").json == model

    @pytest.mark.parametrize("encoding", ["float", "base64"])
    def test_embeddings(self, server: MockServer, encoding: str) -> None:
        body = {
            "model": "mistral-embed",
            "input": ["one two", "three"],
            "encoding_format": encoding,
        }
        reply = request(server, body, path="/v1/embeddings")
        assert (reply.status, reply.json["usage"]["total_tokens"]) == (200, 3)
        assert [item["index"] for item in reply.json["data"]] == [0, 1]
        for item in reply.json["data"]:
            vector = item["embedding"]
            if encoding == "base64":
                raw = base64.b64decode(vector)
                vector = list(struct.unpack(f"<{len(raw) // 4}f", raw))
            assert vector == [0.5, -0.5, 0.5, -0.5]

    def test_any_key_is_accepted_and_none_is_a_401(self, server: MockServer) -> None:
        for key in ("Bearer x", "BEARER  x "):
            assert request(server, authorization=key).status == 200
        for no_key in (None, "", "Bearer ", "Basic c2stc2Vj"):
            for method, path in (("POST", CHAT), ("GET", "/")):
                reply = request(server, method=method, path=path, authorization=no_key)
                assert (reply.status, reply.json) == (401, {"detail": "Unauthorized"})

    def test_a_body_that_is_not_json_is_a_400(self, server: MockServer) -> None:
        for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
            reply = request(server, body)
            assert (reply.status, reply.json["message"]) == (400, "The body is not JSON")

    def test_wrong_fields_are_a_422_that_names_them(self, server: MockServer) -> None:
        for body, fields in WRONG_FIELDS:
            reply = request(server, body)
            errors = reply.json["message"]["detail"]
            assert (reply.status, [error["loc"] for error in errors]) == (422, fields)
            assert all(error["msg"] and error["type"] for error in errors)

    def test_wrong_message_is_a_422_wherever_it_is(self, server: MockServer) -> None:
        for message, part in WRONG_MESSAGES:
            for messages in ([message], [message, *HELLO["messages"]]):
                reply = request(server, {**HELLO, "messages": messages})
                assert reply.status == 422, message
                (error,) = reply.json["message"]["detail"]
                assert error["loc"] == ["body", "messages", part]

    def test_wrong_type_is_named(self, server: MockServer) -> None:
        (error,) = request(server, {**HELLO, "model": 5}).json["message"]["detail"]
        assert error["type"] == "string_type"
        assert error["msg"] == "Expected string, got int"

    def test_unknown_model_is_a_404(self, server: MockServer) -> None:
        reply = request(server, {**HELLO, "model": "invalid-model-name"})
        assert (reply.status, reply.json["message"]) == (404, "Model not found")

    def test_wrong_path_is_a_404_that_names_the_endpoints(self, server: MockServer) -> None:
        for method, path in (
            ("GET", CHAT), ("POST", MODELS), ("GET", "/v1/models/x"), ("POST", "/chat/completions"),
        ):  # fmt: skip
            reply = request(server, method=method, path=path)
            assert reply.status == 404
            assert "the mock serves POST /v1/chat/completions, " in reply.json["detail"]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
SCHEMA = {  # what pydantic makes of nested classes
    "$defs": {"Line": {"properties": {"text": {"minLength": 6, "type": "string"}}}},
    "type": "object",
    "properties": {
        "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}, "minItems": 2},
        "tags": {"type": "array", "items": {"type": "string"}},
        "kind": {"enum": ["a", "b"]},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "age": {"type": "integer", "minimum": 18},
        "share": {"type": "number", "maximum": 0.5},
        "on": {"type": "string", "format": "date"},
        "ok": {"type": ["boolean", "null"]},
        "v": {"const": 3},
        "name": {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]},
    },
}
FITTING = {
    "lines": [{"text": "textxx"}] * 2, "tags": [], "kind": "a", "next": None, "age": 18,
    "share": 0.5, "on": "2026-01-31", "ok": True, "v": 3, "name": "te",
}  # fmt: skip
WRONG_TOOLS: list[dict[str, Any]] = [
    {"tools": 5}, {"tools": [{"function": {}}]},
    {"tools": [WEATHER], "tool_choice": {"function": {"name": "other"}}},
    {"response_format": 5}, {"response_format": {"schema": {}}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/x"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
]  # fmt: skip


class TestTools:
    """What agents and structured outputs need: tools are called, JSON fits its schema."""

    @staticmethod
    def called(reply: Reply) -> list[str]:
        return [call["function"]["name"] for call in reply.choice["message"]["tool_calls"] or []]

    @staticmethod
    def after(calls: list[Any], **changes: Any) -> dict[str, Any]:
        messages = [
            *HELLO["messages"],
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "22 degrees", "tool_call_id": calls[0]["id"]},
        ]
        return {**HELLO, "tools": [WEATHER, TIME], "messages": messages, **changes}

    def test_tool_is_called_once_and_answered_after_its_result(self, server: MockServer) -> None:
        first = request(server, {**HELLO, "tools": [WEATHER, TIME]})
        assert first.choice["finish_reason"] == "tool_calls"
        (call,) = first.choice["message"]["tool_calls"]
        assert call["type"] == "function"
        assert json.loads(call["function"]["arguments"]) == {"city": "text", "days": 1}
        second = request(server, self.after([call]))
        assert (second.content, self.called(second)) == ("22 degrees response", [])

    def test_result_is_answered_without_its_call(self, server: MockServer) -> None:
        """A program may have dropped old messages to save tokens."""
        custom = {"id": "1", "type": "custom", "custom": {"name": "weather", "input": ""}}
        body = self.after([custom])
        user, _, result = body["messages"]
        for messages in (body["messages"], [user, result], [result]):
            reply = request(server, {**body, "messages": messages})
            assert (reply.content, self.called(reply)) == ("22 degrees response", [])

    def test_function_without_parameters_gets_no_arguments(self, server: MockServer) -> None:
        unset: list[dict[str, Any]] = [{}, {"parameters": None}, {"parameters": {}}]
        for parameters in unset:
            tool = {"type": "function", "function": {"name": "time", **parameters}}
            (call,) = request(server, {**HELLO, "tools": [tool]}).choice["message"]["tool_calls"]
            assert call["function"]["arguments"] == "{}"

    def test_tool_choice(self, server: MockServer) -> None:
        body = {**HELLO, "tools": [WEATHER, TIME]}
        named = {"type": "function", "function": {"name": "time"}}
        for choice, names in {"auto": ["weather"], "any": ["weather"], "none": []}.items():
            assert self.called(request(server, {**body, "tool_choice": choice})) == names
        assert self.called(request(server, {**body, "tool_choice": named})) == ["time"]

    def test_required_tools_are_each_called_once(self, server: MockServer) -> None:
        calls = request(server, {**HELLO, "tools": [WEATHER]}).choice["message"]["tool_calls"]
        second = request(server, self.after(calls, tool_choice="required"))
        assert self.called(second) == ["time"]
        (call,) = second.choice["message"]["tool_calls"]
        assert call["function"]["arguments"] == "{}"
        both = [*calls, call]
        assert self.called(request(server, self.after(both, tool_choice="required"))) == []

    @pytest.mark.parametrize("choice", ["auto", "required"])
    def test_next_question_calls_a_tool_again(self, server: MockServer, choice: str) -> None:
        calls = request(server, {**HELLO, "tools": [WEATHER]}).choice["message"]["tool_calls"]
        body = self.after(calls, tool_choice=choice)
        answer = {"role": "assistant", "content": "22 degrees response", "tool_calls": None}
        body["messages"] += [answer, *HELLO["messages"]]
        assert self.called(request(server, body)) == ["weather"]

    def test_tool_call_is_streamed(self, server: MockServer) -> None:
        chunks = request(server, {**STREAM, "tools": [WEATHER]}).chunks
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        (call,) = deltas[0]["tool_calls"]
        assert (call["index"], call["function"]["name"]) == (0, "weather")
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    def test_json_fits_its_schema(self, server: MockServer) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        assert json.loads(request(server, {**HELLO, "response_format": wanted}).content) == FITTING
        for kind, text in {"json_object": "{}", "text": GREETING}.items():
            assert request(server, {**HELLO, "response_format": {"type": kind}}).content == text
        assert request(server, {**HELLO, "response_format": {}}).content == GREETING

    def test_wrong_shape_is_a_422(self, server: MockServer) -> None:
        for fields in WRONG_TOOLS:
            reply = request(server, {**HELLO, **fields})
            assert reply.status == 422, fields
            (error,) = reply.json["message"]["detail"]
            assert error["loc"] == ["body", "tools"]


class TestReplies:
    def test_list_has_one_for_each_completion(self) -> None:
        """A request that fails uses none up."""
        with MockServer("503,429,drop", replies=["one", "two"]) as server:
            assert statuses(server, 2) == [503, 429]
            assert send_bytes(server, REQUEST) == b""
            assert [request(server).content for _ in range(3)] == ["one", "two", GREETING]

    def test_function_gets_the_body(self) -> None:
        def reply(body: Any) -> str | None:
            return {"Hello!": "Bonjour!", "": ""}.get(body["messages"][0]["content"])

        with MockServer(replies=reply) as server:
            for prompt, text in {"Hello!": "Bonjour!", "": "", "Hi": "Hi response"}.items():
                body = {**HELLO, "messages": [{"role": "user", "content": prompt}]}
                assert request(server, body).content == text
                streamed = request(server, {**body, "stream": True}).chunks
                deltas = [chunk["choices"][0]["delta"]["content"] for chunk in streamed]
                assert "".join(deltas) == text

    def test_a_function_that_waits_delays_nobody_else(self) -> None:
        go_on = threading.Event()

        def reply(body: Any) -> None:
            assert body["max_tokens"] == 50 or go_on.wait(10)

        waits = {**HELLO, "max_tokens": 60}
        with MockServer(replies=reply) as server, request_in_progress(server, waits):
            assert request(server, {**HELLO, "max_tokens": 50}).status == 200
            go_on.set()


class TestOpenAIDialect:
    """A program that is written for the OpenAI API can be tested unchanged."""

    def test_any_model_and_field_is_accepted(self, openai: MockServer) -> None:
        fields = {"seed": 1, "max_completion_tokens": 2, "logit_bias": {}, "store": True}
        reply = request(openai, {**HELLO, "model": "gpt-4o", **fields})
        assert (reply.status, reply.content) == (200, "Hello! How")
        assert reply.choice["finish_reason"] == "length"
        assert reply.headers["x-request-id"]
        assert request(openai, method="GET", path=f"{MODELS}/my-model").json["id"] == "my-model"
        assert request(openai, method="GET", path=f"{MODELS}/").json["object"] == "list"

    def test_usage_of_a_stream_on_request(self, openai: MockServer) -> None:
        plain = request(openai, STREAM).chunks
        with_usage = request(openai, {**STREAM, "stream_options": {"include_usage": True}}).chunks
        assert not any(chunk.get("usage") for chunk in plain)
        assert with_usage[-1]["choices"] == []
        assert with_usage[-1]["usage"]["total_tokens"] == 8
        assert len(with_usage) == len(plain) + 1

    def test_error_bodies(self) -> None:
        codes = {
            "400": None, "401": "invalid_api_key", "429": "rate_limit_exceeded", "500": None,
            "418": None, "noquota": "insufficient_quota", "toolong": "context_length_exceeded",
        }  # fmt: skip
        with MockServer(",".join(codes), dialect="openai") as server:
            for code in codes.values():
                error = request(server).json["error"]
                assert error["code"] == code
                assert {"message", "type", "param"} <= set(error)
            assert request(server, authorization=None).json["error"]["code"] == "invalid_api_key"
            assert request(server, b"{").status == 400
            missing = request(server, {"model": "gpt-4o"})
            assert (missing.status, missing.json["error"]["param"]) == (400, "messages")
            assert "the mock serves" in request(server, path="/v1/x").json["error"]["message"]

    def test_error_event_of_a_stream(self) -> None:
        with MockServer("streamerror", dialect="openai") as server:
            assert request(server, STREAM).chunks[-1]["error"]["message"] == "Simulated failure"

    def test_limit_headers(self, clock: FakeClock) -> None:
        with MockServer(dialect="openai", requests_per_minute=1, tokens_per_minute=50) as server:
            assert statuses(server, 1) == [200]
            clock.now += 15
            headers = request(server).headers
        assert headers["x-ratelimit-limit-requests"] == "1"
        assert headers["x-ratelimit-remaining-tokens"] == "42"
        assert headers["x-ratelimit-reset-requests"] == "45.000s"
        assert headers["Retry-After"] == "45"
