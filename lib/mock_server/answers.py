# SPDX-License-Identifier: MIT-0
"""Make up what the model says: text, a tool call, or JSON.

Each word counts as one token.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from typing import Any

from .schema_sample import sample

Request = dict[str, Any]  # the body of a chat request, without_nulls
Message = dict[str, Any]
Completion = dict[str, Any]
Function = dict[str, Any]  # its name, and the schema of its parameters
ToolCall = dict[str, Any]


def make_up(request: Request) -> tuple[str, list[ToolCall] | None]:
    """Return a text and calls of tools: a request with tools gets a call, once, then a text.

    Raises LookupError, TypeError, AttributeError or RecursionError if the tools, their calls or
    the response_format have a wrong shape.
    """
    if function := _function_to_call(request):
        return "", [_call_of(function, request)]
    wanted = request.get("response_format") or {"type": "text"}
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


def complete(
    request: Request, completion_id: str, text: str, tool_calls: list[ToolCall] | None
) -> Completion:
    """Return a chat completion, whose text is cut off at the request's max_tokens."""
    prompt_tokens = sum(len(content_text(each).split()) for each in request["messages"])
    completion: Completion = {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "tool_calls": tool_calls}}],
        "usage": {"prompt_tokens": prompt_tokens},
    }
    count = len(text.split())
    limit = request.get("max_completion_tokens") or request.get("max_tokens", count)
    if limit < count:
        return end(completion, first_words(text, limit), "length")
    return end(completion, text, "tool_calls" if tool_calls else "stop")


def end(completion: Completion, text: str, finish_reason: str) -> Completion:
    """Set the text of a completion, why it ends there, and the tokens that it cost."""
    usage, choice = completion["usage"], completion["choices"][0]
    choice["message"]["content"], choice["finish_reason"] = text, finish_reason
    usage["completion_tokens"] = len(text.split())
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return completion


def first_words(text: str, count: int) -> str:
    """Return the first ``count`` words of a text."""
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


def content_text(message: Message) -> str:
    """Return the text of a message; its content may be a list of parts."""
    content = message.get("content", "")
    if isinstance(content, list):
        return " ".join(part.get("text") or "" for part in content)
    return str(content)


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
    turn = _since_the_question(request["messages"])
    has_result = any(message["role"] == "tool" for message in turn)
    if choice == "none" or (choice == "auto" and has_result):
        return None
    called = _called_functions(turn)
    return next((functions[name] for name in functions if name not in called), None)


def _since_the_question(messages: list[Message]) -> list[Message]:
    """Return what follows the last question: calls of tools, and their results."""
    by_latest = reversed(messages)
    return list(itertools.takewhile(lambda each: each["role"] in ("assistant", "tool"), by_latest))


def _called_functions(messages: list[Message]) -> set[str]:
    """Return the names of the functions that were called; a custom tool is not a function."""
    calls = [call for message in messages for call in message.get("tool_calls", [])]
    return {call["function"]["name"] for call in calls if call.get("type") != "custom"}


def _call_of(function: Function, request: Request) -> ToolCall:
    arguments = json.dumps(sample(function.get("parameters") or {"type": "object"}))
    number = sum(message["role"] == "tool" for message in request["messages"])
    return {
        "id": f"call{number:05}",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
