# SPDX-License-Identifier: MIT-0
"""What differs between the APIs: fields, models, the bodies of errors, the names of headers.

The bodies are those that the real APIs send, except that a simulated failure says that it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Dialect:
    """What one API accepts and how it reports errors. ``parameters`` None: any fields."""

    name: str
    bodies: Mapping[int | str, Body]  # of errors, by status or by fault word
    other_error: Callable[[str], Body]  # (message), for every other status
    invalid: Callable[[list[Body]], tuple[int, Body]]  # (Mistral's description of each mistake)
    with_usage: Callable[[list[Body], Body, Body], list[Body]]  # (chunks, usage, request)
    models: tuple[str, ...]
    any_model: bool
    parameters: frozenset[str] | None
    owner: str
    limit_headers: Callable[[str, int, int, float], dict[str, str]]
    request_id_header: str

    def has_model(self, name: str) -> bool:
        """Return whether the API has a model of this name."""
        return self.any_model or name in self.models


def mistral_error(message: Any, kind: str, code: str | None = None) -> Body:
    """Return an error body of the Mistral API."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


def openai_error(message: str, kind: str, code: str | None = None, param: Any = None) -> Body:
    """Return an error body of the OpenAI API."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _first_mistake(errors: list[Body]) -> tuple[int, Body]:
    field = ".".join(errors[0]["loc"][1:])
    return 400, openai_error(f"{field}: {errors[0]['msg']}", INVALID, None, field)


def _usage_in_the_last_chunk(chunks: list[Body], usage: Body, request: Body) -> list[Body]:
    return [*chunks[:-1], {**chunks[-1], "usage": usage}]


def _usage_on_request(chunks: list[Body], usage: Body, request: Body) -> list[Body]:
    if not request.get("stream_options", {}).get("include_usage"):
        return chunks
    return [*chunks, {**chunks[-1], "choices": [], "usage": usage}]


def _mistral_limit_headers(what: str, limit: int, remaining: int, wait: float) -> dict[str, str]:
    unit = {"requests": "req", "tokens": "tokens"}[what]
    return {
        f"x-ratelimit-limit-{unit}-minute": str(limit),
        f"x-ratelimit-remaining-{unit}-minute": str(remaining),
    }


def _openai_limit_headers(what: str, limit: int, remaining: int, wait: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(remaining),
        f"x-ratelimit-reset-{what}": f"{wait:.3f}s",
    }


INVALID = "invalid_request_error"
RATE_LIMITED = mistral_error("Rate limit exceeded", "rate_limited", "1300")
FAILED = mistral_error("Simulated failure", "internal_server_error", "1000")
PROMPT_TOO_LONG = (
    "Prompt contains 159202 tokens and 0 draft tokens, "
    "too large for model with 131072 maximum context length"
)
MISTRAL = Dialect(
    name="Mistral",
    bodies={
        400: mistral_error("The request is invalid", INVALID),
        401: {"detail": "Unauthorized"},
        402: mistral_error("API budget exhausted.", "billing_api_budget_exhausted", "2303"),
        422: {
            "detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}],
        },
        429: RATE_LIMITED,
        500: FAILED,
        503: mistral_error("Simulated failure", "unreachable_backend", "1100"),
        "noquota": RATE_LIMITED,
        "toolong": mistral_error(PROMPT_TOO_LONG, "invalid_request_invalid_args", "3051"),
        "streamerror": FAILED,
        "no json": mistral_error("The body is not JSON", INVALID),
        "no model": mistral_error("Model not found", "invalid_model", "1500"),
    },
    other_error=lambda message: {"detail": message},
    invalid=lambda errors: (422, mistral_error({"detail": errors}, INVALID)),
    with_usage=_usage_in_the_last_chunk,
    models=(
        "mistral-small-latest", "mistral-medium-latest", "mistral-large-latest",
        "ministral-8b-latest",
    ),
    any_model=False,
    parameters=frozenset({
        "model", "messages", "temperature", "top_p", "max_tokens", "stream", "stop",
        "random_seed", "response_format", "tools", "tool_choice", "presence_penalty",
        "frequency_penalty", "n", "prediction", "parallel_tool_calls", "prompt_mode",
        "reasoning_effort", "safe_prompt", "metadata", "guardrails", "prompt_cache_key",
        "service_tier", "min_tokens", "top_k", "repetition_penalty", "logprobs", "top_logprobs",
        "prompt_logprobs", "top_prompt_logprobs", "stream_options",
    }),
    owner="mistralai",
    limit_headers=_mistral_limit_headers,
    request_id_header="mistral-correlation-id",
)  # fmt: skip
OPENAI = Dialect(
    name="OpenAI",
    bodies={
        400: openai_error("The request is invalid", INVALID),
        401: openai_error("Incorrect API key provided", INVALID, "invalid_api_key"),
        429: openai_error("Rate limit reached", "requests", "rate_limit_exceeded"),
        500: openai_error("Simulated failure", "server_error"),
        503: openai_error("Simulated failure", "server_error"),
        "noquota": openai_error(
            "You exceeded your current quota", "insufficient_quota", "insufficient_quota"
        ),
        "toolong": openai_error(
            "This model's maximum context length is 128000 tokens", INVALID,
            "context_length_exceeded", "messages",
        ),
        "streamerror": openai_error("Simulated failure", "server_error"),
        "no json": openai_error("We could not parse the JSON body of your request", INVALID),
        "no model": openai_error("The model does not exist", INVALID, "model_not_found"),
    },
    other_error=lambda message: openai_error(message, INVALID),
    invalid=_first_mistake,
    with_usage=_usage_on_request,
    models=("gpt-4o", "gpt-4o-mini"),
    any_model=True,
    parameters=None,
    owner="openai",
    limit_headers=_openai_limit_headers,
    request_id_header="x-request-id",
)  # fmt: skip
DIALECTS = {"mistral": MISTRAL, "openai": OPENAI}
