# SPDX-License-Identifier: MIT-0
"""Check the fields of a chat request, and describe each mistake as Mistral's validator does."""

from __future__ import annotations

from typing import Any

Mistake = dict[str, Any]


def mistakes(body: Any, parameters: frozenset[str] | None) -> list[Mistake]:
    """Return what is wrong with the body of a chat request.

    ``parameters`` are the fields that the API knows; None stands for any.
    """
    if not isinstance(body, dict):
        return [mistake("dict_type", "Input should be an object")]
    model, messages = body.get("model", ""), body.get("messages", NO_MESSAGES)
    is_list = isinstance(messages, list) and messages != []
    rules = [
        ("model" in body, mistake("missing", "Field required", "model")),
        ("messages" in body, mistake("missing", "Field required", "messages")),
        (isinstance(model, str), mistake("string_type", "Not a string", "model")),
        (is_list, mistake("list_type", "Not a list", "messages")),
        (
            not is_list or all(map(_has_a_role, messages)),
            mistake("missing", "No role", "messages", "role"),
        ),
    ]
    found = [wrong for holds, wrong in rules if not holds]
    return found if parameters is None else found + _unknown_fields(body, parameters)


NO_MESSAGES = [{"role": "user"}]


def mistake(kind: str, message: str, *field: str) -> Mistake:
    """Return one mistake in the API's format."""
    return {"type": kind, "loc": ["body", *field], "msg": message}


def _has_a_role(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _unknown_fields(body: dict[str, Any], parameters: frozenset[str]) -> list[Mistake]:
    fields: list[tuple[str, ...]] = [(name,) for name in body if name not in parameters]
    options = body.get("stream_options")  # the API knows the field, but nothing in it
    if isinstance(options, dict):
        fields += [("stream_options", name) for name in options]
    return [mistake("extra_forbidden", "Extra inputs are not permitted", *each) for each in fields]
