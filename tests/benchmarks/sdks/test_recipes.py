"""The blocks of lib/recipes.md that need an SDK run as they stand, against a local server."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic, AsyncAnthropic
from mistralai.client import Mistral
from openai import AsyncOpenAI, OpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from lib.client import MistralClient
from lib.errors import InternalServerError
from lib.mock_server import MockServer

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "lib" / "recipes.md").read_text("utf-8")
HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
ANSWER = "Hello! How can I assist you today?"


def blocks(heading: str, language: str = "py") -> list[str]:
    """Return the code blocks of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def names_of(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(block, "recipes.md", "exec"), names)
    return names


class MessagesServer(http.server.ThreadingHTTPServer):
    """Anthropic's API for one answer: a 503 first, then a message."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _MessagesHandler)
        self.sent: list[int] = []

    def __enter__(self) -> MessagesServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _MessagesHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status = 200 if self.server.sent else 503
        self.server.sent.append(status)
        body = json.dumps(
            {
                "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5",
                "content": [{"type": "text", "text": ANSWER}], "stop_reason": "end_turn",
                "stop_sequence": None, "usage": {"input_tokens": 4, "output_tokens": 9},
            }
        ).encode()  # fmt: skip
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def ask_both(names: dict[str, Any], client: Any, async_client: Any) -> Iterator[str]:
    yield names["ask"](client, HELLO)

    async def ask_and_close() -> str:
        async with async_client:
            return str(await names["ask_async"](async_client, HELLO))

    yield asyncio.run(ask_and_close())


class TestAnySDK:
    FAULTS = "503,ok,drop,429:1,ok"  # of the plain call, then of the async one

    def outcomes(self, server: MockServer) -> list[str]:
        return [request.outcome for request in server.log]

    def test_openai(self, tmp_path: Path) -> None:
        names = names_of(blocks("Any SDK in one pipeline")[0])
        with MockServer(self.FAULTS, dialect="openai") as server:
            options: Any = {"api_key": "k", "base_url": server.url, "max_retries": 0}
            answers = ask_both(names, OpenAI(**options), AsyncOpenAI(**options))
            assert list(answers) == [ANSWER, ANSWER]
            assert self.outcomes(server) == ["503", "200", "drop", "429", "200"]
        lines = [json.loads(line) for line in Path("llm.log").read_text().splitlines()]
        assert [line["context"]["attempts"] for line in lines] == [2, 3]
        used = 100_000 - names["pipeline"].token_limiter.available
        assert 0 < used < 600, "the usage settled all but the estimate of the lost connection"

    def test_mistralai(self) -> None:
        names = names_of(blocks("Any SDK in one pipeline")[1])
        with MockServer(self.FAULTS) as server:
            url = server.url.removesuffix("/v1")
            both = (Mistral(api_key="k", server_url=url) for _ in range(2))
            assert list(ask_both(names, *both)) == [ANSWER, ANSWER]
            assert self.outcomes(server) == ["503", "200", "drop", "429", "200"]

    def test_anthropic(self) -> None:
        names = names_of(blocks("Any SDK in one pipeline")[2])
        with MessagesServer() as server:
            options: Any = {"api_key": "k", "base_url": server.url, "max_retries": 0}
            answers = ask_both(names, Anthropic(**options), AsyncAnthropic(**options))
            assert list(answers) == [ANSWER, ANSWER]
            assert server.sent == [503, 200, 200]

    def test_a_wrong_key_is_sent_once(self) -> None:
        names = names_of(blocks("Any SDK in one pipeline")[0])
        with MockServer("401*", dialect="openai") as server:
            client = OpenAI(api_key="k", base_url=server.url, max_retries=0)
            with pytest.raises(Exception, match="401"):
                names["ask"](client, HELLO)
            assert len(server.log) == 1


class TestStream:
    @pytest.fixture
    def names(self) -> dict[str, Any]:
        return names_of(blocks("Stream an answer")[0])

    def options(self, server: MockServer) -> Any:
        return {"api_key": "k", "base_url": server.url, "max_retries": 0}

    async def read(self, names: dict[str, Any], server: MockServer) -> str:
        async with AsyncOpenAI(**self.options(server)) as client:
            return "".join([piece async for piece in names["stream_async"](client, HELLO)])

    def test_until_its_first_piece_it_is_retried(self, names: dict[str, Any]) -> None:
        with MockServer("503,ok,drop,ok", dialect="openai") as server:
            assert "".join(names["stream"](OpenAI(**self.options(server)), HELLO)) == ANSWER
            assert asyncio.run(self.read(names, server)) == ANSWER
            assert len(server.log) == 4

    def test_then_it_is_committed(self, names: dict[str, Any]) -> None:
        with MockServer("cut*", dialect="openai") as server:
            with pytest.raises(Exception, match=r"incomplete|closed|Connection"):
                list(names["stream"](OpenAI(**self.options(server)), HELLO))
            with pytest.raises(Exception, match=r"incomplete|closed|Connection"):
                asyncio.run(self.read(names, server))
            assert len(server.log) == 2


def test_web_endpoint(tmp_path: Path) -> None:
    """The two files of the page, in a project of their own."""
    app, its_tests = blocks("A web endpoint")
    (tmp_path / "app.py").write_text(app)
    (tmp_path / "test_app.py").write_text(its_tests)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = . {ROOT}\n")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    assert "6 passed" in result.stdout


@pytest.mark.skipif(sys.version_info < (3, 11), reason="IPython 9 needs Python 3.11")
def test_notebook(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.chdir(ROOT)
    cells = blocks("In a notebook", "ipython")
    shell = InteractiveShell.instance()
    for cell in cells:
        asyncio.run(shell.run_cell_async(cell, transformed_cell=shell.transform_cell(cell)))
    assert len(cells) == 2
    printed = capsys.readouterr().out
    assert "answer of attempt 1" in printed
    assert "Attempt 2/3... Success!" in printed


def test_metrics_and_traces() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    names = names_of(blocks("Metrics and traces")[0])
    with (
        MockServer("503,ok,503*") as server,
        MistralClient("any-key", base_url=server.url) as client,
    ):
        assert names["ask"](client, HELLO) == ANSWER
        for _ in range(2):
            with pytest.raises(InternalServerError):
                names["ask"](client, HELLO)
    recovered, exhausted, opened = exporter.get_finished_spans()
    assert [event.name for event in recovered.events] == ["retry"]
    assert recovered.events[0].attributes["error"] == "InternalServerError"
    assert recovered.attributes["gen_ai.response.model"] == "mistral-small-latest"
    assert exhausted.attributes["gave_up"] == "attempts exhausted"
    assert opened.attributes["gave_up"] == "circuit open"
    metrics = generate_latest().decode()
    for line in (
        'llm_calls_total{outcome="ok"} 1.0',
        'llm_calls_total{outcome="attempts exhausted"} 1.0',
        'llm_calls_total{outcome="circuit open"} 1.0',
        'llm_retries_total{error="InternalServerError"} 4.0',
        'llm_circuit_open{circuit="mistral-api"} 1.0',
    ):
        assert line in metrics
