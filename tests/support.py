"""What the tests share: child processes, threads, the API's responses, a raw server."""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import os
import pickle
import random
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeVar, cast

import pytest

T = TypeVar("T")
Method = Callable[..., Any]  # of a limiter; see the fixtures ``acquire`` and ``reserve``
_sleep = time.sleep  # the real one: a test may replace it
_environment = dict(os.environ)  # before any test changes it

ROOT = Path(__file__).resolve().parents[1]
LIB = str(ROOT / "lib")
EXPECTED = ROOT / "tests" / "expected"
SCRIPTS = sorted((ROOT / "examples").glob("0*.py"))
CHAT_URL = "https://api.mistral.ai/v1/chat/completions"
MODELS_URL = "https://api.mistral.ai/v1/models"
SETTINGS = ("MISTRAL_API_KEY", "MISTRAL_BASE_URL", "MISTRAL_TIMEOUT", "MISTRAL_LOG_FILE")


def transcript(name: str) -> str:
    """Return what a script must print; the time in lesson 3's stats is left open."""
    return (EXPECTED / f"{name}.txt").read_text("utf-8")


def without_time(output: str) -> str:
    """Replace the time in lesson 3's stats by what its transcript shows."""
    return re.sub(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}", "<YYYY-MM-DD HH:MM:SS>", output)


def completion(text: str, model: str = "mistral-small-latest") -> dict[str, Any]:
    """Return a chat completion in the real API's shape."""
    return {
        "id": "0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1782199134,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text, "tool_calls": None},
            }
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 36, "total_tokens": 40},
    }


def error_body(message: str, code: str | None = None) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": "x", "param": None, "code": code}


class Outcome(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def start(*arguments: str, cwd: Path = ROOT, **environment: str | None) -> subprocess.Popen[str]:
    """Start this Python with the arguments; stdout and stderr are pipes of UTF-8 text.

    It gets no settings, and a stdout that is buffered; None unsets a variable. It writes
    compiled files, which halve the time that the next child needs to start.
    """
    plain = dict.fromkeys(["PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", *SETTINGS], "")
    plain["PYTHONIOENCODING"] = "utf-8"
    merged = {**_environment, **plain, **environment}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={name: value for name, value in merged.items() if value is not None},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finish(child: subprocess.Popen[str], timeout: float | None = 60) -> Outcome:
    """Wait until a child has ended and its pipes are closed, or kill it after the timeout."""
    try:
        out, err = child.communicate(timeout=timeout)
    except BaseException:
        child.kill()
        raise
    return Outcome(child.returncode, out, err)


def run(
    *arguments: str, cwd: Path = ROOT, timeout: float | None = 60, **environment: str | None
) -> Outcome:
    """Run this Python with the arguments and wait for its end."""
    with start(*arguments, cwd=cwd, **environment) as child:
        return finish(child, timeout)


def script(name: str, *arguments: str) -> list[str]:
    """Return the arguments for ``run`` that stand for ``python examples/NAME.py ARGUMENTS``."""
    # Under -P, from a foreign folder, only the script's own line can find lib.
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    return [*safe_path, str(ROOT / "examples" / f"{name}.py"), *arguments]


@contextlib.contextmanager
def refusing_url() -> Iterator[str]:
    """Give a base URL that refuses every connection: its port is bound, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def run_in_threads(count: int, work: Callable[[], T], *, interleaved: bool = False) -> list[T]:
    """Call ``work`` in ``count`` threads that start at the same moment; return their results.

    ``interleaved`` often switches to another thread between two steps of lib's code. By
    chance that happens once in many thousand steps; this way a missing lock shows.
    """
    ready = threading.Barrier(count)

    def run() -> T:
        ready.wait(timeout=30)
        sys.settrace(_let_others_in if interleaved else None)
        try:
            return work()
        finally:
            sys.settrace(None)

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(run) for _ in range(count)]]


def _let_others_in(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
    """Trace lib's code: before a fifth of the interpreter's steps, switch to another thread."""
    if not frame.f_code.co_filename.startswith(LIB):
        return None
    frame.f_trace_opcodes = True
    if random.random() < 0.2:
        _sleep(0)
    return _let_others_in


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def interrupt_everywhere(
    call: Callable[[], object], handler: Callable[[], object] = press_ctrl_c
) -> Iterator[int]:
    """Run ``call`` again and again, each time with a signal at the next point of lib's code.

    The points are those at which CPython looks for signals: at a function's start, after a
    call, and at a jump back. It yields after each run, so that the test can check the state.
    """
    # CPython 3.13.0 no longer traces the steps of code that another thread has run untraced.
    threading.settrace(_trace_steps)
    try:
        for point in itertools.count(1):
            interruption = _Interruption(point, handler)
            sys.settrace(interruption.trace)
            try:
                call()
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            if not interruption.happened:
                assert point > 1, "the call runs none of lib's code"
                return
            yield point
    finally:
        threading.settrace(None)


def _trace_steps(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
    frame.f_trace_opcodes = True
    return _trace_steps


class _Interruption:
    """A trace function that calls the handler of the signal at the n-th point."""

    def __init__(self, point: int, handler: Callable[[], object]) -> None:
        self.happened = False
        self._handler = handler
        self._points_left = point

    def trace(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(LIB):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event == "call" or (event == "opcode" and frame.f_lasti in _points(frame.f_code)):
            self._points_left -= 1
            if self._points_left == 0:
                self.happened = True
                self._handler()
        return self.trace


@functools.cache
def _points(code: CodeType) -> frozenset[int]:
    """Return the offsets of the instructions after a call, and of those that are jumped back to."""
    steps = list(dis.get_instructions(code))
    after_calls = {
        after.offset
        for step, after in itertools.pairwise(steps)
        if step.opname.startswith("CALL") and "INTRINSIC" not in step.opname
    }
    loops = {step.argval for step in steps if "JUMP" in step.opname and step.argval < step.offset}
    return frozenset(after_calls | loops)


def returns_when_interrupted(call: Callable[[], object], handler: Callable[[], object]) -> bool:
    """Run ``call`` and, before each step of lib's code in it, ``handler``, as a signal would.

    Return whether it ends: if the handler needs a lock that ``call`` holds, it never does.
    """

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(LIB):
            return None
        frame.f_trace_opcodes = True
        handler()  # not traced itself: Python switches tracing off meanwhile
        return trace

    def work() -> None:
        sys.settrace(trace)
        call()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=10)
    return not thread.is_alive()


@contextlib.contextmanager
def thread_paused_at_the_clock(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]
) -> Iterator[None]:
    """Do the work in another thread, which pauses where it first reads the clock.

    The helpers read it while they hold their lock.
    """
    paused, going_on, real = threading.Event(), threading.Event(), time.monotonic

    def monotonic() -> float:
        if threading.current_thread() is thread:
            paused.set()
            going_on.wait(timeout=30)
        return real()

    monkeypatch.setattr(time, "monotonic", monotonic)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert paused.wait(timeout=30)
        yield
    finally:
        going_on.set()
        thread.join()


def in_forked_child(job: Callable[[], T], timeout: float = 10) -> T:
    """Fork, run the job in the child and return its result. Raises TimeoutError if it hangs."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, pickle.dumps(job()))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as result:
        ended = select.select([result], [], [], timeout)[0]
        if not ended:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if not ended:
            raise TimeoutError("the forked child hangs")
        return cast("T", pickle.load(result))


def join_line(pool: ThreadPoolExecutor, limiter: Any, tokens: int) -> Future[Any]:
    """Let a thread call ``reserve``, and return when it is in line."""
    before = repr(limiter)
    future = pool.submit(limiter.reserve, tokens)
    while repr(limiter) == before and not future.done():
        _sleep(0.001)
    return future


def rejects(limiter: Any, tokens: int) -> bool:
    """Return True if there is no room for the tokens now; else they are booked."""
    try:
        limiter.reserve(tokens, timeout=0)
    except TimeoutError:
        return True
    return False


class StartTimes:
    """When requests may start as the limiter saw it: a thread may wake up later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._last = threading.local()
        self._monotonic = time.monotonic
        monkeypatch.setattr(time, "monotonic", self._noted)

    def _noted(self) -> float:
        self._last.now = self._monotonic()
        return float(self._last.now)

    def of(self, acquire: Callable[[], object]) -> float:
        """Return the last time that ``acquire`` read: the one that let it through."""
        acquire()
        return float(self._last.now)


def most_in_any_window(starts: Iterable[float], seconds: float) -> int:
    """Return the largest number of starts in any window of that many seconds."""
    most, window = 0, deque[float]()
    for start in sorted(starts):
        window.append(start)
        while start - window[0] >= seconds - 1e-6:  # what rounding makes of whole seconds
            window.popleft()
        most = max(most, len(window))
    return most


def raw_response(status: str, body: bytes = b"", *headers: str) -> bytes:
    """Return the bytes of a response: ``raw_response("200 OK", b"{}", "Retry-After: 2")``."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


class RawServer:
    """Sends every client the same bytes: for responses that the mock server never sends.

    It serves one client at a time, and hangs up after the response. With ``then="silence"``
    it waits until the client leaves, with ``then="next"`` it serves further requests.
    """

    def __init__(self, *response: bytes, repeat: int = 1, then: str = "hang up") -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.responses_sent = 0  # in full: a client that leaves early doesn't read all of one
        self.received_request = threading.Event()
        self.client_left = threading.Event()
        self._pieces = response
        self._repeat = repeat  # of the last piece
        self._then = then
        self._stopping = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> RawServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping = True
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes accept()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                if self._stopping:
                    return
                self.connections += 1
                connection.settimeout(10)
                while self._respond(connection) and self._then == "next":
                    pass
                if self._then == "silence":
                    connection.recv(1)
            self.client_left.set()

    def _respond(self, connection: socket.socket) -> bool:
        request = read_request(connection)
        if not request:
            return False
        self.requests.append(request)
        self.received_request.set()
        for piece in (*self._pieces[:-1], *self._pieces[-1:] * self._repeat):
            connection.sendall(piece)
        self.responses_sent += 1
        return True


def read_request(connection: socket.socket) -> bytes:
    """Return the head and body of one request, or nothing if the client leaves before its end."""
    data, length = b"", 0
    while b"\r\n\r\n" not in data or len(data) < data.index(b"\r\n\r\n") + 4 + length:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
        if found := re.search(rb"(?i)\r\ncontent-length: *([0-9]+)\r\n", data):
            length = int(found[1])
    return data


CERTIFICATE = str(ROOT / "tests" / "localhost.pem")  # with its key: for tests only

Handler = Callable[[socket.socket, threading.Event], object]


@contextlib.contextmanager
def serving(handle: Handler, *, tls: bool = False) -> Iterator[str]:
    """Let ``handle(connection, stopping)`` serve each connection in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    threads: list[threading.Thread] = []
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if tls:
                connection = stack.enter_context(context.wrap_socket(connection, server_side=True))
            handle(connection, stopping)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            if stopping.is_set():
                return connection.close()
            connections.append(connection)
            threads.append(threading.Thread(target=serve, args=[connection]))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        stopping.set()
        socket.create_connection(listener.getsockname()).close()  # wakes accept()
        for connection in connections:
            with contextlib.suppress(OSError):  # wakes recv()
                connection.shutdown(socket.SHUT_RDWR)
        for thread in (accepting, *threads):
            thread.join()
        listener.close()
