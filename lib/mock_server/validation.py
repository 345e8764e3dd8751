# SPDX-License-Identifier: MIT-0
"""Check the fields of a chat request, and describe each mistake as Mistral's validator does."""

from __future__ import annotations

from typing import Any

Mistake = dict[str, Any]


def mistake(kind: str, message: str, *field: str) -> Mistake:
    """Return one mistake in the API's format."""
    return {"type": kind, "loc": ["body", *field], "msg": message}


def mistakes(body: Any, parameters: frozenset[str] | None) -> list[Mistake]:
    """Return what is wrong with the body of a chat request.

    ``parameters`` are the fields that the API knows; None stands for any.
    """
    if not isinstance(body, dict):
        return [mistake("dict_type", "Input should be an object")]
    found = [
        mistake("missing", "Field required", name)
        for name in ("model", "messages")
        if name not in body
    ]
    if not isinstance(body.get("model", ""), str):
        found.append(mistake("string_type", "Not a string", "model"))
    if "messages" in body:
        found += _wrong_messages(body["messages"])
    if parameters is not None:
        found += _unknown_fields(body, parameters)
    return found


def _wrong_messages(messages: Any) -> list[Mistake]:
    if not isinstance(messages, list) or not messages:
        return [mistake("list_type", "Not a list", "messages")]
    if all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in messages):
        return []
    return [mistake("missing", "No role", "messages", "role")]


def _unknown_fields(body: dict[str, Any], parameters: frozenset[str]) -> list[Mistake]:
    fields: list[tuple[str, ...]] = [(name,) for name in body if name not in parameters]
    options = body.get("stream_options")  # the API knows the field, but nothing in it
    if isinstance(options, dict):
        fields += [("stream_options", name) for name in options]
    return [mistake("extra_forbidden", "Extra inputs are not permitted", *each) for each in fields]
