"""Pydantic AI: an agent without tools, with Mistral's and with OpenAI's SDK below it."""

from __future__ import annotations

import asyncio

from pydantic_ai import Agent
from pydantic_ai.models.mistral import MistralModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.mistral import MistralProvider
from pydantic_ai.providers.openai import OpenAIProvider

from . import MODEL, PROMPT, server_root


def ask_mistral(url: str, key: str, stream: bool) -> str:
    provider = MistralProvider(api_key=key, base_url=server_root(url))
    return _ask(MistralModel(MODEL, provider=provider), stream)


def ask_openai(url: str, key: str, stream: bool) -> str:
    provider = OpenAIProvider(api_key=key, base_url=url)
    return _ask(OpenAIChatModel(MODEL, provider=provider), stream)


def _ask(model, stream: bool) -> str:
    agent = Agent(model)
    if not stream:
        return agent.run_sync(PROMPT).output

    async def whole_stream() -> str:
        async with agent.run_stream(PROMPT) as result:
            return "".join([piece async for piece in result.stream_text(delta=True)])

    return asyncio.run(whole_stream())
