"""Instructor: an answer as an object, in JSON mode."""

from __future__ import annotations

import instructor
import openai
from mistralai.client import Mistral
from pydantic import BaseModel

from . import MESSAGES, MODEL, server_root


class Reply(BaseModel):
    text: str


def ask_mistral(url: str, key: str, stream: bool) -> str:
    client = Mistral(api_key=key, server_url=server_root(url))
    mode = instructor.Mode.MISTRAL_STRUCTURED_OUTPUTS
    return _ask(instructor.from_mistral(client, mode=mode), stream)


def ask_openai(url: str, key: str, stream: bool) -> str:
    client = openai.OpenAI(api_key=key, base_url=url)
    return _ask(instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA), stream)


def _ask(client, stream: bool) -> str:
    chat = client.chat.completions
    if not stream:
        return chat.create(model=MODEL, messages=MESSAGES, response_model=Reply).text
    *_, last = chat.create_partial(model=MODEL, messages=MESSAGES, response_model=Reply)
    return last.text
