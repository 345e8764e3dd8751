# SPDX-License-Identifier: MIT-0
"""Read an HTTP response: bounded, decompressed, until the deadline, and without the API key.

transport.py sends the request. Needs ``requests``, ``errors.py`` and ``total_timeout.py``.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from .errors import BLANK, MAX_BODY_LENGTH
from .total_timeout import Deadline

MAX_RESPONSE_BYTES = 8 * 1024 * 1024
DRAIN_SECONDS = 0.5  # to read the end of a stream after its last event
PIECE = 65536  # bytes of a body to read or to decompress at once
COMPRESSIONS = ("gzip", "x-gzip", "deflate")
# What a failed call may raise: requests' errors are OSErrors.
FAILURES = (OSError, ValueError, urllib3.exceptions.HTTPError, zlib.error)


class Response:
    """An HTTP response whose body has not been read yet. Its headers are redacted.

    A body that arrives compressed, although the request asks for ``identity``, is
    decompressed piece by piece, so that a small response cannot fill the memory. This is so
    for gzip and deflate; another ``Content-Encoding`` is left as it is.
    """

    def __init__(
        self, raw: requests.Response, deadline: Deadline, redact: Callable[[str], str]
    ) -> None:
        self.headers: Mapping[str, str] = CaseInsensitiveDict(
            {name: redact(value) for name, value in raw.headers.items()}
        )
        self.redact = redact
        self._raw = raw.raw
        self._raw.enforce_content_length = True  # urllib3 1.26 takes half a body for a whole one
        self._deadline = deadline

    def read(self) -> bytes:
        """Return the body, but at most MAX_RESPONSE_BYTES + 1 bytes of it."""
        body = bytearray()
        for chunk in self.chunks():
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                break
        return bytes(body[: MAX_RESPONSE_BYTES + 1])

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives, until the deadline. Some chunks may be empty."""
        compressed = self.headers.get("Content-Encoding", "").lower() in COMPRESSIONS
        for chunk in _decompressed(self._pieces()) if compressed else self._pieces():
            self._deadline.check()
            yield chunk

    def drain(self, chunks: Iterator[bytes]) -> None:
        """Read the end of the body, for DRAIN_SECONDS at most, to make the connection reusable.

        With a session of your own, it can take as long as the read timeout.
        """
        self._deadline.shorten(DRAIN_SECONDS)
        with contextlib.suppress(*FAILURES):
            next(chunks, b"")

    def error_text(self) -> str:
        """Return the body of an error response, redacted, or "" if it can't be read."""
        text = ""
        with contextlib.suppress(*FAILURES):
            text = self.read()[:MAX_BODY_LENGTH].decode("utf-8", "replace").strip(BLANK)
        with contextlib.suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text))  # JSON may write the key with escapes (\u0041)
        return self.redact(text)

    def after_fork_in_child(self) -> None:
        """Leave the rest of the body to the parent."""
        self._deadline.shorten(0)

    def _pieces(self) -> Iterator[bytes]:
        if hasattr(self._raw, "read1"):
            return iter(lambda: self._raw.read1(PIECE, decode_content=False), b"")
        # In urllib3 1.26, a body without chunks is read byte by byte: a larger read would wait.
        size = PIECE if self._raw.chunked else 1
        pieces: Iterator[bytes] = self._raw.stream(size, decode_content=False)
        return pieces


def _decompressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    decompressor = zlib.decompressobj(wbits=47)  # finds out whether it is gzip or deflate
    for piece in pieces:
        while piece:
            yield decompressor.decompress(piece, PIECE)
            piece = decompressor.unconsumed_tail
