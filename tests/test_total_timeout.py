"""lib/total_timeout.py: whatever the server does, a requests call ends by the deadline."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import itertools
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import urllib3

from conftest import FakeClock
from lib.total_timeout import Deadline, TotalTimeoutAdapter, total_timeout
from support import CERTIFICATE, Handler, RawServer, raw_response, run_in_threads, serving

OK = raw_response("200 OK", b"Hello")
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = b"x" * 8_000_000  # more than the buffers between two sockets hold


def silent(connection: socket.socket, stopping: threading.Event) -> None:
    stopping.wait(10)


def reading_slowly(connection: socket.socket, stopping: threading.Event) -> None:
    while not stopping.wait(0.01):
        connection.recv(1000)


def answering(*responses: bytes) -> Handler:
    """Send each connection the responses, one a request."""

    def answer(connection: socket.socket, stopping: threading.Event) -> None:
        for response in responses:
            connection.recv(65536)
            connection.sendall(response)

    return answer


def dripping(first: bytes, piece: bytes) -> Handler:
    def drip(connection: socket.socket, stopping: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(first)
        while not stopping.wait(0.01):
            connection.sendall(piece)

    return drip


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env, session.verify = False, CERTIFICATE
        for scheme in ("http://", "https://"):
            session.mount(scheme, TotalTimeoutAdapter())
        yield session


@contextlib.contextmanager
def ends_in_time(seconds: float = 0.05) -> Iterator[Deadline]:
    """Give the block that many seconds, and expect it to end as a requests.Timeout."""
    started_at = time.monotonic()
    message = f"within the total timeout of {seconds:g} s"
    with pytest.raises(requests.Timeout, match=message), total_timeout(seconds) as deadline:
        yield deadline
    assert time.monotonic() - started_at < seconds + 2


@contextlib.contextmanager
def fails_soon(kind: type[Exception] = requests.RequestException) -> Iterator[None]:
    """Expect an error, by the real clock."""
    started_at = time.perf_counter()
    with pytest.raises(kind):
        yield
    assert time.perf_counter() - started_at < 3


Call = Callable[[requests.Session, str], object]


def get(session: requests.Session, url: str) -> None:
    session.get(url, timeout=60)


def post(session: requests.Session, url: str) -> None:
    session.post(url, data=LARGE, timeout=60)


def get_with_tls(session: requests.Session, url: str) -> None:
    session.get(url.replace("http:", "https:"), timeout=60)


def get_through(session: requests.Session, proxy: str) -> None:
    session.get("https://no-such-host.invalid/", proxies={"https": proxy}, timeout=60)


PHASES: dict[str, tuple[Call, Handler]] = {
    "silence": (get, silent),
    "103": (get, dripping(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n")),
    "100": (get, dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
    "header": (get, dripping(HEAD + b"X-Filler: ", b"x")),
    "body without an end": (get, dripping(HEAD + b"\r\n", b"x")),
    "body": (get, dripping(HEAD + b"Content-Length: 9999\r\n\r\n", b"x")),
    "chunk size": (get, dripping(CHUNKED, b"0")),
    "chunks": (get, dripping(CHUNKED, b"1\r\nx\r\n")),
    "trailers": (get, dripping(CHUNKED + b"0\r\n", b"X-Trailer: 1\r\n")),
    "sending": (post, silent),
    "sending slowly": (post, reading_slowly),
    "silent handshake": (get_with_tls, silent),
    "slow handshake": (get_with_tls, dripping(b"\x16\x03\x03\x20\x00", b"\x02")),
    "silent proxy": (get_through, silent),
    "slow proxy": (get_through, dripping(HEAD, b"X")),
    "handshake through a proxy": (get_through, dripping(HEAD + b"\r\n", b"")),
}


class TestEveryPhase:
    """It ends by the deadline, as a requests.Timeout."""

    @pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
    def test_each(self, session: requests.Session, tls: bool) -> None:
        """The calls wait at the same time."""

        def end(call: Call, handle: Handler) -> None:
            with serving(handle, tls=tls) as url, ends_in_time(0.2):
                call(session, url)

        with ThreadPoolExecutor(len(PHASES)) as pool:
            ends = {name: pool.submit(end, *phase) for name, phase in PHASES.items()}
        failed = {name: end.exception() for name, end in ends.items() if end.exception()}
        assert failed == {}

    def test_tls_after_a_slow_proxy(self, session: requests.Session, clock: FakeClock) -> None:
        """The handshake has what the proxy has left of the time."""

        def connect(connection: socket.socket, stopping: threading.Event) -> None:
            connection.recv(65536)
            clock.now += 59.95
            connection.sendall(HEAD + b"\r\n")
            stopping.wait(10)

        with serving(connect) as url, total_timeout(60), fails_soon():
            get_through(session, url)

    def test_tls_after_a_slow_connection(
        self, session: requests.Session, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect = socket.socket.connect

        def connect_slowly(*args: Any) -> None:
            clock.now += 59.95
            connect(*args)

        with serving(silent) as url, total_timeout(60), fails_soon():
            monkeypatch.setattr(socket.socket, "connect", connect_slowly)
            get_with_tls(session, url)

    def test_decompression(self, session: requests.Session, clock: FakeClock) -> None:
        """Also if all of the body has arrived. The connection is closed."""
        body = gzip.compress(b" " * 5_000_000)
        whole = raw_response("200 OK", body, "Content-Encoding: gzip")
        with RawServer(whole, then="silence") as server, total_timeout(600):
            response = session.get(server.url, stream=True, timeout=60)
            pieces = response.iter_content(1000)
            next(pieces)
            clock.now += 600
            with pytest.raises(requests.Timeout, match="within the total timeout of 600 s"):
                next(pieces)
            assert server.client_left.wait(5)


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that neither accepts nor refuses a connection."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # nobody accepts these, so there is no room for another one
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Give the host ``several.test`` these addresses. Returns a list of all look-ups to come."""
    looked_up: list[str] = []
    resolve_one = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if not host[0].isdigit():
            looked_up.append(host)
        hosts = addresses if host == "several.test" else [host]
        return [info for each in hosts for info in resolve_one(each, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return looked_up


needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere, 127.0.0.2 is not this machine"
)


class TestAddresses:
    """The addresses of a host are tried in order, until one connects."""

    @needs_linux
    def test_all_together_end_by_the_deadline(
        self, session: requests.Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked_up = resolve(monkeypatch, *["127.0.0.1"] * 20)
        with silent_port() as port, ends_in_time(0.1):
            session.get(f"http://several.test:{port}/", timeout=(0.07, 60))
        assert looked_up == ["several.test"]

    @needs_linux
    def test_the_next_one_is_tried(
        self, session: requests.Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolve(monkeypatch, "127.0.0.2", "127.0.0.1")
        with RawServer(OK) as server, total_timeout(5):
            assert session.get(f"http://several.test:{server.port}/", timeout=5).text == "Hello"

    @needs_linux
    def test_the_certificate_is_checked_for_the_name_of_the_host(
        self, session: requests.Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolve(monkeypatch, "127.0.0.1")
        with serving(silent, tls=True) as url, pytest.raises(requests.exceptions.SSLError):
            session.get(url.replace("127.0.0.1", "several.test"), timeout=5)

    def test_none(self, session: requests.Session, monkeypatch: pytest.MonkeyPatch) -> None:
        """A look-up that fails is not repeated, since it can take long."""
        looked_up = resolve(monkeypatch)
        with pytest.raises(requests.ConnectionError, match=r"resolve 'no-such-host.invalid'"):
            session.get("http://no-such-host.invalid/", timeout=5)
        assert looked_up == ["no-such-host.invalid"]


class TestOtherTimeouts:
    """Those of requests mean what they say: one attempt to connect, and each silence."""

    def test_connect_timeout_limits_connecting_only(self, session: requests.Session) -> None:
        def read_with_a_break(connection: socket.socket, stopping: threading.Event) -> None:
            stopping.wait(0.15)
            left = len(LARGE)
            while left > 0:
                left -= len(connection.recv(1_000_000))
            connection.sendall(OK)

        with serving(read_with_a_break) as url, total_timeout(10):
            assert session.post(url, data=LARGE, timeout=(0.05, 10)).text == "Hello"

    def test_connect_timeout_limits_the_proxys_part(self, session: requests.Session) -> None:
        with serving(silent) as url, fails_soon():
            session.get("https://no.invalid/", proxies={"https": url}, timeout=(0.05, 10))

    def test_every_kind_of_timeout_is_accepted(self, session: requests.Session) -> None:
        kinds: list[Any] = [None, 5, 0.5, (5, 5), (5, None), urllib3.Timeout(5), urllib3.Timeout()]
        with serving(answering(*[OK] * len(kinds))) as url, total_timeout(5):
            assert {session.get(url, timeout=kind).text for kind in kinds} == {"Hello"}

    def test_read_timeout_limits_each_silence(self, session: requests.Session) -> None:
        for body in (b"", LARGE):
            with (
                serving(silent) as url,
                total_timeout(10),
                pytest.raises((requests.Timeout, requests.ConnectionError), match="timed out"),
            ):
                session.post(url, data=body, timeout=(10, 0.05))


class TestBlock:
    def test_the_earlier_deadline_counts(self, clock: FakeClock) -> None:
        with total_timeout(10) as outer:
            with total_timeout(60) as inner:
                assert (inner.remaining(), outer.remaining()) == (10, 10)
            with total_timeout(5) as inner:
                assert (inner.remaining(), outer.remaining()) == (5, 10)
            clock.now += 8
            with total_timeout(5) as inner:
                assert inner.remaining() == 2
                clock.now += 2
                with pytest.raises(TimeoutError, match="the total timeout of 10 s has passed"):
                    inner.check()

    def test_after_a_nested_block_the_outer_one_counts(self, session: requests.Session) -> None:
        with serving(silent) as url, ends_in_time():
            with total_timeout(60):
                pass
            session.get(url, timeout=60)

    def test_it_ends_where_the_block_ends(self, session: requests.Session) -> None:
        with RawServer(OK) as server:
            with contextlib.suppress(KeyError), total_timeout(0.01):
                raise KeyError
            time.sleep(0.02)
            assert session.get(server.url, timeout=5).text == "Hello"

    def test_a_body_that_is_read_after_the_block(
        self, session: requests.Session, clock: FakeClock
    ) -> None:
        with serving(dripping(HEAD + b"\r\n", b"x")) as url:
            with total_timeout(10):
                response = session.get(url, stream=True, timeout=60)
            clock.now += 10
            with pytest.raises(requests.Timeout, match=r"within the total timeout of 10 s"):
                response.content  # noqa: B018

    def test_a_body_that_has_been_read_stays(
        self, session: requests.Session, clock: FakeClock
    ) -> None:
        with RawServer(OK) as server, total_timeout(10):
            response = session.get(server.url, timeout=5)
            clock.now += 20
        assert (response.text, list(response.iter_lines())) == ("Hello", [b"Hello"])

    def test_threads_have_blocks_of_their_own(self, session: requests.Session) -> None:
        seconds = iter([0.03, 60] * 3)

        def answer_after_a_while(connection: socket.socket, stopping: threading.Event) -> None:
            stopping.wait(0.15)
            connection.sendall(OK)

        def call() -> str:
            with total_timeout(next(seconds)):
                try:
                    return session.get(url, timeout=60).text
                except requests.Timeout:
                    return "Timeout"

        with serving(answer_after_a_while) as url:
            assert sorted(run_in_threads(6, call)) == ["Hello"] * 3 + ["Timeout"] * 3

    def test_a_block_of_a_task_counts_in_its_threads(self, session: requests.Session) -> None:
        async def call() -> None:
            with total_timeout(0.03):
                await asyncio.to_thread(session.get, url, timeout=60)

        with serving(silent) as url, pytest.raises(requests.Timeout, match="total timeout"):
            asyncio.run(call())

    def test_it_can_be_shortened_but_not_extended(self, clock: FakeClock) -> None:
        with total_timeout(10) as deadline:
            for seconds, left in ((60, 10), (2, 2), (5, 2)):
                deadline.shorten(seconds)
                assert deadline.remaining() == left

    def test_seconds(self) -> None:
        for seconds in (0, -1, float("nan"), "5", None):
            with pytest.raises(ValueError, match=r"^seconds must be a number > 0, got "):
                total_timeout(seconds)  # type: ignore[arg-type]


class TestWhereverItStrikes:
    @pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
    def test_nothing_is_left_open(
        self, session: requests.Session, monkeypatch: pytest.MonkeyPatch, tls: bool
    ) -> None:
        """A socket that is never closed is a ResourceWarning."""
        ends = []
        with serving(answering(OK), tls=tls) as url:
            for seconds in range(1, 20):
                monkeypatch.setattr(time, "monotonic", itertools.count().__next__)
                try:
                    with total_timeout(seconds):
                        ends.append(
                            session.get(url, timeout=5, headers={"Connection": "close"}).text
                        )
                except requests.RequestException:  # the server may reset a late connection
                    ends.append("an error")
        gc.collect()
        assert set(ends) == {"an error", "Hello"}


class TestExpire:
    """A deadline can be made to pass, from any thread. What waits for the server ends."""

    @pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
    @pytest.mark.parametrize(
        ("handle", "body"), [(silent, b""), (silent, LARGE), (dripping(HEAD + b"\r\n", b""), b"")],
        ids=["headers", "sending", "body"],
    )  # fmt: skip
    def test_a_thread_that_waits_is_woken(
        self, session: requests.Session, handle: Handler, body: bytes, tls: bool
    ) -> None:
        with serving(handle, tls=tls) as url, total_timeout(60) as deadline:
            ending = threading.Timer(0.03, deadline.expire)
            ending.start()
            with fails_soon(requests.Timeout):
                session.post(url, data=body, timeout=60)
            ending.join()

    def test_after_the_call_it_harms_no_other(self, session: requests.Session) -> None:
        """The connection may serve another call by then."""
        go_on = threading.Event()

        def serve_two(connection: socket.socket, stopping: threading.Event) -> None:
            answering(OK, HEAD + b"Content-Length: 6\r\n\r\nHel")(connection, go_on)
            go_on.wait(10)
            connection.sendall(b"lo!")

        with serving(serve_two) as url:
            with total_timeout(60) as deadline:
                session.get(url, timeout=5)
            with session.get(url, timeout=5, stream=True) as response:
                deadline.expire()
                go_on.set()
                assert response.text == "Hello!"

    def test_before_the_call(self, session: requests.Session) -> None:
        with RawServer(OK) as server, total_timeout(60) as deadline:
            deadline.expire()
            with pytest.raises(requests.Timeout):
                session.get(server.url, timeout=5)
        assert server.connections == 0


class TestInterimResponse:
    """A 1xx status is not the response yet. The next caller must not get this one's."""

    @pytest.mark.parametrize("status", [100, 102, 103, 199])
    def test_it_is_skipped(self, session: requests.Session, status: int) -> None:
        interim = b"HTTP/1.1 %d Wait\r\nLink: x\r\n\r\n" % status
        with serving(answering(interim * 3 + OK, OK.replace(b"Hello", b"World"))) as url:
            first, second = session.get(url, timeout=5), session.get(url, timeout=5)
        assert (first.status_code, first.text, second.text) == (200, "Hello", "World")
        assert "Link" not in first.headers
