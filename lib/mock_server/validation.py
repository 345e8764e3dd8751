# SPDX-License-Identifier: MIT-0
"""Check the fields of a chat request, and describe each mistake as Mistral's validator does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]  # the body of a request
Mistake = dict[str, Any]


def mistakes(body: Any, parameters: frozenset[str] | None) -> list[Mistake]:
    """Return what is wrong with the body of a chat request.

    ``parameters`` are the fields that the API knows; None stands for any.
    """
    if not isinstance(body, dict):
        return [mistake("dict_type", "Input should be an object")]
    found = [wrong for holds, wrong in RULES if not holds(body)]
    return found if parameters is None else found + _unknown_fields(body, parameters)


def mistake(kind: str, message: str, *field: str) -> Mistake:
    """Return one mistake in the API's format."""
    return {"type": kind, "loc": ["body", *field], "msg": message}


def _messages(body: Fields) -> list[Any]:
    """Return the messages, or [] if they are not a list. A missing field has its own rule."""
    messages = body.get("messages", [{"role": "user"}])
    return messages if isinstance(messages, list) else []


def _has_a_role(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


# What holds for the body of each chat request, and the mistake if it does not.
RULES: tuple[tuple[Callable[[Fields], bool], Mistake], ...] = (
    (lambda body: "model" in body, mistake("missing", "Field required", "model")),
    (lambda body: "messages" in body, mistake("missing", "Field required", "messages")),
    (
        lambda body: isinstance(body.get("model", ""), str),
        mistake("string_type", "Not a string", "model"),
    ),
    (lambda body: _messages(body) != [], mistake("list_type", "Not a list", "messages")),
    (
        lambda body: all(map(_has_a_role, _messages(body))),
        mistake("missing", "No role", "messages", "role"),
    ),
)


def _unknown_fields(body: Fields, parameters: frozenset[str]) -> list[Mistake]:
    fields: list[tuple[str, ...]] = [(name,) for name in body if name not in parameters]
    options = body.get("stream_options")  # the API knows the field, but nothing in it
    if isinstance(options, dict):
        fields += [("stream_options", name) for name in options]
    return [mistake("extra_forbidden", "Extra inputs are not permitted", *each) for each in fields]
