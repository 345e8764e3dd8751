"""lib/event_stream.py: bytes in, events out, as the HTML standard describes it."""

from __future__ import annotations

import random

import pytest

from lib.event_stream import Event, EventStream


def events_in(*pieces: bytes) -> list[Event]:
    """Return the events of a stream that arrives in these pieces."""
    stream = EventStream()
    return [event for piece in pieces for event in stream.feed(piece)] + list(stream.end())


class TestStandard:
    """The rules of the HTML standard, 9.2.6, for the fields that matter here."""

    @pytest.mark.parametrize(
        ("body", "events"),
        [
            (b"data: one\n\ndata: two\n\n", [Event("one"), Event("two")]),
            (b"data: one\ndata\ndata: two\n\n", [Event("one\n\ntwo")]),
            (b"data:one\n\ndata:  two\n\n", [Event("one"), Event(" two")]),
            (b"data: a: b\n\n", [Event("a: b")]),
            (b"data\n\ndata:\n\n", [Event(""), Event("")]),
            (b": a comment\n\n:\n\ndata: one\n\n", [Event("one")]),
            (b"event: ping\ndata: one\n\ndata: two\n\n", [Event("one", "ping"), Event("two")]),
            (b"event: ping\n\ndata: one\n\n", [Event("one")]),
            (b"id: 7\nretry: 3\ndata: one\ndat: x\n data: y\nDATA: z\n\n", [Event("one")]),
            (b"\xef\xbb\xbfdata: one\n\n", [Event("one")]),
            (b"\n\n\n", []),
            (b"", []),
        ],
        ids=repr,
    )
    def test_fields(self, body: bytes, events: list[Event]) -> None:
        assert events_in(body) == events

    @pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
    def test_line_ends(self, end: bytes) -> None:
        body = end.join([b"data: one", b"data: two", b"", b"data: three", b"", b""])
        assert events_in(body) == [Event("one\ntwo"), Event("three")]

    def test_other_characters_that_end_lines_elsewhere_do_not_end_one(self) -> None:
        text = "a\x0bb\x0cc\x1cd\x85e\u2028f"
        assert events_in(f"data: {text}\n\n".encode()) == [Event(text)]

    def test_bytes_that_are_not_utf_8(self) -> None:
        assert events_in(b"data: a\xffb\xe2\x82\n\n") == [Event("a\ufffdb\ufffd")]


class TestPieces:
    def test_the_way_in_which_the_bytes_are_cut_does_not_matter(self) -> None:
        body = (
            "\ufeff: hello\r\ndata: Grüße 🌍\r\rdata: one\r\ndata: two\n\nevent: ping\rdata: x\n\r"
            "error: broken\r\n\r\ndata: the end"
        ).encode()
        whole = [
            Event("Grüße 🌍"), Event("one\ntwo"), Event("x", "ping"), Event("broken", "error"),
            Event("the end"),
        ]  # fmt: skip
        assert events_in(body) == whole
        assert events_in(*(body[at : at + 1] for at in range(len(body)))) == whole
        chance = random.Random(19)
        for _ in range(100):
            cuts = sorted(chance.choices(range(len(body) + 1), k=5))
            pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
            assert events_in(*pieces) == whole

    def test_an_event_comes_with_its_last_byte(self) -> None:
        stream = EventStream()
        assert list(stream.feed(b"data: one\n")) == []
        assert list(stream.feed(b"\n")) == [Event("one")]

    def test_a_long_line_in_single_bytes_takes_time_in_proportion(self) -> None:
        stream = EventStream()
        for _ in range(100_000):
            list(stream.feed(b"x"))
        assert stream.size == 100_000


class TestEnd:
    @pytest.mark.parametrize("rest", [b"", b"\n", b"\r", b"\r\n", b"\n\n"])
    def test_the_last_event_needs_no_empty_line(self, rest: bytes) -> None:
        assert events_in(b"data: one\n\ndata: two" + rest) == [Event("one"), Event("two")]


class TestSize:
    """What an unfinished event holds, so that a caller can bound it."""

    def test_it_counts_since_the_last_empty_line(self) -> None:
        stream = EventStream()
        for piece in (b"data: one\n\n", b"data: two\nda", b"data: three"):
            list(stream.feed(piece))
        assert stream.size == len("data: two\ndadata: three")

    def test_empty_lines_of_data_count_too(self) -> None:
        stream = EventStream()
        list(stream.feed(b"data\n" * 1000))
        assert stream.size == 5000
