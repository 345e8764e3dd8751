# SPDX-License-Identifier: MIT-0
"""Check the fields of a chat request, and describe each mistake as Mistral's validator does."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]  # the body of a request
Mistake = dict[str, Any]

REQUIRED = {"model": (str, "a string"), "messages": (list, "a list")}


def mistakes(body: Fields, parameters: frozenset[str] | None) -> list[Mistake]:
    """Return what is wrong with the fields of a chat request.

    ``parameters`` are the fields that the API knows; None stands for any.
    """
    found = [
        mistake("missing", f"Field required: {noun}", name)
        for name, (kind, noun) in REQUIRED.items()
        if not isinstance(body.get(name), kind)
    ]
    return found if parameters is None else found + _unknown_fields(body, parameters)


def mistake(kind: str, message: str, *field: str) -> Mistake:
    """Return one mistake in the API's format."""
    return {"type": kind, "loc": ["body", *field], "msg": message}


WRONG_SHAPE = mistake("value_error", "Not a valid message, tool or response_format", "messages")


def _unknown_fields(body: Fields, parameters: frozenset[str]) -> list[Mistake]:
    fields: list[tuple[str, ...]] = [(name,) for name in body if name not in parameters]
    options = body.get("stream_options")  # the API knows the field, but nothing in it
    if isinstance(options, dict):
        fields += [("stream_options", name) for name in options]
    return [mistake("extra_forbidden", "Extra inputs are not permitted", *each) for each in fields]
