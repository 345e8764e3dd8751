"""lib/client.py: what a request sends, and what becomes of each response."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import pytest
from responses import RequestsMock

from lib.circuit_breaker import CircuitBreaker
from lib.client import ChatCompletion, Limits, MistralClient, Usage
from lib.errors import (
    APIResponseValidationError,
    APIStatusError,
    InternalServerError,
    InvalidRequestError,
    MistralError,
    RateLimitError,
)
from lib.fallback import FallbackHandler
from lib.retry import Retrier
from support import CHAT_URL, RawServer, completion, raw_response

HELLO = [{"role": "user", "content": "Hello!"}]
MODELS_URL = "https://api.mistral.ai/v1/models"
COMPLETION = json.dumps(completion("Hi"))


@pytest.fixture
def client() -> Iterator[MistralClient]:
    with MistralClient("test-key") as client:
        yield client


def sent(api: RequestsMock) -> dict[str, Any]:
    """Return the JSON of the only request."""
    (call,) = api.calls
    payload: dict[str, Any] = json.loads(call.request.body or "null")
    return payload


def changed(**fields: Any) -> str:
    return json.dumps({**completion("Hi"), **fields})


def with_message(message: Any) -> str:
    return changed(choices=[{"index": 0, "finish_reason": "stop", "message": message}])


class TestRequest:
    def test_it_carries_model_messages_and_key_and_nothing_else(
        self, api: RequestsMock, client: MistralClient
    ) -> None:
        api.post(CHAT_URL, json=completion("Hi"))
        client.chat(HELLO)
        assert sent(api) == {"model": "mistral-small-latest", "messages": HELLO}
        assert api.calls[0].request.headers["Authorization"] == "Bearer test-key"
        assert api.calls[0].request.headers["Content-Type"] == "application/json"

    def test_parameters_are_passed_on(self, api: RequestsMock, client: MistralClient) -> None:
        api.post(CHAT_URL, json=completion("Hi"))
        parameters: dict[str, Any] = {"model": "ministral-8b", "temperature": 0.2, "stream": False}
        client.chat(HELLO, max_tokens=5, **parameters)
        assert sent(api) == {"messages": HELLO, "max_tokens": 5, **parameters}

    @pytest.mark.parametrize(
        "messages",
        [
            tuple(HELLO),
            [{"role": "user", "content": "Grüße, 世界 🌍\n\u2028 \ud800"}],
            [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}],
            [{"role": "system", "content": "Be brief."}, *HELLO,
             {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
             {"role": "tool", "content": "", "tool_call_id": "1"}],
        ],
        ids=["tuple", "unicode", "chunks", "every role"],
    )  # fmt: skip
    def test_messages_arrive_as_they_are(
        self, api: RequestsMock, client: MistralClient, messages: Any
    ) -> None:
        api.post(CHAT_URL, json=completion("Hi"))
        client.chat(messages)
        assert sent(api)["messages"] == list(messages)


class TestInvalidRequest:
    """An invalid request is not sent."""

    @pytest.mark.parametrize(
        ("messages", "what"),
        [
            (None, "messages must be a list such as .*, got None"),
            ([], r"messages must be a list such as \[.*\], got \[\]"),
            ("Hello!", "messages must be a list such as .*, got str"),
            (HELLO[0], "got dict"),
            (["Hello!"], "messages.0. needs a role: one of system"),
            ([*HELLO, {"content": "Hello!"}], "messages.1. needs a role"),
            ([{"role": ["user"], "content": "Hello!"}], "needs a role"),
            ([{"role": "robot", "content": "Hello!"}], "needs a role"),
            ([{"role": "user"}], "messages.0. needs non-empty content"),
            ([{"role": "user", "content": ""}], "needs non-empty content"),
            ([{"role": "user", "content": 5}], "needs non-empty content"),
            ([{"role": "user", "content": []}], "needs non-empty content"),
            ([{"role": "system", "content": None}, *HELLO], "needs non-empty content"),
        ],
    )
    def test_messages(self, client: MistralClient, messages: Any, what: str) -> None:
        for method in (client.chat, client.stream):
            with pytest.raises(InvalidRequestError, match=what):
                method(messages)

    def test_parameters_that_cannot_be_written_as_json(self, client: MistralClient) -> None:
        endless: list[Any] = []
        endless.append(endless)
        for value in (float("nan"), [float("-inf")], object(), endless):
            with pytest.raises(InvalidRequestError, match="cannot be written as JSON"):
                client.chat(HELLO, temperature=value)

    def test_chat_with_stream(self, client: MistralClient) -> None:
        with pytest.raises(InvalidRequestError, match="call stream"):
            client.chat(HELLO, stream=True)

    def test_it_opens_no_circuit_and_no_fallback_hides_it(self, client: MistralClient) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1)
        handler = FallbackHandler()
        handler.add_strategy("apology", lambda context: "Please try again later.")
        handler.add_strategy("api", lambda context: client.chat([]), priority=1)
        with pytest.raises(InvalidRequestError):
            breaker.call(lambda: Retrier(3).call(lambda: client.chat([])))
        assert breaker.state == "closed"
        with pytest.raises(InvalidRequestError):
            handler.execute()


class TestTimeoutArguments:
    @pytest.mark.parametrize(
        ("arguments", "used"),
        [
            ({}, (5.0, 60.0)),
            ({"timeout": 3}, (3, 3)),
            ({"timeout": (1.5, 20)}, (1.5, 20)),
            ({"timeout": (86400, 0.1)}, (600, 0.1)),
            ({"total_timeout": 4}, (4, 4)),
        ],
    )
    def test_every_request_has_a_timeout(
        self, api: RequestsMock, arguments: dict[str, Any], used: tuple[float, float]
    ) -> None:
        """The seconds to connect and to read, neither longer than the total timeout."""
        api.get(MODELS_URL, json={"data": []})
        with MistralClient("test-key", **arguments) as client:
            client.models()
        assert api.calls[0].request.req_kwargs["timeout"] == used  # type: ignore[attr-defined]

    def test_with_options_keeps_what_it_is_not_given(self, api: RequestsMock) -> None:
        for _ in range(2):
            api.get(MODELS_URL, json={"data": []})
        with MistralClient("test-key", timeout=(1, 2), total_timeout=0.5) as client:
            changes: list[dict[str, Any]] = [{"timeout": 3}, {"total_timeout": 86400}]
            for options in changes:
                client.with_options(**options).models()
        used = [call.request.req_kwargs["timeout"] for call in api.calls]  # type: ignore[attr-defined]
        assert used == [(0.5, 0.5), (1, 2)]

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("timeout", [0, -1, float("nan"), 86401, "5", True, (5,), (5, 0), (1, 2, 3), [5, 60]]),
            ("total_timeout", [0, float("nan"), float("inf"), "60", True]),
        ],
    )
    def test_a_wrong_one(self, name: str, wrong: list[Any]) -> None:
        message = f"^{name} must be a number of seconds > 0 and <= 86400, .*got "
        for value in wrong:
            with pytest.raises(ValueError, match=message):
                MistralClient("test-key", **{name: value})
            with pytest.raises(ValueError, match=message):
                MistralClient("test-key").with_options(**{name: value})


TOOL_CALLS = [
    {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"in": "Nice"}'}}
]


def chat(client: MistralClient, api: RequestsMock, body: str) -> ChatCompletion:
    """Return the completion that a 200 with this body gives."""
    api.post(CHAT_URL, body=body)
    return client.chat(HELLO)


class TestCompletion:
    def test_fields(self, api: RequestsMock, client: MistralClient) -> None:
        api.post(CHAT_URL, json=completion("Hi", model="mistral-small-2603"), status=299)
        assert client.chat(HELLO) == ChatCompletion(
            content="Hi",
            model="mistral-small-2603",
            finish_reason="stop",
            usage=Usage(4, 36, 40),
            limits=Limits(),
            tool_calls=(),
        )

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            ("", ""),
            (None, ""),
            ([], ""),
            ([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}], "Hello"),
            ([{"type": "thinking", "text": "Hm"}, {"type": "text", "text": "Hello"}], "Hello"),
            (["Hi", {"type": "text", "text": 5}, {"type": "text"}, {"type": "text", "text": "!"}],
             "!"),
            (5, ""),
            ({"text": "Hi"}, ""),
            ("smile \ud83d\ude00", "smile 😀"),
            ("half a smile \ud83d", "half a smile \ufffd"),
        ],
        ids=ascii,
    )  # fmt: skip
    def test_text_of_every_shape_of_content(
        self, api: RequestsMock, client: MistralClient, content: Any, text: str
    ) -> None:
        result = chat(client, api, with_message({"content": content}))
        assert result.content == text
        assert result.content.encode().decode() == text
        assert result.usage == Usage(4, 36, 40)

    @pytest.mark.parametrize(
        ("message", "finish_reason"),
        [
            ({"role": "assistant", "tool_calls": TOOL_CALLS}, "tool_calls"),
            ({"role": "assistant", "content": None}, "content_filter"),
            ({"role": "assistant", "content": None, "reasoning_content": "Hm"}, "length"),
            ({"role": "assistant", "content": None, "refusal": "No"}, "stop"),
            ({}, "stop"),
            (None, "stop"),
            ("text", "stop"),
        ],
        ids=str,
    )
    def test_a_200_without_text_is_a_completion_that_says_why(
        self, api: RequestsMock, client: MistralClient, message: Any, finish_reason: str
    ) -> None:
        choice = {"index": 0, "finish_reason": finish_reason, "message": message}
        result = chat(client, api, changed(choices=[choice]))
        assert (result.content, result.finish_reason) == ("", finish_reason)
        assert result.usage == Usage(4, 36, 40)

    def test_tool_calls_are_those_of_the_api(
        self, api: RequestsMock, client: MistralClient
    ) -> None:
        result = chat(client, api, with_message({"content": "", "tool_calls": TOOL_CALLS}))
        assert result.tool_calls == tuple(TOOL_CALLS)
        for odd in (None, "f", {"id": "a1"}, [None, "f"]):
            assert chat(client, api, with_message({"tool_calls": odd})).tool_calls == ()

    def test_what_a_server_leaves_out_is_empty(
        self, api: RequestsMock, client: MistralClient
    ) -> None:
        body: dict[str, Any] = {"choices": [{"message": {"content": "Hi"}}]}
        assert chat(client, api, json.dumps(body)) == ChatCompletion("Hi", "", "", None)
        nothing = dict.fromkeys(["id", "model", "usage", "created", "error"])
        choice = {"index": None, "finish_reason": None, "message": {"content": "Hi"}}
        body = {**nothing, "choices": [choice]}
        assert chat(client, api, json.dumps(body)) == ChatCompletion("Hi", "", "", None)

    @pytest.mark.parametrize(
        ("usage", "known"),
        [
            ({"prompt_tokens": 4, "completion_tokens": 36}, Usage(4, 36, 40)),
            ({"prompt_tokens": 4, "completion_tokens": 36, "total_tokens": None}, Usage(4, 36, 40)),
            ({"prompt_tokens": 4, "total_tokens": 4}, Usage(4, 0, 4)),
            ({"completion_tokens": 36, "total_tokens": 40}, Usage(4, 36, 40)),
            ({"prompt_tokens": 4, "completion_tokens": "many", "total_tokens": 3}, Usage(4, 0, 3)),
            ({"completion_tokens": 4, "total_tokens": 3}, Usage(0, 4, 3)),
            ({"prompt_tokens": 4.0, "completion_tokens": 36, "total_tokens": 50}, Usage(4, 36, 50)),
            ({"prompt_tokens": 4, "completion_tokens": None, "total_tokens": None}, None),
            ({"prompt_tokens": True, "completion_tokens": -36, "total_tokens": 40}, None),
            ({"total_tokens": 40}, None),
            ({}, None),
            ("40", None),
        ],
        ids=str,
    )
    def test_usage_may_be_partial(
        self, api: RequestsMock, client: MistralClient, usage: Any, known: Usage | None
    ) -> None:
        result = chat(client, api, changed(usage=usage))
        assert (result.content, result.usage) == ("Hi", known)

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1e15"])
    def test_usage_that_is_no_number_of_tokens(
        self, api: RequestsMock, client: MistralClient, number: str
    ) -> None:
        body = COMPLETION.replace(": 36", f": {number}").replace(": 40", f": {number}")
        assert chat(client, api, body).usage is None

    def test_the_first_of_several_choices(self, api: RequestsMock, client: MistralClient) -> None:
        choices = [{"index": index, "message": {"content": str(index)}} for index in (1, 0, 2)]
        assert chat(client, api, changed(choices=["odd", *choices])).content == "0"

    def test_a_byte_order_mark_and_a_broken_character(
        self, api: RequestsMock, client: MistralClient
    ) -> None:
        body = b"\xef\xbb\xbf" + COMPLETION.encode().replace(b"Hi", b"Hi \xff")
        api.post(CHAT_URL, body=body)
        assert client.chat(HELLO).content == "Hi \ufffd"

    def test_models(self, api: RequestsMock, client: MistralClient) -> None:
        api.get(MODELS_URL, json={"object": "list", "data": [{"id": "a"}, {"id": "b"}]})
        assert client.models() == ["a", "b"]


class TestValidationError:
    """A 2xx status promises no content. Only what holds no answer at all is an error."""

    @pytest.mark.parametrize(
        ("body", "what"),
        [
            ("", "empty"),
            (" \r\n", "empty"),
            ("<html>Sign in to the Wi-Fi</html>", "an HTML page, not JSON"),
            (COMPLETION[:-9], "truncated or not JSON"),
            (b"\xff\xfe\x00", "truncated or not JSON"),
            ("[" * 100_000, "truncated or not JSON"),
            ("{}", "JSON, but not a chat completion"),
        ],
        ids=["empty", "blank", "HTML", "truncated", "not UTF-8", "deep", "other JSON"],
    )
    def test_it_says_what_came_instead(
        self, api: RequestsMock, client: MistralClient, body: str, what: str
    ) -> None:
        api.post(CHAT_URL, body=body)
        with pytest.raises(APIResponseValidationError) as caught:
            client.chat(HELLO)
        assert str(caught.value) == f"the response is {what}"

    def test_json_that_is_not_a_chat_completion(
        self, api: RequestsMock, client: MistralClient
    ) -> None:
        for body in (
            "[]", "null", '"Hi"', '{"choices": [{"delta": {"content": "Hi"}}]}', '{"object": "x"}',
            changed(choices=[]), changed(choices=None), changed(choices={}),
            changed(choices=["text"]), changed(choices=[{}]), changed(choices=[{"message": {}}]),
        ):  # fmt: skip
            api.post(CHAT_URL, body=body)
            with pytest.raises(APIResponseValidationError, match="JSON, but not a chat completion"):
                client.chat(HELLO)

    def test_json_whose_values_would_fill_the_memory(
        self, api: RequestsMock, client: MistralClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each of its objects takes 200 bytes and more, thirty times its text."""
        monkeypatch.setattr("lib.completion.MAX_JSON_VALUES", 1000)
        for value in ('{"":0}', "[]", '"aa",' * 4):
            api.post(CHAT_URL, body="[" + f"{value}," * 1001 + "0]")
            with pytest.raises(APIResponseValidationError, match="more than 1000 arrays"):
                client.chat(HELLO)

    def test_models(self, api: RequestsMock, client: MistralClient) -> None:
        for body in ("[]", "{}", '{"data": null}', '{"data": ["a"]}', '{"data": [{}]}', "<html>"):
            api.get(MODELS_URL, body=body)
            with pytest.raises(APIResponseValidationError):
                client.models()


UPSTREAM = {"message": "Upstream is busy", "code": 429}


class TestErrorInA200:
    """Gateways and servers report errors behind a status that promised an answer."""

    @pytest.mark.parametrize(
        "body",
        [
            {"error": UPSTREAM},
            {"object": "error", "message": "Upstream is busy", "raw_status_code": 429},
            {"errors": [UPSTREAM]},
            {"error": UPSTREAM, "choices": None},
            {"error": UPSTREAM, "choices": [{"index": 0, "message": {"content": ""}}]},
            {"choices": [{"index": 0, "message": {"content": ""}, "error": UPSTREAM}]},
            {"error": UPSTREAM,
             "choices": [{"index": 0, "message": {"content": ""}, "finish_reason": "error"}]},
        ],
        ids=str,
    )  # fmt: skip
    def test_it_is_the_servers_own_error(
        self, api: RequestsMock, client: MistralClient, body: Any
    ) -> None:
        headers = {"Retry-After": "7"}
        api.post(CHAT_URL, json=body, headers=headers)
        api.post(CHAT_URL, json=body, headers=headers)
        api.get(MODELS_URL, json=body, headers=headers)
        for call in (client.chat, lambda messages: list(client.stream(messages))):
            with pytest.raises(RateLimitError, match="Upstream is busy") as caught:
                call(HELLO)
            assert caught.value.retry_after == 7
        with pytest.raises(RateLimitError):
            client.models()

    def test_a_finish_reason_of_error(self, api: RequestsMock, client: MistralClient) -> None:
        choice = {"index": 0, "message": {"content": "Hel"}, "finish_reason": "error"}
        with pytest.raises(InternalServerError, match="the model stopped because of an error"):
            chat(client, api, changed(choices=[choice]))

    @pytest.mark.parametrize("nothing", [None, False, "", {}, []])
    def test_an_empty_error_is_none(
        self, api: RequestsMock, client: MistralClient, nothing: Any
    ) -> None:
        assert chat(client, api, changed(error=nothing, errors=nothing)).content == "Hi"

    def test_an_error_of_another_choice_is_not_that_of_the_answer(
        self, api: RequestsMock, client: MistralClient
    ) -> None:
        other = {"index": 1, "message": None, "error": UPSTREAM, "finish_reason": "error"}
        body = changed(choices=[{"index": 0, "message": {"content": "Hi"}}, other])
        assert chat(client, api, body).content == "Hi"


ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1e300, "", "text", "\ud83d", [], {}, [None], [[]], {"": {}}, ["text"],
    {"error": "x"}, {"type": "text", "text": "x"}, "error", 429, "429", {"index": 1},
)  # fmt: skip


def with_odd_values(content: Any, chance: random.Random) -> Any:
    """Return the JSON with some of its values replaced, left out or repeated."""
    if chance.random() < 0.12:
        return chance.choice(ODD)
    if isinstance(content, dict):
        kept = [item for item in content.items() if chance.random() > 0.05]
        return {name: with_odd_values(value, chance) for name, value in kept}
    if isinstance(content, list):
        return [with_odd_values(item, chance) for item in content * chance.choice([1, 1, 1, 2])]
    return content


BOTH = {
    **completion("Hi"),
    "error": None,
    "choices": [{"index": 0, "finish_reason": "stop",
                 "delta": {"content": "Hi", "tool_calls": TOOL_CALLS},
                 "message": {"content": [{"type": "text", "text": "Hi"}],
                             "tool_calls": TOOL_CALLS}}],
}  # fmt: skip


class TestFuzz:
    """Any JSON in a 200 ends in a completion or in a MistralError, and never in a traceback."""

    def test_a_completion(self, api: RequestsMock, client: MistralClient) -> None:
        chance = random.Random(19)
        ends = Counter[str]()
        for _ in range(150):
            body = json.dumps(with_odd_values(BOTH, chance))
            api.post(CHAT_URL, body=body)
            try:
                result = client.chat(HELLO)
            except MistralError as error:
                ends[type(error).__name__] += 1
                continue
            ends["completion"] += 1
            assert result.content.encode().decode() == result.content
            assert isinstance(result.model, str), body
            assert isinstance(result.finish_reason, str), body
            assert all(type(count) is int for count in astuple(result.usage or Usage(0, 0, 0)))
            assert all(isinstance(call, dict) for call in result.tool_calls), body
        assert min(ends["completion"], ends["APIResponseValidationError"]) > 10, ends
        assert ends["InternalServerError"] > 0, ends

    def test_a_stream(self, api: RequestsMock, client: MistralClient) -> None:
        chance = random.Random(22)
        ends = Counter[str]()
        for _ in range(150):
            contents = [with_odd_values(BOTH, chance) for _ in range(3)]
            events = [f"data: {json.dumps(content)}\n\n" for content in contents]
            end = chance.choice(["data: [DONE]", "", "data: {"])
            api.post(CHAT_URL, body="".join(events) + end, content_type="text/event-stream")
            stream = client.stream(HELLO)
            try:
                text = "".join(stream)
            except MistralError as error:
                ends[type(error).__name__] += 1
                continue
            ends["stream"] += 1
            assert text.encode().decode() == text
            assert stream.finish_reason or end == "data: [DONE]"
            assert json.dumps(stream.tool_calls)
        assert min(ends["stream"], ends["APIStreamBrokenError"]) > 10, ends


class TestStatusError:
    def test_it_is_made_of_the_status_the_headers_and_the_body(
        self, api: RequestsMock, client: MistralClient
    ) -> None:
        headers = {"RETRY-AFTER": "2.5", "Mistral-Correlation-Id": "abc"}
        body = {"message": "Slow down", "code": "1300"}
        api.post(CHAT_URL, status=429, json=body, headers=headers)
        with pytest.raises(RateLimitError) as caught:
            client.chat(HELLO)
        assert caught.value.args == (429, "Slow down", "1300", "abc", 2.5)

    def test_every_status_but_a_2xx(self, api: RequestsMock, client: MistralClient) -> None:
        for status in (300, 404, 599):
            api.get(MODELS_URL, status=status, json={"data": []})
            with pytest.raises(APIStatusError) as caught:
                client.models()
            assert caught.value.status_code == status


class TestLimits:
    @pytest.mark.parametrize(
        ("headers", "limits"),
        [
            (["x-ratelimit-limit-req-minute: 60", "x-ratelimit-remaining-req-minute: 0",
              "x-ratelimit-limit-tokens-minute: 50000",
              "X-RateLimit-Remaining-Tokens-Minute: 49990"], Limits(60, 0, 50000, 49990)),
            (["x-ratelimit-limit-req-minute: -1", "x-ratelimit-limit-tokens-minute: \xb2"],
             Limits()),
            (["x-ratelimit-limit-req-minute: " + "9" * 16,
              "x-ratelimit-remaining-req-minute: " + "9" * 15], Limits(None, 10**15 - 1)),
        ],
        ids=["all", "malformed", "too long"],
    )  # fmt: skip
    def test_they_are_read_from_the_headers(self, headers: list[str], limits: Limits) -> None:
        with RawServer(raw_response("200 OK", COMPLETION.encode(), *headers)) as server:
            assert MistralClient("k", base_url=server.url).chat(HELLO).limits == limits
