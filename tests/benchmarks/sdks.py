"""Run the snippet of lib/recipes.md for the official SDKs against the mock server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from mistralai.client import Mistral
from openai import AsyncOpenAI

from lib.mock_server import MockServer

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
FAULTS = "503,429:1,drop"  # each retried once, then a normal response


def snippet() -> dict[str, Any]:
    page = Path(__file__).parents[2] / "lib" / "recipes.md"
    (code,) = re.findall(r"```py\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(code, str(page), "exec"), names)
    return names


async def main() -> None:
    names = snippet()
    for sdk in ("openai", "mistralai"):
        with MockServer(FAULTS) as server:
            client: Any = (
                AsyncOpenAI(api_key="k", base_url=server.url, max_retries=0)
                if sdk == "openai"
                else Mistral(api_key="k", server_url=server.url.removesuffix("/v1"))
            )
            answer = await names[f"ask_with_{sdk}"](client, HELLO)
            outcomes = [request.outcome for request in server.log]
            waited = server.log[2].arrived - server.log[1].arrived
        assert answer == "Hello! How can I assist you today?"
        assert outcomes == ["503", "429", "drop", "200"], outcomes
        assert waited >= 1, "the Retry-After was not waited for"
        print(f"{sdk}: {outcomes} -> {answer}")
    with MockServer("401") as server:
        client = AsyncOpenAI(api_key="k", base_url=server.url, max_retries=0)
        try:
            await names["ask_with_openai"](client, HELLO)
        except Exception as error:
            assert len(server.log) == 1, "a 401 was retried"
            print(f"openai: {type(error).__name__} after one request")


if __name__ == "__main__":
    asyncio.run(main())
