# SPDX-License-Identifier: MIT-0
"""Read what a 2xx response holds: a completion, an event of a stream, an error.

    >>> body = b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}'
    >>> completion = read_completion(parse_body(body), Limits())
    >>> completion.content, completion.finish_reason, completion.usage
    ('Hi', 'stop', None)

It does no I/O; ``client.py`` sends and receives. Needs ``errors.py`` and ``event_stream.py``
beside it.

A field that the server left out, or wrote in another way than Mistral does, stays empty. It is
not an error, since you have paid for the rest of the answer. It is an error if a response holds
no answer at all, or if the server reports an error inside a 200.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import APIResponseValidationError
from .event_stream import Event

T = TypeVar("T")
Fields = dict[str, Any]  # a JSON object
NOTHING: Fields = {}  # what an object that is missing counts as
NO_ITEMS: list[Any] = []
MAX_JSON_VALUES = 200_000  # arrays and objects; each needs up to 250 bytes, four numbers as much
TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")
INSTEAD_OF_JSON = {"": "empty", "<": "an HTML page, not JSON"}  # by the first character


@dataclass(frozen=True)
class Usage:
    """The tokens that a call used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Limits:
    """The account's rate limits and what is left of them, from a response's headers.

    A number that the server did not send is None.
    """

    requests_per_minute: int | None = None
    remaining_requests: int | None = None
    tokens_per_minute: int | None = None
    remaining_tokens: int | None = None


@dataclass(frozen=True)
class ChatCompletion:
    """The response to a chat call. What the server left out is "", empty or None.

    ``content`` is the answer's text, without the thoughts of a reasoning model.
    ``finish_reason`` says why the model stopped: "stop", "length" (the answer is cut off),
    "tool_calls", "content_filter"... ``tool_calls`` are the functions that the model wants
    you to call, as the API sends them. ``usage`` is None if the server did not report it.
    """

    content: str
    model: str
    finish_reason: str
    usage: Usage | None
    limits: Limits = Limits()
    tool_calls: tuple[Fields, ...] = field(default=(), hash=False)


def read_completion(content: Fields, limits: Limits) -> ChatCompletion:
    """Return the chat completion in a response's body.

    Raises APIResponseValidationError if there is none.
    """
    choice = _choice(content)
    message = _field(choice, "message", NOTHING)
    finish_reason = _field(choice, "finish_reason", "")
    if not message and not finish_reason:
        raise APIResponseValidationError("the response is JSON, but not a chat completion")
    text = _text(message).encode("utf-16-le", "surrogatepass")
    return ChatCompletion(
        content=text.decode("utf-16-le", "replace"),
        model=_field(content, "model", ""),
        finish_reason=finish_reason,
        usage=_usage(content),
        limits=limits,
        tool_calls=tuple(_objects(message, "tool_calls")),
    )


class StreamedAnswer:
    """Put together what the events of a stream say, in order.

    ``size`` is the number of characters in the text and in the arguments of tool calls.
    """

    def __init__(self) -> None:
        self.finish_reason = ""
        self.usage: Usage | None = None
        self.size = 0
        self._tool_calls: dict[tuple[int, str], Fields] = {}  # by index and ID
        self._latest_ids: dict[int, str] = {}  # by index
        # An event may end between the two halves of a character (a surrogate pair).
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")

    def add(self, event: Fields) -> str:
        """Add an event. Return the text that is complete with it, as well-formed Unicode."""
        choice = _choice(event)
        delta = _field(choice, "delta", _field(choice, "message", NOTHING))
        for piece in _objects(delta, "tool_calls"):
            self._add_to_tool_call(piece)
        self.finish_reason = _latest(choice, "finish_reason", self.finish_reason)
        self.usage = _usage(event) or self.usage
        text = _text(delta)
        self.size += len(text)
        return self._decoder.decode(text.encode("utf-16-le", "surrogatepass"))

    def end(self) -> str:
        """Return the text that is left: a replacement character for half a character, or ""."""
        return self._decoder.decode(b"", final=True)

    @property
    def tool_calls(self) -> list[Fields]:
        """The tool calls so far, in the order in which they began."""
        return list(self._tool_calls.values())

    def _add_to_tool_call(self, piece: Fields) -> None:
        """Add a piece to the call with its index and ID, or to the latest one with its index."""
        index = _field(piece, "index", 0)
        call_id = _latest(piece, "id", self._latest_ids.get(index, ""))
        self._latest_ids[index] = call_id
        nothing = {"id": call_id, "type": "function", "function": {"name": "", "arguments": ""}}
        function = self._tool_calls.setdefault((index, call_id), nothing)["function"]
        more = _field(piece, "function", NOTHING)
        arguments = _field(more, "arguments", "")
        function["name"] = _latest(more, "name", function["name"])
        function["arguments"] += arguments
        self.size += len(arguments)


def model_names(content: Fields) -> list[str]:
    """Return the names in a list of models. Raises APIResponseValidationError if it is none."""
    names = [_field(model, "id", "") for model in _field(content, "data", [None])]
    if not all(names):
        raise APIResponseValidationError("the response is not a list of models")
    return names


def read_limits(headers: Mapping[str, str]) -> Limits:
    """Return the limits in a response's headers."""

    def number(name: str) -> int | None:
        text = headers.get(f"x-ratelimit-{name}-minute", "")
        return int(text) if re.fullmatch("[0-9]{1,15}", text) else None

    return Limits(
        requests_per_minute=number("limit-req"),
        remaining_requests=number("remaining-req"),
        tokens_per_minute=number("limit-tokens"),
        remaining_tokens=number("remaining-tokens"),
    )


def reported_error(content: Fields) -> Fields | None:
    """Return the object that reports an error inside a 200, or None."""
    for place in (content, _choice(content)):
        says_error = "error" in (place.get("object"), place.get("finish_reason"))
        if says_error or place.get("error") or place.get("errors"):
            return {"title": "the model stopped because of an error", **place}
    return None


def parse_body(body: bytes) -> Fields:
    """Return the JSON object in a body: {} for other JSON.

    Raises APIResponseValidationError that says what came instead of JSON.
    """
    text = body.decode("utf-8-sig", "replace").strip()
    try:
        return _as_object(_loads(text))
    except (ValueError, RecursionError) as error:
        what = INSTEAD_OF_JSON.get(text[:1], "truncated or not JSON")
        raise APIResponseValidationError(f"the response is {what}") from error


def parse_event(event: Event) -> Fields:
    """Return the JSON object in an event: {} for other JSON, or a ping that is not JSON.

    Raises APIResponseValidationError if a part of the answer may have been lost.
    """
    try:
        content = _loads(event.data)
    except (ValueError, RecursionError) as error:
        if event.name in ("", "message") and event.data.strip():
            raise APIResponseValidationError("an event is truncated or not JSON") from error
        content = event.data
    return {"error": content} if event.name == "error" else _as_object(content)


def _loads(text: str) -> Any:
    """Parse JSON, unless its values would need much more memory than their text."""
    if text.count("{") + text.count("[") + text.count(",") / 4 > MAX_JSON_VALUES:
        raise APIResponseValidationError(
            f"the response holds more than {MAX_JSON_VALUES} arrays and objects"
        )
    return json.loads(text)


def _as_object(content: Any) -> Fields:
    return content if isinstance(content, dict) else {}


def _field(content: Any, name: str, default: T) -> T:
    """Return a field of a JSON object, or the default if there is none of the default's type."""
    value = _as_object(content).get(name)
    return value if isinstance(value, type(default)) else default


def _latest(content: Fields, name: str, before: str) -> str:
    """Return a field's text, or ``before`` if this event has none."""
    return _field(content, name, "") or before


def _objects(content: Fields, name: str) -> list[Fields]:
    """Return the objects in a field that is a list."""
    return [each for each in _field(content, name, NO_ITEMS) if isinstance(each, dict)]


def _choice(content: Fields) -> Fields:
    """Return the choice with the index 0, or without any, of a completion or an event."""
    return next((each for each in _objects(content, "choices") if not each.get("index")), {})


def _text(message: Fields) -> str:
    """Return a message's text: a string, or the text among a reasoning model's chunks."""
    chunks = _objects(message, "content")
    texts = [_field(chunk, "text", "") for chunk in chunks if chunk.get("type") == "text"]
    return _field(message, "content", "".join(texts))


def _usage(content: Fields) -> Usage | None:
    """Return the tokens of a call. One number that is missing follows from the other two."""
    usage = _field(content, "usage", NOTHING)
    counts = {name: int(usage[name]) for name in TOKENS if _is_count(usage.get(name))}
    if len(counts) < 2:
        return None
    prompt, completion = counts.get("prompt_tokens", 0), counts.get("completion_tokens", 0)
    total = counts.get("total_tokens", prompt + completion)
    counts.setdefault("prompt_tokens", max(0, total - completion))
    counts.setdefault("completion_tokens", max(0, total - prompt))
    return Usage(counts["prompt_tokens"], counts["completion_tokens"], total)


def _is_count(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e15
