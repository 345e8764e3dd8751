"""LangChain's chat models for Mistral and OpenAI."""

from __future__ import annotations

from langchain_mistralai import ChatMistralAI
from langchain_openai import ChatOpenAI

from . import MODEL, PROMPT


def ask_mistral(url: str, key: str, stream: bool) -> str:
    return _ask(ChatMistralAI(model=MODEL, api_key=key, endpoint=url), stream)


def ask_openai(url: str, key: str, stream: bool) -> str:
    return _ask(ChatOpenAI(model=MODEL, api_key=key, base_url=url), stream)


def _ask(model, stream: bool) -> str:
    if not stream:
        return model.invoke(PROMPT).text
    return "".join(chunk.text for chunk in model.stream(PROMPT))
