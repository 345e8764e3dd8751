"""Check a small client that keeps every rule of the resilience check, its mutants, and ours.

``python -m check_clients`` checks them all at the same time, since nearly all of it is waiting,
and prints the verdicts: {client: {rule: [verdict, what happened]}}. With SOAK_CALLS, it checks
each client by every rule; else, each mutant only by the rule that it breaks.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import requests

from lib.answer_check import check_answer
from lib.circuit_breaker import CircuitBreaker
from lib.client import MistralClient
from lib.error_logger import ErrorLogger
from lib.resilience_check import RULES, check
from lib.resilience_check.rules import Rule
from lib.resilient_client import ResilientMistralClient
from lib.retry import Retrier
from lib.total_timeout import TotalTimeoutAdapter, total_timeout

SOAK = bool(os.environ.get("SOAK_CALLS"))
Ask = Callable[[str, str], str]
released = threading.Event()  # a mutant that would wait for ever waits for this


class CallError(Exception):
    """An attempt failed; ``status`` is 0 if there was no response."""

    def __init__(
        self, text: str, status: int = 0, retry_after: float = 0.0, *, retryable: bool = False
    ) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after
        self.retryable = retryable


class RightClient:
    """Ask once more after a transient failure, wait as long as asked, and believe nothing."""

    attempts = 3
    base_delay = 0.3
    max_retry_after = 60.0
    retryable = frozenset({429, 500, 502, 503, 504})
    read_timeout = 1.0
    total = 1.5  # seconds of one attempt

    def __init__(self, *, stream: bool = False) -> None:
        self.stream = stream

    def __call__(self, base_url: str, key: str) -> str:
        attempt = 1
        while True:
            try:
                with requests.Session() as session:
                    session.mount("http://", TotalTimeoutAdapter())
                    return self.ask(session, base_url, key)
            except CallError as failure:
                self.wait_or_raise(failure, attempt)
            attempt += 1

    def wait_or_raise(self, failure: CallError, attempt: int) -> None:
        may_retry = failure.retryable and failure.retry_after <= self.max_retry_after
        if attempt >= self.attempts or not may_retry:
            raise failure
        time.sleep(failure.retry_after + self.backoff(attempt))

    def backoff(self, attempt: int) -> float:
        return random.uniform(0.0, self.base_delay * 4.0 ** (attempt - 1))

    def ask(self, session: requests.Session, base_url: str, key: str) -> str:
        """Make one attempt."""
        with total_timeout(self.total), self.send(session, base_url, key) as response:
            self.check_status(response)
            return self.read_stream(response) if self.stream else self.read(response)

    def send(self, session: requests.Session, base_url: str, key: str) -> requests.Response:
        body = {
            "model": "mistral-small-latest",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": self.stream,
        }
        try:
            return session.post(
                f"{base_url}/chat/completions",
                json=body,
                headers={"Authorization": f"Bearer {key}"},
                timeout=self.read_timeout,
                stream=True,
            )
        except requests.Timeout:
            raise CallError("no response in time") from None
        except requests.ConnectionError:
            raise CallError("connection lost", retryable=True) from None

    def check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status != 200:
            used_up = response.headers.get("x-ratelimit-limit-req-minute") == "0"
            raise CallError(
                f"status {status}",
                status,
                float(response.headers.get("Retry-After", 0)),
                retryable=status in self.retryable and not used_up,
            )

    def read(self, response: requests.Response) -> str:
        try:
            choice = response.json()["choices"][0]
        except (requests.RequestException, ValueError, KeyError):
            raise CallError("not a completion") from None
        return self.checked(choice["message"]["content"], choice["finish_reason"])

    def read_stream(self, response: requests.Response) -> str:
        text, reason = "", None
        try:
            for line in response.iter_lines():
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "choices" not in event:
                    return self.after_error_event(text)
                text += event["choices"][0]["delta"]["content"]
                reason = event["choices"][0]["finish_reason"] or reason
        except requests.exceptions.ChunkedEncodingError:
            return self.after_break(text)
        except requests.RequestException:
            return self.after_silence(text)
        except ValueError:
            raise CallError("not JSON") from None
        return self.checked(text, reason) if reason else self.after_end(text)

    def checked(self, text: str, finish_reason: str) -> str:
        if finish_reason != "stop":
            raise CallError(f"the answer ends with {finish_reason}")
        return text

    def after_error_event(self, text: str) -> str:
        raise CallError("an error in the stream")

    def after_break(self, text: str) -> str:
        raise CallError("the stream broke off")

    def after_silence(self, text: str) -> str:
        raise CallError("the stream stalled")

    def after_end(self, text: str) -> str:
        raise CallError("the stream has no end")


class NoRetryOf503(RightClient):
    retryable = RightClient.retryable - {503}


class NoRetryOfLostConnections(RightClient):
    def wait_or_raise(self, failure: CallError, attempt: int) -> None:
        failure.retryable = failure.retryable and failure.status > 0
        super().wait_or_raise(failure, attempt)


class RetriesAWrongKey(RightClient):
    retryable = RightClient.retryable | {401}


class RetriesAWrongRequest(RightClient):
    retryable = RightClient.retryable | {400}


class RetriesEvery429(RightClient):
    def wait_or_raise(self, failure: CallError, attempt: int) -> None:
        failure.retryable = failure.retryable or failure.status == 429
        super().wait_or_raise(failure, attempt)


class ComesBackEarly(RightClient):
    def wait_or_raise(self, failure: CallError, attempt: int) -> None:
        if failure.retry_after <= self.max_retry_after:
            failure.retry_after /= 4
        super().wait_or_raise(failure, attempt)


class WaitsForADay(RightClient):
    def wait_or_raise(self, failure: CallError, attempt: int) -> None:
        if failure.retry_after > self.max_retry_after:
            released.wait(60)
        super().wait_or_raise(failure, attempt)


class WaitsTheSameEachTime(RightClient):
    def backoff(self, attempt: int) -> float:
        return 0.2 + 0.6 * random.Random(threading.get_ident()).random()  # a thread is a caller


class HasNoJitter(RightClient):
    def backoff(self, attempt: int) -> float:
        return 1.2 * 2.0 ** (attempt - 1)  # long, since a busy machine spreads waits, too


class TriesFourTimes(RightClient):
    attempts = 4
    base_delay = 0.05


class NeverGivesUp(RightClient):
    def wait_or_raise(self, failure: CallError, attempt: int) -> None:
        if failure.status == 503 and attempt == self.attempts:
            released.wait(60)
        super().wait_or_raise(failure, attempt)


class WaitsInSilence(RightClient):
    def wait_or_raise(self, failure: CallError, attempt: int) -> None:
        if str(failure) == "no response in time":
            released.wait(60)
        super().wait_or_raise(failure, attempt)


class LimitsOnlySilence(RightClient):
    total = 600.0


class ReadsAnyPage(RightClient):
    def check_status(self, response: requests.Response) -> None:
        if response.headers.get("Content-Type") != "text/html":
            super().check_status(response)

    def read(self, response: requests.Response) -> str:
        page = response.headers.get("Content-Type") == "text/html"
        return response.text if page else super().read(response)


class ReadsAnyBody(RightClient):
    def read(self, response: requests.Response) -> str:
        try:
            return super().read(response)
        except CallError:
            if not response.text.endswith("}"):
                return ""
            raise


class KeepsABrokenStream(RightClient):
    def after_break(self, text: str) -> str:
        return text


class KeepsAStalledStream(RightClient):
    def after_silence(self, text: str) -> str:
        return text


class KeepsAStreamWithoutEnd(RightClient):
    def after_end(self, text: str) -> str:
        return text


class SkipsErrorEvents(RightClient):
    def after_error_event(self, text: str) -> str:
        return text


class IgnoresTheFinishReason(RightClient):
    def checked(self, text: str, finish_reason: str) -> str:
        return text if finish_reason == "length" else super().checked(text, finish_reason)


class PrintsTheKey(RightClient):
    def __call__(self, base_url: str, key: str) -> str:
        try:
            return super().__call__(base_url, key)
        except CallError as failure:
            raise RuntimeError(f"{failure} with the key {key}") from None


MUTANTS: dict[str, RightClient] = {
    "a 503 is retried": NoRetryOf503(),
    "a lost connection is retried": NoRetryOfLostConnections(),
    "a wrong key is sent once": RetriesAWrongKey(),
    "a wrong request is sent once": RetriesAWrongRequest(),
    "a quota that is used up is not retried": RetriesEvery429(),
    "Retry-After is kept": ComesBackEarly(),
    "a day of Retry-After is not waited for": WaitsForADay(),
    "waits grow": WaitsTheSameEachTime(),
    "retries are spread": HasNoJitter(),
    "an outage gets few requests": TriesFourTimes(),
    "retries end": NeverGivesUp(),
    "silence ends": WaitsInSilence(),
    "a drip ends": LimitsOnlySilence(),
    "an HTML page is an error": ReadsAnyPage(),
    "cut JSON is an error": ReadsAnyBody(),
    "a broken stream is an error": KeepsABrokenStream(stream=True),
    "a stalled stream is an error": KeepsAStalledStream(stream=True),
    "a stream without its end is an error": KeepsAStreamWithoutEnd(stream=True),
    "an error in a stream is an error": SkipsErrorEvents(stream=True),
    "a cut-off answer is noticed": IgnoresTheFinishReason(),
    "the key stays secret": PrintsTheKey(),
}


def ask_ours(base_url: str, key: str, *, stream: bool, scale: float) -> str:
    """Ask with the settings that lib/README.md advises for a web handler, if the scale is 1."""

    def whole_stream(client: MistralClient) -> str:
        pieces = client.stream(HELLO)
        text = "".join(pieces)
        check_answer(SimpleNamespace(content=text, finish_reason=pieces.finish_reason))
        return text

    timeout = (2.0, 10 * scale)
    with MistralClient(key, base_url=base_url, timeout=timeout, total_timeout=10 * scale) as client:
        resilient = ResilientMistralClient(
            client,
            retrier=Retrier(max_attempts=2, total_timeout=15 * scale),
            breaker=CircuitBreaker("api", failure_threshold=5, recovery_timeout=10),
            logger=ErrorLogger(os.devnull),
        )
        if stream:
            return resilient.request(whole_stream)
        return check_answer(resilient.chat(HELLO)).content


HELLO = [{"role": "user", "content": "Hello!"}]
PATIENCE = 30.0 if SOAK else 5.0  # seconds, for our client; 30 is the default
RIGHT: dict[str, Ask] = {
    "plain": RightClient(),
    "streamed": RightClient(stream=True),
    "ours": partial(ask_ours, stream=False, scale=PATIENCE / 30),
    "ours, streamed": partial(ask_ours, stream=True, scale=PATIENCE / 30),
}


def plan() -> Iterator[tuple[str, Ask, Sequence[Rule]]]:
    """Yield who is checked by which rules; each of these is a job of its own."""
    if SOAK:
        clients: dict[str, Ask] = {**RIGHT, **MUTANTS}
        yield from ((name, ask, RULES) for name, ask in clients.items())
        return
    rules = {rule.name: rule._replace(callers=min(rule.callers, 10)) for rule in RULES}
    for name, mutant in MUTANTS.items():
        yield name, mutant, [rules[name]]
    for name, ask in RIGHT.items():
        judged = [rule for rule in rules.values() if rule.needs_stream == ("streamed" in name)]
        for faults in dict.fromkeys(rule.faults for rule in judged):
            yield name, ask, [rule for rule in judged if rule.faults == faults]


def main() -> None:
    def verdicts(job: tuple[str, Ask, Sequence[Rule]]) -> dict[str, list[str]]:
        name, ask, rules = job
        found = check(ask, rules=rules, patience=PATIENCE if "ours" in name else 5.0)
        return {each.rule: [each.verdict, each.happened] for each in found}

    jobs = list(plan())
    done: dict[str, dict[str, list[str]]] = {name: {} for name, *_ in jobs}
    with ThreadPoolExecutor(10 if SOAK else 50) as pool:
        for (name, *_), found in zip(jobs, pool.map(verdicts, jobs), strict=True):
            done[name] |= found
        released.set()
    print(json.dumps(done))


if __name__ == "__main__":
    main()
