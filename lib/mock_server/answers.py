# SPDX-License-Identifier: MIT-0
"""Make up what the model says: text, a tool call, or JSON.

Each word counts as one token.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from .schema_sample import sample

Request = dict[str, Any]  # the body of a chat request, without_nulls
Completion = dict[str, Any]
Function = dict[str, Any]  # its name, and the schema of its parameters
ToolCall = dict[str, Any]


def make_up(request: Request) -> tuple[str, list[ToolCall] | None]:
    """Return a text and calls of tools: a request with tools gets a call, once, then a text.

    Raises LookupError, TypeError or AttributeError if the request has a wrong shape.
    """
    if function := _function_to_call(request):
        return "", [_call_of(function, request)]
    wanted = request.get("response_format", {"type": "text"})
    return TEXTS.get(wanted["type"], _reply)(request), None


def without_nulls(body: Request) -> Request:
    """Return the body of a request without the fields that are null: they count as not set."""
    return {**_set_fields(body), "messages": [_set_fields(each) for each in body["messages"]]}


def _set_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _reply(request: Request) -> str:
    prompt = content_text(request["messages"][-1])
    return REPLIES.get(prompt, f"{prompt} response")


def _json(request: Request) -> str:
    return json.dumps(sample(request["response_format"]["json_schema"]["schema"]))


REPLIES = {"Hello!": "Hello! How can I assist you today?"}
# By the type of the response_format that a request asks for.
TEXTS: dict[str, Callable[[Request], str]] = {
    "text": _reply,
    "json_schema": _json,
    "json_object": lambda request: "{}",
}


def complete(request: Request) -> Completion:
    """Return the chat completion that is made up for a request. Raises as ``make_up`` does."""
    text, tool_calls = make_up(request)
    prompt_tokens = sum(len(content_text(each).split()) for each in request["messages"])
    completion: Completion = {
        "id": uuid.uuid4().hex,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "tool_calls": tool_calls}}],
        "usage": {"prompt_tokens": prompt_tokens},
    }
    return answer(completion, text, request)


def answer(completion: Completion, text: str, request: Request) -> Completion:
    """Set the text of a completion, cut off at the request's max_tokens."""
    count = len(text.split())
    limit = request.get("max_completion_tokens") or request.get("max_tokens", count)
    if limit < count:
        return end(completion, first_words(text, limit), "length")
    called = completion["choices"][0]["message"]["tool_calls"]
    return end(completion, text, "tool_calls" if called else "stop")


def end(completion: Completion, text: str, finish_reason: str) -> Completion:
    """Set the text of a completion, why it ends there, and the tokens that it cost."""
    usage, choice = completion["usage"], completion["choices"][0]
    choice["message"]["content"], choice["finish_reason"] = text, finish_reason
    usage["completion_tokens"] = len(text.split())
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return completion


def first_words(text: str, count: int) -> str:
    """Return the first words of a text."""
    return "".join(re.findall(r"\s*\S+", text)[:count])


def chunks(completion: Completion) -> list[Completion]:
    """Return the completion as a stream sends it: one chunk per word, then why it ends."""
    choice = completion["choices"][0]
    words = re.findall(r"\S+\s*", choice["message"]["content"])
    deltas: list[dict[str, Any]] = [{"content": word} for word in words]
    if calls := choice["message"]["tool_calls"]:
        deltas = [{"content": "", "tool_calls": [{"index": 0, **calls[0]}]}]
    deltas.append({"content": ""})
    deltas[0]["role"] = "assistant"
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices[-1]["finish_reason"] = choice["finish_reason"]
    head = {
        "id": completion["id"],
        "object": "chat.completion.chunk",
        "created": completion["created"],
        "model": completion["model"],
    }
    return [{**head, "choices": [each]} for each in choices]


def content_text(message: dict[str, Any]) -> str:
    """Return the text of a message; its content may be a list of parts."""
    content = message.get("content", "")
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content)
    return str(content)


# How many calls of tools there are before the answer, by tool_choice: without limit by default.
MOST_CALLS = {"none": 0, "auto": 1}


def _function_to_call(request: Request) -> Function | None:
    """Return the function to call: the one that is asked for, or the first, or none.

    With tool_choice "any" or "required", each tool is called once.
    """
    choice = request.get("tool_choice", "auto")
    functions: dict[str, Function] = {
        tool["function"]["name"]: tool["function"] for tool in request.get("tools", [])
    }
    if isinstance(choice, dict):
        return functions[choice["function"]["name"]]
    called = _called_functions(request)
    if len(called) >= MOST_CALLS.get(choice, math.inf):
        return None
    return next((functions[name] for name in functions if name not in called), None)


def _called_functions(request: Request) -> set[str]:
    """Return the names of the functions that were called since the last question."""
    messages = reversed(request["messages"])
    turn = itertools.takewhile(lambda message: message["role"] in ("assistant", "tool"), messages)
    return {call["function"]["name"] for message in turn for call in message.get("tool_calls", [])}


def _call_of(function: Function, request: Request) -> ToolCall:
    arguments = json.dumps(sample(function.get("parameters", {"type": "object"})))
    number = sum(message["role"] == "tool" for message in request["messages"])
    return {
        "id": f"call{number:05}",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
