"""This project's client, and the loop that most programs begin with."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import requests

from lib.answer_check import check_answer
from lib.circuit_breaker import CircuitBreaker
from lib.client import MistralClient
from lib.resilient_client import ResilientMistralClient
from lib.retry import Retrier

from . import MESSAGES, MODEL


def ours(url: str, key: str, stream: bool) -> str:
    with MistralClient(key, base_url=url) as client:
        return _ask(ResilientMistralClient(client), stream)


def ours_in_a_web_handler(url: str, key: str, stream: bool) -> str:
    with MistralClient(key, base_url=url, timeout=(2, 10), total_timeout=10) as client:
        resilient = ResilientMistralClient(
            client,
            retrier=Retrier(max_attempts=2, total_timeout=15),
            breaker=CircuitBreaker("api", failure_threshold=5, recovery_timeout=10),
        )
        return _ask(resilient, stream)


def _ask(resilient: ResilientMistralClient, stream: bool) -> str:
    if not stream:
        return check_answer(resilient.chat(MESSAGES)).content

    def whole_stream(client: MistralClient) -> str:
        pieces = client.stream(MESSAGES)
        text = "".join(pieces)
        check_answer(SimpleNamespace(content=text, finish_reason=pieces.finish_reason))
        return text

    return resilient.request(whole_stream)


def naive_loop(url: str, key: str, stream: bool) -> str:
    """Retry four times on any exception, a second later."""
    for _ in range(4):
        try:
            return _naive_request(url, key, stream)
        except Exception:
            time.sleep(1)
    return _naive_request(url, key, stream)


def _naive_request(url: str, key: str, stream: bool) -> str:
    body: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "stream": stream}
    response = requests.post(
        f"{url}/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json=body,
        stream=stream,
    )
    response.raise_for_status()
    if not stream:
        return str(response.json()["choices"][0]["message"]["content"])
    events = [
        json.loads(line[6:])
        for line in response.iter_lines()
        if line.startswith(b"data: ") and line != b"data: [DONE]"
    ]
    return "".join(event["choices"][0]["delta"]["content"] for event in events)
