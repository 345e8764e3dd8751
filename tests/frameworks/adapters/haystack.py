"""Haystack's generator for Mistral."""

from __future__ import annotations

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from haystack_integrations.components.generators.mistral import (
    MistralChatGenerator,
)

from . import MODEL, PROMPT


def ask(url: str, key: str, stream: bool) -> str:
    pieces: list[str] = []
    generator = MistralChatGenerator(
        api_key=Secret.from_token(key),
        model=MODEL,
        api_base_url=url,
        streaming_callback=(lambda piece: pieces.append(piece.content)) if stream else None,
    )
    reply = generator.run([ChatMessage.from_user(PROMPT)])["replies"][0].text
    return "".join(pieces) if stream else reply
