# SPDX-License-Identifier: MIT-0
"""Build the responses of an API that works: ``API.respond`` makes one from a request.

It does no I/O and keeps no state; only a completion's ``created`` field depends on the clock.
"""

from __future__ import annotations

import base64
import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

from . import answers
from .dialects import MISTRAL, Body, Dialect
from .validation import Mistake, mistake, mistakes

CHAT_PATH = "/v1/chat/completions"
EMBEDDINGS_PATH = "/v1/embeddings"
MODELS_PATH = "/v1/models"
SERVED = f"POST {CHAT_PATH}, POST {EMBEDDINGS_PATH}, GET {MODELS_PATH} and GET {MODELS_PATH}/ID"
EMBEDDING = [0.5, -0.5, 0.5, -0.5]
GATEWAY_PAGE = "<html><head><title>{0}</title></head><body><h1>{0}</h1>gateway</body></html>"


class Request(NamedTuple):
    """What a request to the API says, and whether it has a bearer key."""

    method: str
    path: str
    has_key: bool
    content: bytes


@dataclass
class Response:
    """An HTTP response and how to send it: each piece is the body, or one event of a stream."""

    status: int
    pieces: list[str]
    headers: dict[str, str] = field(default_factory=dict)
    stream: bool = False
    tokens: int = 0  # charged to the token limit
    delay: float = 0.0  # seconds before the response is sent
    seconds_per_byte: float = 0.0
    broken: bool = False  # half of it is sent, then ``silence``, then the connection is closed
    silence: float = 0.0


Text = TypeVar("Text", str, bytes)
Reply = Callable[[Any], str | None]  # from a chat request's body to text; None: the default
Change = Callable[[answers.Completion], answers.Completion]


def unchanged(completion: answers.Completion) -> answers.Completion:
    """Return the completion as it is."""
    return completion


class API:
    """Respond as the real API does, in one of its dialects."""

    def __init__(self, dialect: Dialect = MISTRAL, reply: Reply = lambda body: None) -> None:
        self.dialect = dialect
        self._reply = reply

    def respond(self, request: Request, change: Change = unchanged) -> Response:
        """Return the normal response to a request; ``change`` is applied to a completion."""
        if not request.has_key:
            return self.error(401)
        if request.method == "GET" and request.path.startswith(MODELS_PATH):
            return self._models(request.path.removeprefix(MODELS_PATH))
        if request.method != "POST" or request.path not in (CHAT_PATH, EMBEDDINGS_PATH):
            return self._not_found()
        try:
            body = json.loads(request.content)
        except (ValueError, RecursionError):
            return self.error(400, "no json")
        if not isinstance(body, dict):
            return self._invalid(mistake("dict_type", "Input should be an object"))
        response_id = uuid.uuid5(uuid.NAMESPACE_URL, request.content.hex()).hex
        if request.path == EMBEDDINGS_PATH:
            return self._embeddings(body, response_id)
        return self._chat(body, response_id, change)

    def error(
        self, status: int, word: str | None = None, *, retry_after: float | None = None
    ) -> Response:
        """Return an error response; ``word`` chooses a body that is not the status's usual one."""
        if status == 504:
            response = Response(status, [""])  # a gateway's timeout has an empty body
        elif status == 520:
            response = gateway_page(status)
        else:
            other = self.dialect.other_error(phrase(status))
            response = json_response(status, self.dialect.bodies.get(word or status, other))
        if retry_after is not None:
            response.headers["Retry-After"] = f"{retry_after:.6f}".rstrip("0").rstrip(".")
        return response

    def _not_found(self) -> Response:
        message = f"Not Found: the mock serves {SERVED} only"
        return json_response(404, self.dialect.other_error(message))

    def _invalid(self, *wrong: Mistake) -> Response:
        return json_response(*self.dialect.invalid(list(wrong)))

    def _models(self, rest: str) -> Response:
        name = rest.removeprefix("/")
        if not name:
            models = [self._model(each) for each in self.dialect.models]
            return json_response(200, {"object": "list", "data": models})
        if not self.dialect.has_model(name):
            return self._not_found()
        return json_response(200, self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "type": "base",
            "created": 1782199134,
            "owned_by": self.dialect.owner,
            "capabilities": {"completion_chat": True, "function_calling": True, "vision": False},
        }

    def _chat(self, body: Body, response_id: str, change: Change) -> Response:
        if wrong := mistakes(body, self.dialect.parameters):
            return self._invalid(*wrong)
        if not self.dialect.has_model(body["model"]):
            return self.error(404, "no model")
        request = answers.without_nulls(body)
        try:
            text, tool_calls = answers.make_up(request)
        except (LookupError, TypeError, AttributeError, RecursionError):
            wrong_tool = mistake("value_error", "Not a valid tool or response_format", "tools")
            return self._invalid(wrong_tool)
        own = None if tool_calls else self._reply(body)
        text = text if own is None else own
        completion = change(answers.complete(request, response_id, text, tool_calls))
        if body.get("stream") is True:
            response = self._stream(completion, request)
        else:
            response = json_response(200, completion)
        response.tokens = completion["usage"]["total_tokens"]
        return response

    def _stream(self, completion: answers.Completion, request: answers.Request) -> Response:
        chunks = answers.chunks(completion)
        chunks = self.dialect.with_usage(chunks, completion["usage"], request)
        events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        headers = {"Content-Type": "text/event-stream"}
        return Response(200, [*events, "data: [DONE]\n\n"], headers, stream=True)

    def _embeddings(self, body: Body, response_id: str) -> Response:
        inputs = body.get("input")
        if not isinstance(inputs, (str, list)):
            return self._invalid(mistake("missing", "Field required", "input"))
        texts = [inputs] if isinstance(inputs, str) else inputs
        vector: Any = EMBEDDING
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(EMBEDDING)}f", *EMBEDDING)).decode()
        tokens = sum(len(str(text).split()) for text in texts)
        return json_response(
            200,
            {
                "id": response_id,
                "object": "list",
                "model": body.get("model"),
                "data": [
                    {"object": "embedding", "index": index, "embedding": vector}
                    for index in range(len(texts))
                ],
                "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
            },
        )


def json_response(status: int, body: dict[str, Any]) -> Response:
    """Return a response with a JSON body."""
    return Response(status, [json.dumps(body)], {"Content-Type": "application/json"})


def gateway_page(status: int) -> Response:
    """Return what a gateway in front of the API sends: an HTML page."""
    page = GATEWAY_PAGE.format(f"{status} {phrase(status)}")
    return Response(status, [page], {"Content-Type": "text/html"})


def first_half(pieces: list[Text]) -> list[Text]:
    """Return the first half of a stream's events, or of the only text."""
    if len(pieces) > 1:
        return pieces[: len(pieces) // 2]
    return [pieces[0][: len(pieces[0]) // 2]]


def phrase(status: int) -> str:
    """Return the name of an HTTP status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"HTTP status {status}"
