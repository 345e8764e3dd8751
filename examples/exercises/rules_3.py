"""The rules of exercise 3. To do the exercise you need not read them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from examples.exercises.rules import move_clock, rule, run_in_lockstep
from lib.client import ChatCompletion, MistralClient
from lib.errors import PaymentRequiredError
from lib.mock_server import MockServer

KEYS = ("api_status", "response_time", "error_rate")
HELLO = [{"role": "user", "content": "Hello!"}]


class Client(MistralClient):
    """Notes how many tokens each chat asked for."""

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__("no-key", base_url=url, timeout=timeout)
        self.max_tokens: list[int | None] = []

    def chat(self, *args: Any, **kwargs: Any) -> ChatCompletion:
        """The same chat."""
        self.max_tokens.append(kwargs.get("max_tokens"))
        return super().chat(*args, **kwargs)


@contextlib.contextmanager
def server_under(faults: str, timeout: float = 4.0) -> Iterator[tuple[MockServer, Client]]:
    client: Client
    with MockServer(faults) as server, contextlib.closing(Client(server.url, timeout)) as client:
        yield server, client


def requests_seen(server: MockServer) -> str:
    return ", ".join(f"{request.method} {request.path}" for request in server.log) or "none"


@rule(
    "while the models come, the API is up, and the time they took is told in seconds",
    called="the API answers after 0.1 s; check_health()",
    expected='{"api_status": "up", "response_time": 0.1 or a little more, "error_rate": None}',
)
def up_in_so_many_seconds(their: Any) -> str | None:
    with server_under("slow:0.1") as (server, client):
        health = their.HealthMonitor(client).check_health()
        if requests_seen(server) != "GET /v1/models":
            return f"the server saw: {requests_seen(server)}"
    if not (isinstance(health, dict) and set(health) == set(KEYS)):
        return f"{health!r}, not a dictionary of {', '.join(KEYS)}"
    # No upper bound but this one: a busy machine may take its time.
    if health["api_status"] == "up" and 0.1 <= (health["response_time"] or 0) < 10:
        return None
    return str(health)


@rule(
    "when they don't come, for whatever reason, the API is down, and no error is raised",
    called="the API answers 503, hangs up, sends half an answer, doesn't answer; each time "
    "check_health()",
    expected='"api_status": "down", "response_time": None',
)
def down_without_an_error(their: Any) -> str | None:
    for fault in ("503", "drop", "badjson", "timeout"):
        with server_under(fault, timeout=0.2 if fault == "timeout" else 4.0) as (_, client):
            health = their.HealthMonitor(client).check_health()
        if (health["api_status"], health["response_time"]) != ("down", None):
            return f"{health}, under the fault {fault}"
    return None


@rule(
    "the error rate is failed calls / all calls",
    called="record(True), record(False), record(True), record(True); check_health()",
    expected='"error_rate": 0.25',
)
def rate_of_failures(their: Any) -> str | None:
    with server_under("") as (_, client):
        monitor = their.HealthMonitor(client)
        for success in (True, False, True, True):
            monitor.record(success)
        rate = monitor.check_health()["error_rate"]
    return None if rate == 0.25 else f'"error_rate": {rate!r}'


@rule(
    "where nothing was recorded, the error rate is None",
    called="check_health() of a new monitor",
    expected='"error_rate": None',
)
def nothing_known(their: Any) -> str | None:
    with server_under("") as (_, client):
        rate = their.HealthMonitor(client).check_health()["error_rate"]
    return None if rate is None else f'"error_rate": {rate!r}'


@rule(
    "what is older than the window doesn't count any more, and only that",
    called="window_seconds=60; record(False), 40 s later record(True), 40 s later check_health(), "
    "40 s later check_health() (the check moves time.monotonic() on)",
    expected='"error_rate": 0.0, then None',
)
def old_calls_drop_out(their: Any) -> str | None:
    with server_under("") as (_, client):
        monitor = their.HealthMonitor(client, window_seconds=60.0)
        monitor.record(False)
        move_clock(their, 40)
        monitor.record(True)
        move_clock(their, 40)
        rates = [monitor.check_health()["error_rate"]]
        move_clock(their, 40)
        rates.append(monitor.check_health()["error_rate"])
    return None if rates == [0.0, None] else f'"error_rate": {rates[0]!r}, then {rates[1]!r}'


@rule(
    "a check is no call of the program: it isn't recorded",
    called="record(True); the API answers 503; check_health() and check_chat(), then "
    "check_health()",
    expected='"error_rate": 0.0',
)
def checks_are_not_recorded(their: Any) -> str | None:
    with server_under("503*") as (_, client):
        monitor = their.HealthMonitor(client)
        monitor.record(True)
        monitor.check_health()
        monitor.check_chat()
        rate = monitor.check_health()["error_rate"]
    return None if rate == 0.0 else f'"error_rate": {rate!r}'


@rule(
    "many threads may record at the same time, and nothing is lost",
    called="record(True) in 3 threads and record(False) in 5, all at once; then check_health()",
    expected='"error_rate": 0.625 (5 of 8)',
)
def threads_lose_nothing(their: Any) -> str | None:
    with server_under("") as (_, client):
        monitor = their.HealthMonitor(client)
        good, bad = partial(monitor.record, True), partial(monitor.record, False)
        run_in_lockstep(their, *[good] * 3, *[bad] * 5)
        rate = monitor.check_health()["error_rate"]
    return None if rate == 5 / 8 else f'"error_rate": {rate!r}'


@rule(
    "a chat that works is up, and costs one token",
    called="check_chat() without faults",
    expected='"api_status": "up", a response_time; the server sees GET /v1/models, then '
    "POST /v1/chat/completions with max_tokens=1",
)
def one_token_of_chat(their: Any) -> str | None:
    with server_under("") as (server, client):
        health = their.HealthMonitor(client).check_chat()
        seen = requests_seen(server)
    if health["api_status"] != "up" or not isinstance(health["response_time"], float):
        return str(health)
    if seen != "GET /v1/models, POST /v1/chat/completions":
        return f"the server saw: {seen}"
    return None if client.max_tokens == [1] else f"a chat with max_tokens={client.max_tokens[0]}"


@rule(
    "a green list of models is no proof that a chat works",
    called="the faults ok,402,ok,402, as of an account whose budget is used up: check_health(), "
    "then a chat of the program's own; then check_chat()",
    expected='"up", though the chat is refused (402); then "degraded", with "response_time": None',
)
def degraded_behind_a_green_light(their: Any) -> str | None:
    with server_under("ok,402,ok,402") as (_, client):
        monitor = their.HealthMonitor(client)
        green = monitor.check_health()
        with contextlib.suppress(PaymentRequiredError):
            client.chat(HELLO)
        truth = monitor.check_chat()
    if green["api_status"] != "up":
        return f"check_health() said {green}"
    if (truth["api_status"], truth["response_time"]) != ("degraded", None):
        return f"check_chat() said {truth}"
    return None


@rule(
    "no chat is paid for while the API is down",
    called="the API answers 503 to everything; check_chat()",
    expected='"api_status": "down"; the server sees GET /v1/models and nothing else',
)
def no_chat_while_down(their: Any) -> str | None:
    with server_under("503*") as (server, client):
        health = their.HealthMonitor(client).check_chat()
        seen = requests_seen(server)
    if health["api_status"] != "down":
        return str(health)
    return None if seen == "GET /v1/models" else f"the server saw: {seen}"
