# SPDX-License-Identifier: MIT-0
"""A local stand-in for the Mistral API that fails on demand.

    with MockServer("503,429:2") as server:
        client = MistralClient("any-key", base_url=server.url)

or, for curl, another SDK or your own project:

    python -m lib.mock_server --port 8080 --faults 503,429:2 --rpm 60

The failures are real ones, over a real socket. A fault script is a list of words
divided by commas, one word a request; after the last one the server is well again:

    ok            a normal answer
    503           that status, with the body the real API sends (any of 400 to 599)
    429:2         the same, with Retry-After: 2
    slow:1.5      a normal answer, 1.5 seconds late
    timeout       never an answer
    drop          the connection is closed without an answer
    badjson       a 200 whose JSON is cut short
    cut           a 200, or a stream, that breaks off half way
    html:502      that status, with a gateway's HTML page
    503*3         three times                     503*  for ever

Standard library only; it listens on this machine only. Any bearer key is accepted.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import math
import os
import re
import selectors
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple

VOCABULARY = (
    "use ok, a status from 400 to 599, 429:2 (seconds of Retry-After), slow:1.5, "
    "timeout, drop, badjson, cut or html:502, each with *3 or * to repeat it"
)
MODELS = (
    "mistral-small-latest", "mistral-medium-latest", "mistral-large-latest", "ministral-8b-latest",
)  # fmt: skip
PARAMETERS = {
    "model", "messages", "temperature", "top_p", "max_tokens", "stream", "stop", "random_seed",
    "response_format", "tools", "tool_choice", "presence_penalty", "frequency_penalty", "n",
    "prediction", "parallel_tool_calls", "prompt_mode", "reasoning_effort", "safe_prompt",
    "metadata", "guardrails", "prompt_cache_key", "service_tier", "min_tokens", "top_k",
    "repetition_penalty", "logprobs", "top_logprobs", "prompt_logprobs", "top_prompt_logprobs",
}  # fmt: skip
MAX_BODY_BYTES = 1024 * 1024
MAX_LOG_ENTRIES = 100_000
SENDER_TIMEOUT = 10.0  # seconds of silence, after which a half-sent request is given up
GATEWAY_PAGE = "<html><head><title>{0}</title></head><body><h1>{0}</h1>gateway</body></html>"

_logger = logging.getLogger(__name__)


class Fault(NamedTuple):
    """One word of a fault script: what happens to one request."""

    word: str
    status: int = 200
    seconds: float | None = None


@dataclass
class LoggedRequest:
    """What one request was and what it was answered; ``arrived`` is time.monotonic()."""

    arrived: float
    method: str
    path: str
    answer: str


@dataclass
class Answer:
    """An HTTP answer, and how to spoil its delivery. A list is sent as a stream of events."""

    status: int
    body: str | list[str]
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False


def parse_faults(script: str) -> Iterator[Fault]:
    """One Fault a request, then no more. Raises ValueError, naming the word, at once."""
    if not script.strip():
        return iter(())
    words = [word.strip() for word in script.split(",")]
    endless = [word for word in words[:-1] if word.endswith("*")]
    if endless:
        raise ValueError(f"'{endless[0]}' never ends, so nothing may follow it")
    return itertools.chain.from_iterable([_parse_word(word) for word in words])


def _parse_word(word: str) -> Iterator[Fault]:
    match = re.fullmatch(
        r"(?P<name>[a-z]+|[45][0-9][0-9])(:(?P<value>[0-9]+(\.[0-9]+)?))?(\*(?P<times>[0-9]*))?",
        word,
        re.ASCII,
    )
    if not match:
        raise ValueError(f"unknown fault '{ascii(word)[1:-1]}'; {VOCABULARY}")
    name, value, times = match["name"], match["value"], match["times"]
    number = None if value is None else float(value)
    if number is not None and number > 86400:
        raise ValueError(f"'{word}': more than a day")
    if name == "html" and value in {str(status) for status in range(400, 600)}:
        fault = Fault("html", int(value))
    elif name == "slow" and number is not None:
        fault = Fault("slow", 200, number)
    elif name in ("ok", "timeout", "drop", "badjson", "cut") and number is None:
        fault = Fault(name)
    elif name.isdigit():
        fault = Fault("status", int(name), number)
    else:
        raise ValueError(f"unknown fault '{word}'; {VOCABULARY}")
    if times == "":
        return itertools.repeat(fault)
    if times is not None and (len(times) > 7 or not 1 <= int(times) <= 1_000_000):
        raise ValueError(f"'{word}': repeat it 1 to 1000000 times, or for ever with a bare *")
    return itertools.repeat(fault, int(times or 1))


class MockServer:
    """The server in a thread of its own: a context manager with ``.url`` and ``.log``.

    ``faults`` is a fault script. ``requests_per_minute`` makes the server refuse,
    with a 429, what exceeds that number in any 60 seconds. ``port`` 0 takes a free one.
    Raises ValueError for a fault that isn't in the vocabulary, OSError for a port
    that is taken. Leaving the context closes the port and ends every thread.
    """

    def __init__(
        self, faults: str = "", *, requests_per_minute: int | None = None, port: int = 0
    ) -> None:
        if requests_per_minute is not None and not requests_per_minute >= 1:
            raise ValueError("requests_per_minute must be 1 or more")
        self._faults = parse_faults(faults)
        self._limit = requests_per_minute
        self._accepted: deque[float] = deque()  # when, in the last 60 seconds
        self._log: deque[LoggedRequest] = deque(maxlen=MAX_LOG_ENTRIES)
        self._lock = threading.Lock()
        self._server = _Server(port, self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def log(self) -> list[LoggedRequest]:
        """The requests so far, in the order in which they arrived."""
        with self._lock:
            return list(self._log)

    def __enter__(self) -> MockServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop()
        self._thread.join()

    def answer(self, method: str, path: str, key: str, body: bytes) -> Answer | None:
        """Decide on one request, and log it. None: close the connection unanswered."""
        with self._lock:
            arrived = time.monotonic()
            fault = next(self._faults, Fault("ok"))
            answer = self._answer(fault, arrived, method, path, key, body)
            outcome = str(answer.status) if answer else fault.word
            if answer and fault.word not in ("ok", "status"):
                outcome = fault.word if fault.word == "timeout" else f"{outcome} ({fault.word})"
            request = LoggedRequest(arrived, method, path, outcome)
            self._log.append(request)
        _logger.info("%s %s -> %s", method, path, outcome)
        return answer

    def _answer(
        self, fault: Fault, now: float, method: str, path: str, key: str, body: bytes
    ) -> Answer | None:
        if fault.word == "drop":
            return None
        if fault.word == "status":
            return _error_answer(fault.status, fault.seconds)
        if fault.word == "html":
            return _gateway_page(fault.status)
        answer = self._refusal(now) or _normal_answer(method, path, key, body)
        if self._limit is not None:
            left = str(self._limit - len(self._accepted))
            answer.headers["x-ratelimit-limit-req-minute"] = str(self._limit)
            answer.headers["x-ratelimit-remaining-req-minute"] = left
        if fault.word == "badjson":
            answer.body = _cut_short(answer.body)
        answer.cut = fault.word == "cut"
        answer.delay = math.inf if fault.word == "timeout" else fault.seconds or 0.0
        return answer

    def _refusal(self, now: float) -> Answer | None:
        """A 429 where the last 60 seconds hold as many requests as are allowed."""
        if self._limit is None:
            return None
        while self._accepted and self._accepted[0] <= now - 60:
            self._accepted.popleft()
        if len(self._accepted) >= self._limit:
            return _error_answer(429, math.ceil(self._accepted[0] + 60 - now))
        self._accepted.append(now)
        return None


def _normal_answer(method: str, path: str, key: str, body: bytes) -> Answer:
    """What the real API would say to this request in good weather."""
    if not key:
        return _error_answer(401)
    if (method, path) == ("GET", "/v1/models"):
        return _json_answer(200, {"object": "list", "data": [_model(name) for name in MODELS]})
    if (method, path) != ("POST", "/v1/chat/completions"):
        return _error_answer(404)
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return _json_answer(400, _error_body("The body is not JSON", "invalid_request_error"))
    if complaints := _complaints(request):
        error = _error_body({"detail": complaints}, "invalid_request_error")
        return _json_answer(422, error)
    if request["model"] not in MODELS:
        return _json_answer(404, _error_body("Model not found", "invalid_model", "1500"))
    completion = _chat_completion(request)
    if request.get("stream") is True:
        return Answer(200, _events(completion), {"Content-Type": "text/event-stream"})
    return _json_answer(200, completion)


def _complaints(request: Any) -> list[dict[str, Any]]:
    """What is wrong with the fields of a chat request, as the API's validator puts it."""
    if not isinstance(request, dict):
        return [{"type": "dict_type", "loc": ["body"], "msg": "Input should be an object"}]
    found = [
        {"type": "missing", "loc": ["body", name], "msg": "Field required"}
        for name in ("model", "messages")
        if name not in request
    ]
    found += [
        {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
        for name in request
        if name not in PARAMETERS
    ]
    if not isinstance(request.get("model", ""), str):
        found.append({"type": "string_type", "loc": ["body", "model"], "msg": "Not a string"})
    messages = request.get("messages", [{"role": "user"}])
    if not isinstance(messages, list) or not messages:
        found.append({"type": "list_type", "loc": ["body", "messages"], "msg": "Not a list"})
    elif not all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in messages):
        found.append({"type": "missing", "loc": ["body", "messages", "role"], "msg": "No role"})
    return found


def _cut_short(body: str | list[str]) -> str | list[str]:
    """The first half; of a stream, the first events and half of the next one."""
    half = len(body) // 2
    if isinstance(body, str):
        return body[:half]
    return [*body[:half], body[half][: len(body[half]) // 2] + "\n\n"]


def _chat_completion(request: dict[str, Any]) -> dict[str, Any]:
    prompt = _text(request["messages"][-1].get("content"))
    reply = "Hello! How can I assist you today?" if prompt == "Hello!" else f"{prompt} response"
    tokens_in = sum(len(_text(item.get("content")).split()) for item in request["messages"])
    tokens_out = len(reply.split())
    message = {"role": "assistant", "content": reply, "tool_calls": None}
    return {
        "id": uuid.uuid4().hex,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        },
    }


def _events(completion: dict[str, Any]) -> list[str]:
    """The completion as the events of a stream: a word each, then the reason, then the mark."""
    words = re.findall(r"\S+\s*", completion["choices"][0]["message"]["content"])
    choices: list[dict[str, Any]] = [
        {"index": 0, "delta": {"content": word}, "finish_reason": None} for word in words
    ]
    choices[0]["delta"]["role"] = "assistant"
    choices.append({"index": 0, "delta": {"content": ""}, "finish_reason": "stop"})
    head = {name: completion[name] for name in ("id", "created", "model")}
    events: list[dict[str, Any]] = [
        {**head, "object": "chat.completion.chunk", "choices": [choice]} for choice in choices
    ]
    events[-1]["usage"] = completion["usage"]
    return [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(chunk.get("text", "")) for chunk in content if isinstance(chunk, dict))
    return str(content or "")


def _model(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "type": "base",
        "created": 1782199134,
        "owned_by": "mistralai",
        "capabilities": {"completion_chat": True, "function_calling": True, "vision": False},
    }


def _error_body(message: Any, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


# The bodies that the real API sends, as they were seen; a simulated fault of the
# server's says that it is one.
ERROR_BODIES: dict[int, dict[str, Any]] = {
    400: _error_body(
        "The prompt is too large for this model", "invalid_request_invalid_args", "3051"
    ),
    401: {"detail": "Unauthorized"},
    402: _error_body("API budget exhausted.", "billing_api_budget_exhausted", "2303"),
    404: {"detail": "Not Found"},
    422: {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}]},
    429: _error_body("Rate limit exceeded", "rate_limited", "1300"),
    500: _error_body("Simulated failure", "internal_server_error", "1000"),
    503: _error_body("Simulated failure", "unreachable_backend", "1100"),
}


def _error_answer(status: int, retry_after: float | None = None) -> Answer:
    answer = _json_answer(status, ERROR_BODIES.get(status, {"detail": _phrase(status)}))
    if status == 504:
        answer = Answer(status, "")  # a gateway that gave up says nothing
    elif status == 520:
        answer = _gateway_page(status)
    if retry_after is not None:
        answer.headers["Retry-After"] = f"{retry_after:.6f}".rstrip("0").rstrip(".")
    return answer


def _gateway_page(status: int) -> Answer:
    page = GATEWAY_PAGE.format(f"{status} {_phrase(status)}")
    return Answer(status, page, {"Content-Type": "text/html"})


def _json_answer(status: int, body: dict[str, Any]) -> Answer:
    return Answer(status, json.dumps(body), {"Content-Type": "application/json"})


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"HTTP status {status}"


class _Server(ThreadingTCPServer):
    """Listens on loopback, a thread a connection; knows its connections, to end them all."""

    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port
    request_queue_size = 128

    def __init__(self, port: int, mock: MockServer) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.mock = mock
        self._connections: set[socket.socket] = set()
        self._stopping = False
        self._lock = threading.Lock()

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)
            if self._stopping:
                _hang_up(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)

    def stop(self) -> None:
        """Close the port, then every connection, and wait for their threads to end."""
        self.shutdown()
        with self._lock:
            self._stopping = True
            for connection in self._connections:
                _hang_up(connection)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; anything else is a mistake of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, within bounds, and sends what the mock decides."""

    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = SENDER_TIMEOUT
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.opened(self.connection)

    def finish(self) -> None:
        self.server.closed(self.connection)
        super().finish()

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not length:
            self.send_error(411)
        elif not re.fullmatch("[0-9]{1,12}", length):
            self.send_error(400)
        elif int(length) > MAX_BODY_BYTES:
            self.send_error(413)
        else:
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                self.close_connection = True
            else:
                self._respond(body)

    def do_GET(self) -> None:
        self._respond(b"")

    def _respond(self, body: bytes) -> None:
        path = re.sub("[^!-~]", "?", self.path.partition("?")[0])[:100]
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        answer = self.server.mock.answer(
            self.command, path, key.strip() if scheme.lower() == "bearer" else "", body
        )
        if answer is None or not self._still_there_after(answer.delay):
            self.close_connection = True
        else:
            self._send(answer)

    def _still_there_after(self, seconds: float) -> bool:
        """Wait so long; False as soon as the client hangs up or the server is stopped."""
        if not seconds:
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            return not selector.select(None if seconds == math.inf else seconds)

    def _send(self, answer: Answer) -> None:
        if isinstance(answer.body, list):
            events = [event.encode() for event in answer.body]
            pieces = [b"%x\r\n%s\r\n" % (len(event), event) for event in events] + [b"0\r\n\r\n"]
            framing = ("Transfer-Encoding", "chunked")
            pieces = pieces[: len(pieces) // 2] if answer.cut else pieces
        else:
            body = answer.body.encode()
            pieces = [body[: len(body) // 2] if answer.cut else body]
            framing = ("Content-Length", str(len(body)))
        self.close_connection = self.close_connection or answer.cut
        self.send_response(answer.status)
        for name, value in [*answer.headers.items(), framing]:
            self.send_header(name, value)
        self.send_header("mistral-correlation-id", str(uuid.uuid4()))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, in the API's shape and without echoing it."""
        self.close_connection = True
        self._send(_json_answer(code, {"detail": _phrase(code)}))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the mock keeps its own log, which holds no header."""


def main() -> int:
    """``python -m lib.mock_server``: serve until Ctrl-C, telling each request on stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.mock_server",
        description="A local stand-in for the Mistral API that fails on demand.",
        epilog=f"Faults, one word a request: {VOCABULARY}.",
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=int, default=8080, help="default: 8080; 0 takes a free one")
    parser.add_argument("--faults", default="", help="for example 503,429:2")
    parser.add_argument("--rpm", type=int, help="requests allowed a minute; default: no limit")
    options = parser.parse_args()
    if not 0 <= options.port <= 65535:
        parser.error("--port must be a number from 0 to 65535")
    try:
        server = MockServer(options.faults, requests_per_minute=options.rpm, port=options.port)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        print(f"Port {options.port} can't be used ({error.strerror}): choose another with --port.",
              file=sys.stderr)  # fmt: skip
        return 1
    logging.basicConfig(format="%(asctime)s  %(message)s", level=logging.INFO, stream=sys.stdout)
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"Mock Mistral API on {server.url} (stop it with Ctrl-C)", flush=True)
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
