"""The clients that are checked: where they are installed, and what asks."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-frameworks"


class Client(NamedTuple):
    """A client, and the column of the table that shows it.

    ``environment`` is the folder in which it is installed; None is the project's own. Either
    ``function`` of the environment's adapters asks, or ``command``, which is a shell command
    and the same for a stream.
    """

    name: str
    table: str
    environment: str | None
    packages: tuple[str, ...] = ()
    function: str = ""
    command: Callable[[bool], list[str]] | None = None
    dialect: str = "mistral"

    @property
    def module(self) -> str:
        """The module with the adapter; "" for a command."""
        name = (self.environment or "project").replace("-", "_")
        return f"frameworks.adapters.{name}" if self.function else ""

    def versions(self) -> str:
        """Return the installed versions, for the page."""
        if self.name == "curl":
            return _first_words("curl")
        if self.environment == "javascript":
            versions = [f"{name} {_node_version(name)}" for name in self.packages]
            return ", ".join([*versions, f"Node {_first_words('node')}"])
        versions = [f"{name} {version(name)}" for name in self.packages] or ["this project"]
        return ", ".join([*versions, f"Python {platform.python_version()}"])


def _first_words(command: str) -> str:
    return subprocess.check_output([command, "--version"], text=True).partition(" (")[0].strip()


def _node_version(package: str) -> str:
    path = ENVIRONMENTS / "javascript" / "node_modules" / package / "package.json"
    return str(json.loads(path.read_text("utf-8"))["version"])


def _curl(stream: bool) -> list[str]:
    body = {
        "model": "mistral-small-latest",
        "messages": [{"role": "user", "content": "Hello!"}],
        "stream": stream,
    }
    script = (
        'curl --silent --show-error --fail --retry 3 "$MISTRAL_BASE_URL/chat/completions" '
        '--header "Authorization: Bearer $MISTRAL_API_KEY" '
        "--header 'Content-Type: application/json' --data '" + json.dumps(body) + "'"
    )
    return ["sh", "-c", script]


def _node(name: str) -> Callable[[bool], list[str]]:
    script = str(ENVIRONMENTS / "javascript" / "javascript.mjs")
    return lambda stream: ["node", script, name, "stream" if stream else "whole"]


CLIENT, FRAMEWORK = "clients", "frameworks"
CLIENTS = (
    Client("ours", CLIENT, None, function="ours_in_a_web_handler"),
    Client("ours, defaults", CLIENT, None, function="ours"),
    Client("naive loop", CLIENT, None, ("requests",), "naive_loop"),
    Client("curl", CLIENT, None, command=_curl),
    Client("openai", CLIENT, "sdks", ("openai",), "ask_openai", dialect="openai"),
    Client("openai, 10 s", CLIENT, "sdks", ("openai",), "ask_openai_10_s", dialect="openai"),
    Client("mistralai", CLIENT, "sdks", ("mistralai",), "ask_mistralai"),
    Client("mistralai, retries", CLIENT, "sdks", ("mistralai",), "ask_mistralai_retrying"),
    Client(
        "JS openai", CLIENT, "javascript", ("openai",), command=_node("openai"), dialect="openai",
    ),
    Client("JS mistral", CLIENT, "javascript", ("@mistralai/mistralai",), command=_node("mistral")),
    Client("litellm", FRAMEWORK, "litellm", ("litellm",), "ask"),
    Client("litellm Router", FRAMEWORK, "litellm", ("litellm",), "ask_router"),
    Client(
        "LangChain Mistral", FRAMEWORK, "langchain", ("langchain-mistralai", "langchain-core"),
        "ask_mistral",
    ),
    Client(
        "LangChain OpenAI", FRAMEWORK, "langchain",
        ("langchain-openai", "langchain-core", "openai"), "ask_openai", dialect="openai",
    ),
    Client(
        "Pydantic AI Mistral", FRAMEWORK, "pydantic-ai", ("pydantic-ai-slim", "mistralai"),
        "ask_mistral",
    ),
    Client(
        "Pydantic AI OpenAI", FRAMEWORK, "pydantic-ai", ("pydantic-ai-slim", "openai"),
        "ask_openai", dialect="openai",
    ),
    Client(
        "Instructor Mistral", FRAMEWORK, "instructor", ("instructor", "mistralai"), "ask_mistral",
    ),
    Client(
        "Instructor OpenAI", FRAMEWORK, "instructor", ("instructor", "openai"), "ask_openai",
        dialect="openai",
    ),
    Client(
        "LlamaIndex", FRAMEWORK, "llama-index",
        ("llama-index-llms-mistralai", "llama-index-core", "mistralai"), "ask",
    ),
    Client(
        "Haystack", FRAMEWORK, "haystack", ("mistral-haystack", "haystack-ai", "openai"), "ask",
    ),
)  # fmt: skip
