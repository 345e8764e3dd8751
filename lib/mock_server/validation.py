# SPDX-License-Identifier: MIT-0
"""Check the fields of a chat request, and describe each mistake as Mistral's validator does."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]  # the body of a request
Mistake = dict[str, Any]

REQUIRED = ("model", "messages")
TYPES: dict[str, tuple[Any, str]] = {  # by field: its type, and the API's word for it
    "model": (str, "string"),
    "messages": (list, "list"),
    "max_tokens": (int | None, "int"),
    "max_completion_tokens": (int | None, "int"),
    "stream_options": (dict | None, "dict"),
}


def mistakes(body: Fields, parameters: frozenset[str] | None) -> list[Mistake]:
    """Return what is wrong with the fields of a chat request.

    ``parameters`` are the fields that the API knows; None stands for any.
    """
    found = [mistake("missing", "Field required", name) for name in REQUIRED if name not in body]
    found += [
        mistake(f"{noun}_type", f"Expected {noun}, got {type(body[name]).__name__}", name)
        for name, (kind, noun) in TYPES.items()
        if name in body and not isinstance(body[name], kind)
    ]
    found = found or _wrong_messages(body["messages"])
    return found if parameters is None else found + _unknown_fields(body, parameters)


def mistake(kind: str, message: str, *field: str) -> Mistake:
    """Return one mistake in the API's format."""
    return {"type": kind, "loc": ["body", *field], "msg": message}


def _wrong_messages(messages: list[Any]) -> list[Mistake]:
    if not messages:
        return [mistake("too_short", "List should have at least 1 item", "messages")]
    if not all(map(_has_role, messages)):
        return [mistake("missing", "Each message needs a role", "messages", "role")]
    if not all(map(_has_text, messages)):
        return [mistake("string_type", "Input should be a string", "messages", "content")]
    return []


def _has_role(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _has_text(message: Fields) -> bool:
    """Return whether the content is a text, or a list of parts; each text may be null."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    return all(
        isinstance(part, dict) and isinstance(part.get("text"), str | None) for part in parts
    )


def _unknown_fields(body: Fields, parameters: frozenset[str]) -> list[Mistake]:
    fields: list[tuple[str, ...]] = [(name,) for name in body if name not in parameters]
    options = body.get("stream_options")  # the API knows the field, but nothing in it
    if isinstance(options, dict):
        fields += [("stream_options", name) for name in options]
    return [mistake("extra_forbidden", "Extra inputs are not permitted", *each) for each in fields]
