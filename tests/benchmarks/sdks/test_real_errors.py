"""lib/sdk_errors.py understands the errors that the libraries raise when the server fails.

Each library sends one request to the mock server, plain or async, with its own retries off.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it looks on the network for one

import aiohttp
import anthropic
import httpx
import instructor
import litellm
import openai
import pydantic
import pytest
import requests
from langchain_mistralai import ChatMistralAI
from langchain_openai import ChatOpenAI
from mistralai.client import Mistral
from pydantic_ai import Agent
from pydantic_ai.models.mistral import MistralModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.mistral import MistralProvider
from pydantic_ai.providers.openai import OpenAIProvider

from lib.circuit_breaker import is_service_failure
from lib.mock_server import MockServer
from lib.sdk_errors import mark

MODEL = "mistral-small-latest"
HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
HEADERS = {"Authorization": "Bearer k"}
BODY = {"model": MODEL, "messages": HELLO}
TIMEOUT = 0.5  # seconds

logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
litellm.suppress_debug_info = True


class Book(pydantic.BaseModel):
    """What instructor is asked for."""

    name: str


def without_v1(url: str) -> str:
    return url.removesuffix("/v1")


def with_requests(url: str) -> None:
    path = f"{url}/chat/completions"
    requests.post(path, json=BODY, headers=HEADERS, timeout=TIMEOUT).raise_for_status()


def with_httpx(url: str) -> None:
    path = f"{url}/chat/completions"
    httpx.post(path, json=BODY, headers=HEADERS, timeout=TIMEOUT).raise_for_status()


async def with_httpx_async(url: str) -> None:
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        (
            await client.post(f"{url}/chat/completions", json=BODY, headers=HEADERS)
        ).raise_for_status()


async def with_aiohttp(url: str) -> None:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    async with aiohttp.ClientSession(raise_for_status=True, timeout=timeout) as session:
        await session.post(f"{url}/chat/completions", json=BODY, headers=HEADERS)


def openai_options(url: str) -> Any:
    return {"api_key": "k", "base_url": url, "max_retries": 0, "timeout": TIMEOUT}


def with_openai(url: str) -> None:
    openai.OpenAI(**openai_options(url)).chat.completions.create(model=MODEL, messages=HELLO)


async def with_openai_async(url: str) -> None:
    async with openai.AsyncOpenAI(**openai_options(url)) as client:
        await client.chat.completions.create(model=MODEL, messages=HELLO)


def anthropic_options(url: str) -> Any:
    return {**openai_options(url), "base_url": without_v1(url)}


def with_anthropic(url: str) -> None:
    client = anthropic.Anthropic(**anthropic_options(url))
    client.messages.create(model="claude-haiku", max_tokens=10, messages=HELLO)


async def with_anthropic_async(url: str) -> None:
    async with anthropic.AsyncAnthropic(**anthropic_options(url)) as client:
        await client.messages.create(model="claude-haiku", max_tokens=10, messages=HELLO)


def mistral(url: str) -> Mistral:
    return Mistral(api_key="k", server_url=without_v1(url), timeout_ms=int(1000 * TIMEOUT))


def with_mistralai(url: str) -> None:
    mistral(url).chat.complete(model=MODEL, messages=HELLO)


async def with_mistralai_async(url: str) -> None:
    async with mistral(url) as client:
        await client.chat.complete_async(model=MODEL, messages=HELLO)


def litellm_options(url: str) -> Any:
    return {"messages": HELLO, "api_base": url, "api_key": "k", "timeout": TIMEOUT,
            "max_retries": 0}  # fmt: skip


def with_litellm_mistral(url: str) -> None:
    litellm.completion(model=f"mistral/{MODEL}", **litellm_options(url))


def with_litellm_openai(url: str) -> None:
    litellm.completion(model=f"openai/{MODEL}", **litellm_options(url))


async def with_litellm_async(url: str) -> None:
    await litellm.acompletion(model=f"mistral/{MODEL}", **litellm_options(url))


def with_langchain_mistralai(url: str) -> None:
    options: Any = {"api_key": "k", "endpoint": url, "max_retries": 1, "timeout": 1}
    ChatMistralAI(model=MODEL, **options).invoke("Hello!")


def with_langchain_openai(url: str) -> None:
    ChatOpenAI(model=MODEL, **openai_options(url)).invoke("Hello!")


async def with_pydantic_ai_mistral(url: str) -> None:
    provider = MistralProvider(mistral_client=mistral(url))
    await Agent(MistralModel(MODEL, provider=provider)).run("Hello!")


async def with_pydantic_ai_openai(url: str) -> None:
    provider = OpenAIProvider(openai_client=openai.AsyncOpenAI(**openai_options(url)))
    await Agent(OpenAIChatModel(MODEL, provider=provider)).run("Hello!")


def with_instructor_mistral(url: str) -> None:
    client = instructor.from_mistral(mistral(url))
    client.chat.completions.create(model=MODEL, messages=HELLO, response_model=Book)


def with_instructor_openai(url: str) -> None:
    client = instructor.from_openai(openai.OpenAI(**openai_options(url)))
    client.chat.completions.create(model=MODEL, messages=HELLO, response_model=Book)


Ask = Callable[[str], Any]
LIBRARIES: list[Ask] = [
    with_requests, with_httpx, with_httpx_async, with_aiohttp, with_openai, with_openai_async,
    with_anthropic, with_anthropic_async, with_mistralai, with_mistralai_async,
    with_litellm_mistral, with_litellm_openai, with_litellm_async, with_langchain_mistralai,
    with_langchain_openai, with_pydantic_ai_mistral, with_pydantic_ai_openai,
    with_instructor_mistral, with_instructor_openai,
]  # fmt: skip
SPEAK_OPENAI: list[Ask] = [
    with_requests, with_httpx, with_openai, with_litellm_openai, with_langchain_openai,
    with_pydantic_ai_openai, with_instructor_openai,
]  # fmt: skip


def error_of(ask: Ask, server: MockServer) -> Exception:
    """Return the marked error of one call."""
    try:
        called = ask(server.url)
        if called is not None:
            asyncio.run(called)
    except Exception as error:
        return mark(error)
    raise AssertionError("the call did not fail")


def facts(error: Any) -> tuple[bool, float | None, int | None]:
    return error.retryable, error.retry_after, error.status_code


@pytest.mark.parametrize("ask", LIBRARIES, ids=lambda ask: ask.__name__)
class TestErrors:
    @pytest.mark.parametrize(
        ("fault", "expected"),
        [
            ("503*", (True, None, 503)),
            ("429:7*", (True, 7, 429)),
            ("noquota*", (False, None, 429)),
            ("400*", (False, None, 400)),
            ("401*", (False, None, 401)),
        ],
    )
    def test_status(self, ask: Ask, fault: str, expected: Any) -> None:
        with MockServer(fault) as server:
            error = error_of(ask, server)
            assert facts(error) == expected
            assert is_service_failure(error) is (fault == "503*")
            assert len(server.log) == 1, "the library's own retries are off"

    @pytest.mark.parametrize("fault", ["drop*", "timeout*"])
    def test_no_response(self, ask: Ask, fault: str) -> None:
        with MockServer(fault) as server:
            error = error_of(ask, server)
        lost = "litellm" in ask.__name__ and fault == "drop*"
        assert facts(error) == (True, None, 500 if lost else None), "litellm invents a 500"
        assert is_service_failure(error)


@pytest.mark.parametrize("ask", SPEAK_OPENAI, ids=lambda ask: ask.__name__)
def test_openai_quota(ask: Ask) -> None:
    """OpenAI's permanent 429 has `insufficient_quota` in its body."""
    with MockServer("noquota*", dialect="openai") as server:
        assert facts(error_of(ask, server)) == (False, None, 429)
