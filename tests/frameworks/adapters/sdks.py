"""The official SDKs of OpenAI and Mistral."""

from __future__ import annotations

from typing import Any

import openai
from mistralai.client import Mistral
from mistralai.client.utils import BackoffStrategy, RetryConfig

from . import MESSAGES, MODEL, server_root


def ask_openai(url: str, key: str, stream: bool, **settings: Any) -> str:
    client = openai.OpenAI(api_key=key, base_url=url, **settings)
    if not stream:
        response = client.chat.completions.create(model=MODEL, messages=MESSAGES)
        return response.choices[0].message.content
    chunks = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def ask_openai_10_s(url: str, key: str, stream: bool) -> str:
    """Set what most guides advise: a timeout."""
    return ask_openai(url, key, stream, timeout=10, max_retries=1)


def ask_mistralai(url: str, key: str, stream: bool, **settings: Any) -> str:
    with Mistral(api_key=key, server_url=server_root(url), **settings) as client:
        if not stream:
            response = client.chat.complete(model=MODEL, messages=MESSAGES)
            return response.choices[0].message.content
        with client.chat.stream(model=MODEL, messages=MESSAGES) as events:
            return "".join(event.data.choices[0].delta.content or "" for event in events)


def ask_mistralai_retrying(url: str, key: str, stream: bool) -> str:
    """Set a timeout, and retries for at most 10 s."""
    backoff = BackoffStrategy(500, 5000, 1.5, 10_000)  # milliseconds
    retries = RetryConfig("backoff", backoff, retry_connection_errors=True)
    return ask_mistralai(url, key, stream, timeout_ms=10_000, retry_config=retries)
