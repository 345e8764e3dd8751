"""The rules of exercise 3. You need not read them to do the exercise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from examples.exercises.checker.explore import RunThreads
from examples.exercises.checker.rules import (
    advance_clock,
    explore,
    missing,
    rule,
    run_in_threads,
    set_wall_clock_back,
    stretch,
)
from lib.client import ChatCompletion, MistralClient
from lib.errors import MistralError, PaymentRequiredError
from lib.mock_server import MockServer

KEYS = ("api_status", "response_time", "error_rate")
HELLO = [{"role": "user", "content": "Hello!"}]
RESPONSE_TIME = 0.25  # virtual seconds


class Client(MistralClient):
    """Sends real requests that take a fixed virtual time; records each chat's max_tokens."""

    def __init__(self, solution: Any, url: str, timeout: float) -> None:
        super().__init__("no-key", base_url=url, timeout=timeout)
        self.max_tokens: list[int | None] = []
        self._solution = solution

    def models(self) -> list[str]:
        """Return the models."""
        advance_clock(self._solution, RESPONSE_TIME)
        return super().models()

    def chat(self, *args: Any, **kwargs: Any) -> ChatCompletion:
        """Return the completion."""
        self.max_tokens.append(kwargs.get("max_tokens"))
        advance_clock(self._solution, RESPONSE_TIME)
        return super().chat(*args, **kwargs)


@contextlib.contextmanager
def client_under(
    solution: Any, faults: str, timeout: float = 4.0
) -> Iterator[tuple[MockServer, Client]]:
    with (
        MockServer(faults) as server,
        contextlib.closing(Client(solution, server.url, timeout)) as client,
    ):
        yield server, client


class StubClient:
    """A client that gets every response at once, unless a rule says otherwise."""

    def __init__(
        self,
        models: Callable[[], object] = lambda: None,
        chat: Callable[[], object] = lambda: None,
    ) -> None:
        self._models = models
        self._chat = chat

    def models(self) -> list[str]:
        """Return the models."""
        self._models()
        return ["mistral-small-latest"]

    def chat(self, *args: Any, **kwargs: Any) -> None:
        """Return nothing: the monitor needs no completion."""
        self._chat()


def requests_seen(server: MockServer) -> str:
    return ", ".join(f"{request.method} {request.path}" for request in server.log) or "none"


@rule(
    "if the models come, the API is up; the response time is in seconds",
    called="check_health(); the API responds after 0.25 s (the check moves time.monotonic() on)",
    expected='{"api_status": "up", "response_time": 0.25, "error_rate": None}',
)
def up_with_response_time(solution: Any) -> str | None:
    with client_under(solution, "") as (server, client):
        health = solution.HealthMonitor(client).check_health()
        seen = requests_seen(server)
    if seen != "GET /v1/models":
        return f"the server saw: {seen}"
    if not (isinstance(health, dict) and set(health) == set(KEYS)):
        return f"{health!r}, not a dictionary of {', '.join(KEYS)}"
    is_up = health["api_status"] == "up" and health["error_rate"] is None
    return None if is_up and is_response_time(health["response_time"]) else str(health)


def is_response_time(value: object) -> bool:
    return isinstance(value, float) and abs(value - RESPONSE_TIME) < 0.01


@rule(
    "if the models don't come, the API is down, and no error is raised",
    called="check_health(), six times; the API responds with 401, 429, 503, drops the connection, "
    "sends a truncated response, does not respond",
    expected='"api_status": "down", "response_time": None',
    needs=(up_with_response_time,),
)
def down_without_an_error(solution: Any) -> str | None:
    for fault in ("401", "429", "503", "drop", "badjson", "timeout"):
        timeout = 0.1 if fault == "timeout" else 4.0
        with client_under(solution, fault, timeout) as (_, client):
            health = solution.HealthMonitor(client).check_health()
        if (health["api_status"], health["response_time"]) != ("down", None):
            return f"{health}, under the fault {fault}"
    return None


@rule(
    "the error rate is failed calls / all calls",
    called="record(True), record(False), record(True), record(True); check_health()",
    expected='"error_rate": 0.25',
    needs=(up_with_response_time,),
)
def rate_of_failures(solution: Any) -> str | None:
    monitor = solution.HealthMonitor(StubClient())
    for success in (True, False, True, True):
        monitor.record(success)
    rate = monitor.check_health()["error_rate"]
    return None if rate == 0.25 else f'"error_rate": {rate!r}'


@rule(
    "calls older than the window don't count; newer ones do",
    called="window_seconds=60; record(False), 40 s later record(True), 40 s later check_health(), "
    "40 s later check_health() (the check moves time.monotonic() on)",
    expected='"error_rate": 0.0, then None',
    needs=(rate_of_failures,),
)
def old_calls_do_not_count(solution: Any) -> str | None:
    monitor = solution.HealthMonitor(StubClient(), window_seconds=60.0)
    monitor.record(False)
    advance_clock(solution, 40)
    monitor.record(True)
    advance_clock(solution, 40)
    rates = [monitor.check_health()["error_rate"]]
    advance_clock(solution, 40)
    rates.append(monitor.check_health()["error_rate"])
    return None if rates == [0.0, None] else f'"error_rate": {rates[0]!r}, then {rates[1]!r}'


@rule(
    "a health check is not recorded as a call",
    called="record(True); the API responds with 503; check_health() and check_chat(), then "
    "check_health()",
    expected='"error_rate": 0.0',
    needs=(down_without_an_error, rate_of_failures),
)
def checks_are_not_recorded(solution: Any) -> str | None:
    with client_under(solution, "503*") as (_, client):
        monitor = solution.HealthMonitor(client)
        monitor.record(True)
        monitor.check_health()
        monitor.check_chat()
        rate = monitor.check_health()["error_rate"]
    return None if rate == 0.0 else f'"error_rate": {rate!r}'


@rule(
    "if a chat works, the API is up; the check costs one token",
    called="check_chat(); each request takes 0.25 s",
    expected='"api_status": "up", "response_time": 0.25; the server sees GET /v1/models, then '
    "POST /v1/chat/completions with max_tokens=1",
    needs=(up_with_response_time,),
)
def one_token_of_chat(solution: Any) -> str | None:
    with client_under(solution, "") as (server, client):
        health = solution.HealthMonitor(client).check_chat()
        seen = requests_seen(server)
    if health["api_status"] != "up" or not is_response_time(health["response_time"]):
        return str(health)
    if seen != "GET /v1/models, POST /v1/chat/completions":
        return f"the server saw: {seen}"
    return None if client.max_tokens == [1] else f"a chat with max_tokens={client.max_tokens[0]}"


@rule(
    "if the models come but a chat fails, the API is degraded",
    called="the faults ok,402,ok,402, as for an account whose budget is used up: check_health(), "
    "then a chat of your program; then check_chat()",
    expected='"up", although the chat fails (402); then "degraded", with "response_time": None',
    needs=(
        one_token_of_chat,
        down_without_an_error,
    ),
)
def degraded_if_chat_fails(solution: Any) -> str | None:
    with client_under(solution, "ok,402,ok,402") as (_, client):
        monitor = solution.HealthMonitor(client)
        models_only = monitor.check_health()
        with contextlib.suppress(PaymentRequiredError):
            client.chat(HELLO)
        with_chat = monitor.check_chat()
    if models_only["api_status"] != "up":
        return f"check_health() returned {models_only}"
    if (with_chat["api_status"], with_chat["response_time"]) != ("degraded", None):
        return f"check_chat() returned {with_chat}"
    return None


@rule(
    "no chat is sent, and paid for, while the API is down",
    called="the API responds with 503 to everything; check_chat()",
    expected='"api_status": "down"; the server sees GET /v1/models and nothing else',
    needs=(one_token_of_chat, down_without_an_error),
)
def no_chat_while_down(solution: Any) -> str | None:
    with client_under(solution, "503*") as (server, client):
        health = solution.HealthMonitor(client).check_chat()
        seen = requests_seen(server)
    if health["api_status"] != "down":
        return str(health)
    return None if seen == "GET /v1/models" else f"the server saw: {seen}"


@rule(
    "a slow check does not hold up record: no lock is held while it calls the API",
    called="thread 1 calls check_chat(), and the API takes 1 s for each of the 2 requests; "
    "meanwhile, thread 2 calls record(True) twice",
    expected="record(True) returns at once",
    needs=(rate_of_failures,),
)
def no_lock_during_a_check(solution: Any) -> str | None:
    time = solution.__modules__["time"]
    monitor = solution.HealthMonitor(StubClient(lambda: time.sleep(1), lambda: time.sleep(1)))
    seconds: dict[str, float] = {}

    def record() -> None:
        for meanwhile in ("models()", "chat()"):
            time.sleep(0.5 if not seconds else 1)
            start = time.monotonic()
            monitor.record(True)
            seconds[meanwhile] = time.monotonic() - start

    run_in_threads(solution, monitor.check_chat, record)
    for meanwhile, duration in seconds.items():
        if duration > 0.1:
            return f"record(True) returned after {duration:.1f} s, during {meanwhile}"
    return None


@stretch(
    "two monitors share nothing",
    called="record(False) of the first one; check_health() of both",
    expected='"error_rate": 1.0 for the first one, None for the second one',
    needs=(rate_of_failures,),
)
def monitors_share_nothing(solution: Any) -> str | None:
    one, other = (solution.HealthMonitor(StubClient()) for _ in range(2))
    one.record(False)
    rates = [monitor.check_health()["error_rate"] for monitor in (one, other)]
    return None if rates == [1.0, None] else f'"error_rate": {rates[0]!r} and {rates[1]!r}'


@stretch(
    "threads may record and check at the same moment",
    called="the window holds one successful call, and a failed one is older; threads 1 and 2 call "
    "record(False), thread 3 check_health(); then check_health()",
    expected='"error_rate": 2/3 at the end',
    needs=(old_calls_do_not_count,),
)
def threads_lose_nothing(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        monitor = solution.HealthMonitor(StubClient())
        monitor.record(False)
        advance_clock(solution, 50)
        monitor.record(True)
        advance_clock(solution, 30)
        failure = partial(monitor.record, False)
        _, _, meanwhile = run(failure, failure, monitor.check_health)
        if meanwhile["error_rate"] not in (0.0, 1 / 2, 2 / 3):
            return f'"error_rate": {meanwhile["error_rate"]!r} in thread 3'
        rate = monitor.check_health()["error_rate"]
        return None if rate == 2 / 3 else f'"error_rate": {rate!r} at the end'

    return explore(solution, scenario)


@stretch(
    "the window is as long as the monitor is told",
    called="window_seconds=10 and window_seconds=3600; record(False), 100 s later check_health()",
    expected='"error_rate": None for 10 s, 1.0 for 3600 s',
    needs=(old_calls_do_not_count,),
)
def any_window(solution: Any) -> str | None:
    for window, expected in [(10.0, None), (3600.0, 1.0)]:
        monitor = solution.HealthMonitor(StubClient(), window_seconds=window)
        monitor.record(False)
        advance_clock(solution, 100)
        rate = monitor.check_health()["error_rate"]
        if rate != expected:
            return f'"error_rate": {rate!r}, with window_seconds={window:g}'
    return None


@stretch(
    "every call in the window counts, however many there are",
    called="record(False) 1250 times, record(True) 1250 times; check_health()",
    expected='"error_rate": 0.5',
    needs=(rate_of_failures,),
)
def many_calls(solution: Any) -> str | None:
    monitor = solution.HealthMonitor(StubClient())
    for success in (False, True):
        for _ in range(1250):
            monitor.record(success)
    rate = monitor.check_health()["error_rate"]
    return None if rate == 0.5 else f'"error_rate": {rate!r}'


@stretch(
    "a change of the clock's time changes nothing: time.time() may be set back",
    called="record(False); 70 s later check_health(); the response takes 0.25 s; before and during "
    "the request, time.time() is set back by an hour",
    expected='"response_time": 0.25, "error_rate": None',
    needs=(old_calls_do_not_count,),
)
def no_wall_clock(solution: Any) -> str | None:
    def respond() -> None:
        advance_clock(solution, RESPONSE_TIME)
        set_wall_clock_back(solution, 3600)

    monitor = solution.HealthMonitor(StubClient(respond))
    monitor.record(False)
    set_wall_clock_back(solution, 3600)
    advance_clock(solution, 70)
    health = monitor.check_health()
    is_right = is_response_time(health["response_time"]) and health["error_rate"] is None
    return None if is_right else str(health)


@stretch(
    "any failure of the chat means degraded",
    called="check_chat(); the models come; the chat gets 401, 429, 500, a dropped connection, a "
    "truncated response, no response",
    expected='"api_status": "degraded", "response_time": None',
    needs=(degraded_if_chat_fails,),
)
def any_failure_degrades(solution: Any) -> str | None:
    for fault in ("401", "429", "500", "drop", "badjson", "timeout"):
        timeout = 0.1 if fault == "timeout" else 4.0
        with client_under(solution, f"ok,{fault}", timeout) as (_, client):
            health = solution.HealthMonitor(client).check_chat()
        if (health["api_status"], health["response_time"]) != ("degraded", None):
            return f"{health}, under the fault {fault}"
    return None


@stretch(
    "check_chat() reports the error rate, whatever its status",
    called="record(True), record(False); check_chat() of an API that is up, degraded and down",
    expected='"error_rate": 0.5 each time',
    needs=(
        any_failure_degrades,
        no_chat_while_down,
        checks_are_not_recorded,
    ),
)
def chat_reports_the_rate(solution: Any) -> str | None:
    for status, client in [
        ("up", StubClient()),
        ("degraded", StubClient(chat=fail_with(MistralError("no response")))),
        ("down", StubClient(models=fail_with(MistralError("no response")))),
    ]:
        monitor = solution.HealthMonitor(client)
        monitor.record(True)
        monitor.record(False)
        health = monitor.check_chat()
        if (health["api_status"], health["error_rate"]) != (status, 0.5):
            return f"{health}, while it is {status}"
    return None


def fail_with(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@stretch(
    "an error that is not the API's reaches the caller",
    called="check_health() and check_chat(); the client raises KeyboardInterrupt, then TypeError, "
    "for the models and for the chat",
    expected="the same error each time",
    needs=(one_token_of_chat,),
)
def other_errors_are_raised(solution: Any) -> str | None:
    for error in (KeyboardInterrupt(), TypeError("a mistake in the program")):
        monitor = solution.HealthMonitor(StubClient(models=fail_with(error)))
        of_chat = solution.HealthMonitor(StubClient(chat=fail_with(error)))
        for check in (monitor.check_health, monitor.check_chat, of_chat.check_chat):
            if problem := missing(type(error), check):
                return problem
    return None
