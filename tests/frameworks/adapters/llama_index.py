"""LlamaIndex's chat model for Mistral."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.llms.mistralai import MistralAI

from . import MODEL, PROMPT, server_root


def ask(url: str, key: str, stream: bool) -> str:
    model = MistralAI(model=MODEL, api_key=key, endpoint=server_root(url))
    messages = [ChatMessage(role="user", content=PROMPT)]
    if not stream:
        return model.chat(messages).message.content
    return "".join(piece.delta or "" for piece in model.stream_chat(messages))
