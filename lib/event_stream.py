# SPDX-License-Identifier: MIT-0
"""Read server-sent events (SSE): bytes in, events out.

    >>> stream = EventStream()
    >>> list(stream.feed(b": a comment\\n\\ndata: Hel"))
    []
    >>> list(stream.feed(b"lo\\n\\n"))
    [Event(data='Hello', name='')]

It does no I/O. Copy this file alone: it needs the standard library only.

After the HTML standard, 9.2.6, "Interpreting an event stream", with two exceptions, because LLM
servers differ from it. The last event of the stream counts even without the empty line that should
follow it. A field named "error" makes an event with that name: older llama.cpp servers report their
errors like this.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import NamedTuple


class Event(NamedTuple):
    """One event. ``data`` is its text, ``name`` its type: "" unless the server gave one."""

    data: str
    name: str = ""


class EventStream:
    """Turn the bytes of one response into events, however the bytes are split.

    ``size`` is the number of characters since the last empty line: those of the event that is
    not complete yet.
    """

    def __init__(self) -> None:
        utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)  # each line end is \n
        self._line: list[str] = []  # the pieces of a line that has not ended yet
        self._data: list[str] = []
        self._name = ""
        self.size = 0

    def feed(self, received: bytes) -> Iterator[Event]:
        """Yield the events that are complete with these bytes."""
        first, *others = self._decoder.decode(received).split("\n")
        self._line.append(first)
        self.size += len(first)
        for beginning in others:
            yield from self._read("".join(self._line))
            self._line = [beginning]
            self.size += len(beginning)

    def end(self) -> Iterator[Event]:
        """Yield the event that the end of the stream completes, if there is one."""
        yield from self.feed(b"\n\n")

    def _read(self, line: str) -> Iterator[Event]:
        """Take one line; yield the event that an empty line ends."""
        self.size += 1
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "error":
            self._data, self._name = [value], "error"
        elif not line:
            if self._data:
                yield Event("\n".join(self._data), self._name)
            self._data, self._name, self.size = [], "", 0
