"""client.py: what it sends, what it makes of every answer, and of none."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import socket
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import responses

from lib import client as client_module
from lib import transport as transport_module
from lib.circuit_breaker import CircuitBreaker
from lib.client import MistralClient, Usage
from lib.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    InternalServerError,
    InvalidRequestError,
    MistralError,
    NotFoundError,
    RateLimitError,
    error_info,
)
from lib.fallback import FallbackHandler
from lib.mock_server import MockServer
from lib.retry import Retrier
from support import CHAT_URL, WIRE_BODIES, RawServer, completion, raw_response

HELLO = [{"role": "user", "content": "Hello!"}]
MODELS_URL = "https://api.mistral.ai/v1/models"
GOOD_BODY = json.dumps(completion("Hi")).encode()
GOOD_ANSWER = raw_response("200 OK", GOOD_BODY)


@pytest.fixture
def client() -> Iterator[MistralClient]:
    with MistralClient("test-key") as client:
        yield client


def chat(base_url: str, timeout: float = 5.0) -> str:
    """The text that one call gives."""
    with MistralClient("test-key", base_url=base_url, timeout=timeout) as client:
        return client.chat(HELLO).content


def sent(api: responses.RequestsMock) -> dict[str, Any]:
    """The JSON of the last request."""
    payload: dict[str, Any] = json.loads(api.calls[-1].request.body or "null")
    return payload


# What is sent


def test_a_call_sends_model_and_messages_with_the_key_and_nothing_unasked(
    api: responses.RequestsMock, client: MistralClient
) -> None:
    api.post(CHAT_URL, json=completion("Hi"))
    client.chat(HELLO)
    assert sent(api) == {"model": "mistral-small-latest", "messages": HELLO}
    headers = api.calls[0].request.headers
    assert headers["Authorization"] == "Bearer test-key"
    assert headers["Content-Type"] == "application/json"


def test_parameters_are_passed_on_as_they_are(
    api: responses.RequestsMock, client: MistralClient
) -> None:
    api.post(CHAT_URL, json=completion("Hi"))
    client.chat(
        HELLO, model="ministral-8b-latest", max_tokens=5, temperature=0.2, stop=["."], stream=False
    )
    assert sent(api) == {
        "model": "ministral-8b-latest",
        "messages": HELLO,
        "max_tokens": 5,
        "temperature": 0.2,
        "stop": ["."],
        "stream": False,
    }


def test_text_in_any_script_arrives_as_it_was(
    api: responses.RequestsMock, client: MistralClient
) -> None:
    api.post(CHAT_URL, json=completion("Hi"))
    messages = [{"role": "user", "content": "Grüße, 世界 🌍\n\u2028 \ud800"}]
    client.chat(messages)
    assert sent(api)["messages"] == messages


@pytest.mark.parametrize(
    ("timeout", "used"),
    [(None, (5.0, 60.0)), (3, (3.0, 3.0)), ((1.5, 20), (1.5, 20.0))],
)
def test_no_call_is_without_a_timeout(
    api: responses.RequestsMock, timeout: Any, used: tuple[float, float]
) -> None:
    api.get(MODELS_URL, json={"data": []})
    with MistralClient("test-key", **({"timeout": timeout} if timeout else {})) as client:
        client.models()
    assert api.calls[0].request.req_kwargs["timeout"] == used  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "timeout",
    [
        0,
        -1,
        float("nan"),
        float("inf"),
        1e12,
        None,
        "5",
        (5,),
        (5, 0),
        (1, 2, 3),
        (None, 5),
        [5, 60],
    ],
)
def test_a_timeout_that_cannot_work_is_refused(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        MistralClient("test-key", timeout=timeout)


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        (),
        "Hello!",
        {"role": "user", "content": "Hello!"},
        [None],
        ["Hello!"],
        [{}],
        [{"content": "Hello!"}],
        [{"role": None, "content": "Hello!"}],
        [{"role": ["user"], "content": "Hello!"}],
        [{"role": "robot", "content": "Hello!"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": []}],
        [{"role": "system", "content": None}, *HELLO],
    ],
    ids=str,
)
def test_messages_that_cannot_be_right_cost_no_request(
    api: responses.RequestsMock, client: MistralClient, messages: Any
) -> None:
    with pytest.raises(ValueError, match="messages"):
        client.chat(messages)
    assert len(api.calls) == 0


def test_the_complaint_names_the_message(client: MistralClient) -> None:
    with pytest.raises(ValueError, match=r"messages\[1\] needs a role: one of system, user"):
        client.chat([*HELLO, {"role": "robot", "content": "Hi"}])


@pytest.mark.parametrize(
    "messages",
    [
        tuple(HELLO),
        [{"role": "system", "content": "Be brief."}, *HELLO],
        [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}],
        [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "", "tool_call_id": "1"},
        ],
    ],
    ids=["tuple", "system", "chunks", "tools"],
)
def test_messages_of_every_role_and_shape_are_sent(
    api: responses.RequestsMock, client: MistralClient, messages: Any
) -> None:
    api.post(CHAT_URL, json=completion("Hi"))
    client.chat(messages)
    assert sent(api)["messages"] == list(messages)


endless: list[Any] = []
endless.append(endless)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1, 2}, b"bytes", object(), endless, [[float("-inf")]]],
    ids=["nan", "inf", "set", "bytes", "object", "endless", "nested"],
)
def test_a_parameter_that_is_no_json_costs_no_request(
    api: responses.RequestsMock, client: MistralClient, value: Any
) -> None:
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        client.chat(HELLO, temperature=value)
    assert len(api.calls) == 0


def test_chat_refuses_to_stream(api: responses.RequestsMock, client: MistralClient) -> None:
    with pytest.raises(ValueError, match="stream"):
        client.chat(HELLO, stream=True)
    assert len(api.calls) == 0


# Answers that say yes


def test_the_answer_carries_text_model_reason_and_usage(
    api: responses.RequestsMock, client: MistralClient
) -> None:
    api.post(CHAT_URL, json=completion("Hi", model="mistral-small-2603"))
    answer = client.chat(HELLO)
    assert (answer.content, answer.model) == ("Hi", "mistral-small-2603")
    assert (answer.finish_reason, answer.usage) == ("stop", Usage(4, 36, 40))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "Hello!"}, "Hello!"),
        ({"content": ""}, ""),
        ({"content": []}, ""),
        ({"content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]}, "Hello!"),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hmm."}]},
                    {"type": "text", "text": "Hello!"},
                ]
            },
            "Hello!",
        ),
        ({"content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}, ""),
    ],
    ids=["text", "empty", "no chunks", "chunks", "thinking", "tool calls"],
)
def test_the_text_is_found_in_every_shape_of_content(
    api: responses.RequestsMock, client: MistralClient, message: dict[str, Any], text: str
) -> None:
    answer = completion("")
    answer["choices"][0]["message"] = {"role": "assistant", **message}
    api.post(CHAT_URL, json=answer)
    assert client.chat(HELLO).content == text


@pytest.mark.parametrize("usage", [{}, {"usage": None}], ids=["missing", "null"])
def test_usage_is_none_where_the_server_does_not_tell_it(
    api: responses.RequestsMock, client: MistralClient, usage: dict[str, None]
) -> None:
    answer = completion("Hi")
    del answer["usage"]
    api.post(CHAT_URL, json={**answer, **usage})
    assert client.chat(HELLO).usage is None


def test_models_gives_their_names(api: responses.RequestsMock, client: MistralClient) -> None:
    api.get(MODELS_URL, json={"object": "list", "data": [{"id": "a"}, {"id": "b"}]})
    assert client.models() == ["a", "b"]
    assert api.calls[0].request.headers["Authorization"] == "Bearer test-key"


# Answers that say yes, but nothing that can be used


def changed(**fields: Any) -> bytes:
    return json.dumps({**completion("Hi"), **fields}).encode()


def with_message(message: Any) -> bytes:
    return changed(choices=[{"index": 0, "finish_reason": "stop", "message": message}])


def with_usage(value: str) -> bytes:
    """``value`` as it would stand in the JSON."""
    return GOOD_BODY.replace(b'"prompt_tokens": 4', f'"prompt_tokens": {value}'.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \r\n",
        b"<!DOCTYPE html><html><body>Sign in to the Wi-Fi</body></html>",
        b"OK",
        b"\xff\xfe\x00",
        b"\x1f\x8b not gzip",
        GOOD_BODY[: len(GOOD_BODY) // 2],
        GOOD_BODY + b"}",
        b"[" * 100_000,
        b"9" * 10_000,
        b"[]",
        b"null",
        b"true",
        b"5",
        b'"Hi"',
        b"{}",
        b"[" + GOOD_BODY + b"]",
        b'{"object": "list", "data": []}',
        b'{"object": "error", "message": "Rate limit exceeded"}',
        b'{"choices": [{"delta": {"content": "Hi"}}]}',
        changed(choices=[]),
        changed(choices=None),
        changed(choices={}),
        changed(choices="text"),
        changed(choices=[None]),
        changed(choices=["text"]),
        changed(choices=[[]]),
        changed(choices=[{"finish_reason": "stop"}]),
        with_message(None),
        with_message("text"),
        with_message([]),
        with_message({}),
        with_message({"content": None}),
        with_message({"content": None, "tool_calls": []}),
        with_message({"content": 5}),
        with_message({"content": True}),
        with_message({"content": {"text": "Hi"}}),
        with_message({"content": ["Hi"]}),
        with_message({"content": [None]}),
        with_message({"content": [{"type": "text"}]}),
        with_message({"content": [{"text": "Hi"}]}),
        with_message({"content": [{"type": "text", "text": 5}]}),
        changed(usage=[]),
        changed(usage="40"),
        changed(usage={"prompt_tokens": 4}),
        with_usage("null"),
        with_usage('"many"'),
        with_usage("NaN"),
        with_usage("1e999"),
        with_usage("{}"),
    ],
    ids=lambda body: ascii(body.decode("latin-1").replace(" ", ""))[-60:],
)
def test_a_2xx_that_is_no_chat_completion_is_a_validation_error(
    api: responses.RequestsMock, client: MistralClient, body: bytes
) -> None:
    api.post(CHAT_URL, body=body)
    with pytest.raises(APIResponseValidationError, match="the response is") as caught:
        client.chat(HELLO)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the response is empty"),
        (b"<html></html>", "the response is an HTML page, not JSON"),
        (GOOD_BODY[:-9], "the response is truncated or not JSON"),
        (b"{}", "the response is JSON, but not a chat completion"),
    ],
)
def test_a_validation_error_says_what_came_instead(
    api: responses.RequestsMock, client: MistralClient, body: bytes, message: str
) -> None:
    api.post(CHAT_URL, body=body)
    with pytest.raises(APIResponseValidationError) as caught:
        client.chat(HELLO)
    assert str(caught.value) == message


def test_a_204_has_no_answer_either(api: responses.RequestsMock, client: MistralClient) -> None:
    api.post(CHAT_URL, status=204)
    with pytest.raises(APIResponseValidationError, match="empty"):
        client.chat(HELLO)


@pytest.mark.parametrize(
    "body",
    ["", "[]", "null", "{}", '{"data": null}', '{"data": 5}', '{"data": [5]}', '{"data": ["a"]}',
     '{"data": [null]}', '{"data": [{}]}', "<html></html>"],
)  # fmt: skip
def test_a_list_of_models_that_is_none_is_a_validation_error(
    api: responses.RequestsMock, client: MistralClient, body: str
) -> None:
    api.get(MODELS_URL, body=body)
    with pytest.raises(APIResponseValidationError):
        client.models()


# Answers that say no


@pytest.mark.parametrize(("status", "body", "message", "code"), WIRE_BODIES)
def test_every_error_of_the_wire_has_its_class_and_message(
    api: responses.RequestsMock,
    client: MistralClient,
    status: int,
    body: str,
    message: str,
    code: str | None,
) -> None:
    api.post(CHAT_URL, status=status, body=body, headers={"mistral-correlation-id": "abc"})
    with pytest.raises(APIStatusError) as caught:
        client.chat(HELLO)
    error = caught.value
    expected = NotFoundError if code == "1500" else error_info(status).error
    assert type(error) is expected
    assert (error.status_code, str(error), error.code) == (status, message, code)
    assert error.request_id == "abc"


@pytest.mark.parametrize("status", [300, 403, 408, 409, 413, 418, 499, 501, 502, 529, 599])
def test_every_other_status_is_an_error_too(
    api: responses.RequestsMock, client: MistralClient, status: int
) -> None:
    api.get(MODELS_URL, status=status, json={"message": "No"})
    with pytest.raises(APIStatusError, match="No") as caught:
        client.models()
    assert type(caught.value) is error_info(status).error
    assert caught.value.status_code == status


@pytest.mark.parametrize("name", ["Retry-After", "retry-after", "RETRY-AFTER"])
def test_retry_after_is_read_in_any_case(
    api: responses.RequestsMock, client: MistralClient, name: str
) -> None:
    api.post(CHAT_URL, status=429, json={"message": "Slow down"}, headers={name: "2.5"})
    with pytest.raises(RateLimitError) as caught:
        client.chat(HELLO)
    assert caught.value.retry_after == 2.5


def test_a_429_without_retry_after_has_none(
    api: responses.RequestsMock, client: MistralClient
) -> None:
    api.post(CHAT_URL, status=429, json={"message": "Slow down"})
    with pytest.raises(RateLimitError) as caught:
        client.chat(HELLO)
    assert caught.value.retry_after is None


@pytest.mark.parametrize(
    "answer",
    [
        raw_response("401 Unauthorized", b"not gzip at all", "Content-Encoding: gzip"),
        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 401 Unauthorized\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{",
        raw_response("401 Unauthorized", b"\xff\xfe\xfd"),
    ],
    ids=["not gzip", "cut", "cut chunk", "not UTF-8"],
)
def test_a_status_counts_even_if_its_body_cannot_be_read(answer: bytes) -> None:
    """A wrong key must not look like a lost connection, which would be tried again."""
    with RawServer(answer) as server, pytest.raises(AuthenticationError) as caught:
        chat(server.url)
    assert str(caught.value) == "Unauthorized"


# No answer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_a_refused_connection_is_said_to_be_refused() -> None:
    with pytest.raises(APIConnectionError, match="refused the connection") as caught:
        chat(f"http://127.0.0.1:{free_port()}/v1")
    assert type(caught.value) is APIConnectionError, "nobody waited: it is no timeout"


def test_a_host_that_is_not_found_is_said_not_to_be_found() -> None:
    with pytest.raises(APIConnectionError, match="was not found") as caught:
        chat("https://no-such-host.invalid/v1")
    assert type(caught.value) is APIConnectionError, "nobody waited: it is no timeout"


def test_a_server_that_speaks_no_tls_is_said_to_be_insecure() -> None:
    with (
        MockServer() as server,
        pytest.raises(APIConnectionError, match="no secure connection") as caught,
    ):
        chat(server.url.replace("http:", "https:"))
    assert type(caught.value) is APIConnectionError


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps silent when a queue is full")
def test_a_connection_that_is_never_made_is_a_timeout() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # nobody accepts these, so there is no room for ours
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        with pytest.raises(APITimeoutError):
            chat(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.1)


@pytest.mark.parametrize(
    "failure",
    [requests.ConnectTimeout("x"), requests.ReadTimeout("x"), requests.Timeout("x")],
    ids=lambda failure: type(failure).__name__,
)
def test_every_timeout_of_requests_is_a_timeout(
    api: responses.RequestsMock, client: MistralClient, failure: Exception
) -> None:
    api.post(CHAT_URL, body=failure)
    with pytest.raises(APITimeoutError, match=r"^api.mistral.ai did not respond in time$"):
        client.chat(HELLO)


@pytest.mark.parametrize(
    "failure",
    [
        requests.ConnectionError("x"),
        requests.TooManyRedirects("x"),
        requests.exceptions.ChunkedEncodingError("x"),
        requests.exceptions.InvalidURL("x"),
        OSError("the bundle of certificates was not found"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_whatever_else_fails_below_is_a_connection_error(
    api: responses.RequestsMock, client: MistralClient, failure: Exception
) -> None:
    api.post(CHAT_URL, body=failure)
    with pytest.raises(APIConnectionError) as caught:
        client.chat(HELLO)
    assert caught.value.__cause__ is failure


def test_a_missing_bundle_of_certificates_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "no-such-file.pem")
    with pytest.raises(MistralError):
        chat("https://no-such-host.invalid/v1")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nServ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + GOOD_BODY,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + GOOD_BODY,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n"
        % (len(GOOD_BODY), GOOD_BODY),
    ],
    ids=["nothing", "head", "no body", "half a body", "no chunk", "half a chunk", "no last chunk"],
)
def test_an_answer_that_stops_half_way_is_a_connection_error(answer: bytes) -> None:
    with RawServer(answer) as server, pytest.raises(APIConnectionError) as caught:
        chat(server.url)
    assert str(caught.value) == "127.0.0.1 closed the connection before the response was complete"
    assert type(caught.value) is APIConnectionError


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x00\xff\x15\x03\x01\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n",
        raw_response("200 OK", b"not gzip", "Content-Encoding: gzip"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    ],
    ids=["ssh", "bytes", "status", "chunk size", "gzip", "lengths"],
)
def test_an_answer_that_is_no_http_is_a_connection_error(answer: bytes) -> None:
    with RawServer(answer) as server, pytest.raises(APIConnectionError) as caught:
        chat(server.url)
    assert type(caught.value) is APIConnectionError


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n{",
        b"HTTP/1.1 200 OK\r\n\r\n{",
    ],
    ids=["nothing", "head", "body", "chunk", "no length"],
)
def test_silence_at_any_point_of_the_answer_is_a_timeout(answer: bytes) -> None:
    with RawServer(answer, then="silence") as server, pytest.raises(APITimeoutError) as caught:
        chat(server.url, timeout=0.05)
    assert str(caught.value) == "127.0.0.1 did not respond in time"


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("drop", APIConnectionError, "closed the connection"),
        ("timeout", APITimeoutError, "did not respond in time"),
        ("cut", APIConnectionError, "closed the connection"),
        ("badjson", APIResponseValidationError, "truncated or not JSON"),
        ("html:502", InternalServerError, "Bad Gateway"),
        ("429:2", RateLimitError, "Rate limit exceeded"),
    ],
)
def test_every_fault_of_the_mock_server_is_its_own_error(
    fault: str, error: type[MistralError], message: str
) -> None:
    with MockServer(fault) as server, pytest.raises(error, match=message) as caught:
        chat(server.url, timeout=0.1 if fault == "timeout" else 5)
    assert type(caught.value) is error


def test_a_client_that_met_an_error_goes_on_working() -> None:
    with (
        MockServer("drop,503,cut,badjson") as server,
        MistralClient("test-key", base_url=server.url) as client,
    ):
        for _ in range(4):
            with pytest.raises(MistralError):
                client.chat(HELLO)
        assert client.chat(HELLO).content == "Hello! How can I assist you today?"


# Bounds and redirects


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", APIResponseValidationError, "longer than 1000 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n",
            APIResponseValidationError,
            "longer than 1000 bytes",
        ),
        (b"HTTP/1.1 500 Oops\r\n\r\n", InternalServerError, "Internal Server Error"),
        (b"HTTP/1.1 302 Found\r\nLocation: /v2\r\n\r\n", APIStatusError, "Found"),
    ],
    ids=["200", "200 with a length", "500", "302"],
)
def test_an_endless_answer_is_read_only_up_to_the_bound(
    monkeypatch: pytest.MonkeyPatch, head: bytes, error: type[MistralError], message: str
) -> None:
    for module in (client_module, transport_module):
        monkeypatch.setattr(module, "MAX_RESPONSE_BYTES", 1000)
    with RawServer(head, b"x" * 65536, repeat=1000) as server:
        with pytest.raises(error, match=message):
            chat(server.url)
        assert server.client_left.wait(10)
    assert server.responses_sent == 0, "the client took all of 64 MB"


def test_a_small_answer_that_unpacks_to_a_huge_one_does_not_fill_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (client_module, transport_module):
        monkeypatch.setattr(module, "MAX_RESPONSE_BYTES", 1000)
    body = gzip.compress(b" " * 20_000_000, compresslevel=1)
    with RawServer(raw_response("200 OK", body, "Content-Encoding: gzip")) as server:
        tracemalloc.start()
        try:
            with pytest.raises(APIResponseValidationError, match="longer than"):
                chat(server.url)
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()


def test_an_answer_of_just_the_bound_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (client_module, transport_module):
        monkeypatch.setattr(module, "MAX_RESPONSE_BYTES", len(GOOD_BODY))
    with RawServer(GOOD_ANSWER) as server:
        assert chat(server.url) == "Hi"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with RawServer(GOOD_ANSWER) as other:
        answer = raw_response(f"{status} Moved", b'{"message": "Gone"}', f"Location: {other.url}")
        with RawServer(answer) as server, pytest.raises(APIStatusError, match="Gone") as caught:
            chat(server.url)
        assert caught.value.status_code == status
        assert (server.connections, other.connections) == (1, 0)


@pytest.mark.parametrize(
    "location",
    ["http://[::1", "http://h:port/", "//", "\xff", "http://" + "a" * 300, "ftp://h/", "%zz"],
    ids=ascii,
)
def test_a_redirect_to_nowhere_is_an_error_like_any_redirect(location: str) -> None:
    answer = raw_response("302 Found", b"", f"Location: {location}")
    with RawServer(answer) as server, pytest.raises(APIStatusError) as caught:
        chat(server.url)
    assert caught.value.status_code == 302


# Connections


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        GOOD_ANSWER,
        CHUNKED % (len(GOOD_BODY), GOOD_BODY),
        raw_response("200 OK", gzip.compress(GOOD_BODY), "Content-Encoding: gzip"),
        raw_response("503 Oops", b'{"message": "No"}'),
        raw_response("429 Oops"),
        raw_response("200 OK", b"<html>"),
    ],
    ids=["length", "chunked", "gzip", "503", "429 without a body", "no completion"],
)
def test_one_connection_serves_call_after_call(answer: bytes) -> None:
    with (
        RawServer(answer, then="next") as server,
        MistralClient("test-key", base_url=server.url) as client,
    ):
        for _ in range(3):
            with contextlib.suppress(MistralError):
                assert client.chat(HELLO).content == "Hi"
    assert (len(server.requests), server.connections) == (3, 1)


def test_one_client_serves_many_threads() -> None:
    with MockServer() as server, MistralClient("test-key", base_url=server.url) as client:

        def ask(prompt: str) -> str:
            return client.chat([{"role": "user", "content": prompt}]).content

        prompts = [f"Question {number}" for number in range(96)]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, prompts))
        assert answers == [f"{prompt} response" for prompt in prompts]
        assert [entry.outcome for entry in server.log] == ["200"] * 96


def test_closing_the_client_closes_its_connections() -> None:
    with RawServer(GOOD_ANSWER, then="next") as server:
        client = MistralClient("test-key", base_url=server.url)
        client.chat(HELLO)
        assert not server.client_left.is_set()
        client.close()
        assert server.client_left.wait(10)


def test_closing_the_client_leaves_a_session_of_your_own_open() -> None:
    with RawServer(GOOD_ANSWER, then="next") as server, requests.Session() as session:
        for _ in range(2):
            with MistralClient("test-key", base_url=server.url, session=session) as client:
                assert client.chat(HELLO).content == "Hi"
        assert session.get(server.url, timeout=5).json() == completion("Hi")
        assert server.connections == 1


def test_a_session_of_your_own_is_used_as_it_is() -> None:
    with RawServer(GOOD_ANSWER) as server, requests.Session() as session:
        session.headers["User-Agent"] = "my-project/1.0"
        MistralClient("test-key", base_url=server.url, session=session).chat(HELLO)
    assert b"User-Agent: my-project/1.0\r\n" in server.requests[0]


@pytest.mark.parametrize(
    "answer",
    [GOOD_ANSWER, b"", raw_response("503 Oops"), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"],
    ids=["answer", "drop", "503", "cut"],
)
def test_nothing_is_left_open_after_a_call_ends_in_any_way(answer: bytes) -> None:
    gc.collect()  # what other tests left is not meant
    threads = threading.active_count()
    with warnings.catch_warnings(record=True) as caught, RawServer(answer) as server:
        warnings.simplefilter("always")
        with contextlib.suppress(MistralError):
            chat(server.url)
        assert server.client_left.wait(10)
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
    assert threading.active_count() == threads


def test_a_base_url_may_end_in_a_slash() -> None:
    with RawServer(GOOD_ANSWER) as server:
        chat(server.url + "//")
    assert server.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


def test_an_error_that_the_caller_is_handling_is_no_cause_of_ours(
    api: responses.RequestsMock,
) -> None:
    """A fallback written by hand calls the next API inside an except clause."""
    api.post(CHAT_URL, body=requests.ConnectionError("odd"))
    with MistralClient("key") as client:
        try:
            raise TimeoutError
        except TimeoutError:
            with pytest.raises(APIConnectionError) as caught:
                client.chat(HELLO)
    assert not isinstance(caught.value, APITimeoutError)


def test_a_request_that_cannot_be_right_is_nobodys_trouble_but_the_programs() -> None:
    """It opens no circuit, is not retried, and no fallback hides it."""
    breaker = CircuitBreaker("api", failure_threshold=1)
    handler = FallbackHandler()
    handler.add_strategy("apology", lambda context: "Please try again later.")
    with MistralClient("key") as client:
        handler.add_strategy("api", lambda context: client.chat([]), priority=1)
        with pytest.raises(InvalidRequestError):
            breaker.call(lambda: Retrier(3).call(lambda: client.chat([])))
        assert breaker.state == "closed"
        with pytest.raises(InvalidRequestError):
            handler.execute()
