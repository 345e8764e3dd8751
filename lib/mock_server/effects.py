# SPDX-License-Identifier: MIT-0
"""What each fault word does: ``EFFECTS`` makes the response of a fault from the normal one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from .answers import Completion, end, first_words
from .api import API, Change, Response, first_half, gateway_page
from .faults import Fault

FOREVER = 1_000_000.0  # seconds: longer than any client waits


class Normal(Protocol):
    """A function that returns the normal response.

    A fault that does not call it uses up no rate limit and no reply.
    """

    def __call__(self, change: Change = ...) -> Response:
        """Return the normal response; ``change`` is applied to a completion."""


Effect = Callable[[API, Normal, Fault], Response | None]


EFFECTS: dict[str, Effect] = {
    "ok": lambda api, normal, fault: normal(),
    # instead of the normal response
    "status": lambda api, normal, fault: api.error(fault.status, retry_after=fault.seconds),
    "noquota": lambda api, normal, fault: _no_quota(api),
    "toolong": lambda api, normal, fault: api.error(400, "toolong"),
    "html": lambda api, normal, fault: gateway_page(fault.status),
    "drop": lambda api, normal, fault: None,
    # the normal response, but late
    "slow": lambda api, normal, fault: replace(normal(), delay=fault.seconds or 0.0),
    "timeout": lambda api, normal, fault: replace(normal(), delay=FOREVER),
    "drip": lambda api, normal, fault: replace(normal(), seconds_per_byte=fault.seconds or 0.0),
    # a part of it
    "badjson": lambda api, normal, fault: _edited(normal(), _half_json),
    "truncate": lambda api, normal, fault: _edited(normal(), first_half),
    "streamerror": lambda api, normal, fault: _error_event(api, normal()),
    "cut": lambda api, normal, fault: replace(normal(), broken=True),
    "stall": lambda api, normal, fault: replace(normal(), broken=True, silence=FOREVER),
    # a complete response without a complete answer
    "length": lambda api, normal, fault: normal(_cut_off),
    "empty": lambda api, normal, fault: normal(_emptied),
    "filter": lambda api, normal, fault: normal(_withheld),
}


def respond(api: API, normal: Normal, fault: Fault) -> Response | None:
    """Return the response of a fault; None means: close the connection without one."""
    return EFFECTS[fault.kind](api, normal, fault)


def _no_quota(api: API) -> Response:
    response = api.error(429, "noquota")
    response.headers.update(api.dialect.limit_headers("requests", 0, 0, 0.0))
    return response


def _half_json(pieces: list[str]) -> list[str]:
    """Return half of a stream's events and half of the next one, or half of the only text."""
    half = len(pieces) // 2
    event = pieces[half]
    return [*pieces[:half], event[: len(event) // 2] + "\n\n" * (len(pieces) > 1)]


def _error_event(api: API, response: Response) -> Response:
    """Send an error after half of a stream; only an error if the response is not a stream."""
    error = json.dumps(api.dialect.bodies["streamerror"])
    if not response.stream:
        return replace(response, pieces=[error])
    return replace(response, pieces=[*first_half(response.pieces), f"data: {error}\n\n"])


def _edited(response: Response, edit: Callable[[list[str]], list[str]]) -> Response:
    return replace(response, pieces=edit(response.pieces))


def _cut_off(completion: Completion) -> Completion:
    text = completion["choices"][0]["message"]["content"]
    return end(completion, first_words(text, len(text.split()) // 2), "length")


def _emptied(completion: Completion) -> Completion:
    completion["choices"][0]["message"]["tool_calls"] = None
    return end(completion, "", "stop")


def _withheld(completion: Completion) -> Completion:
    return end(_emptied(completion), "", "content_filter")
