# SPDX-License-Identifier: MIT-0
"""The rules of the resilience check: what to inject, and how to judge what became of it.

``RULES`` is the table. A judge looks at both sides of a run: the requests in the server's log, with
the server's times, and what the program did with the responses. It returns "" if the rule holds, or
else what is wrong; it raises NotTriedError if there is nothing to judge. ``runs.py`` makes the
runs.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable
from typing import NamedTuple

from .programs import Ending
from .runs import KEY, WORDS, Run

CALLERS = 20  # that meet the same outage, to see how their retries are spread
RETRY_AFTER = 2  # seconds
MOST_REQUESTS_PER_CALL = 3

# What the program makes of a response.
ANSWERED = "answered"
FAILED = "failed"
SPOKE = "ended with a text of its own"
RAW = "took the broken response for the answer"
HALF = "took half of the answer for the whole"
SILENT = "ended as if nothing had happened"
RUNNING = "still running"


class Evidence(NamedTuple):
    """What a judge reads: a run without faults, the runs with the rule's faults, and all runs."""

    healthy: Run
    runs: list[Run]
    all_runs: list[Run]

    @property
    def run(self) -> Run:
        """The run with the rule's faults; the first, if there are many callers."""
        return self.runs[0]

    @property
    def result(self) -> str:
        """What the program made of the rule's faults."""
        return result(self.run, self.healthy)


class NotTriedError(Exception):
    """The program gave the rule nothing to judge; the message says why."""


Judge = Callable[[Evidence], str]


class Rule(NamedTuple):
    """A rule: its name, what to inject, how to judge it, why it matters, and where to read on."""

    name: str
    faults: str
    judge: Judge
    why: str
    read: str
    callers: int = 1
    needs_stream: bool = False


def result(run: Run, healthy: Run) -> str:
    """Return what the program did with the responses.

    A program reports a failure with an exit code, an exception, or a text that it does not print
    in a run without faults.
    """
    if run.ending.running:
        return RUNNING
    if run.ending.failure:
        return FAILED
    if WORDS[-1] in run.ending.output:
        return ANSWERED
    if re.search('<html>|"choices"|"object"', run.ending.output):
        return RAW
    if _own_words(run.ending) - _own_words(healthy.ending):
        return SPOKE
    return HALF if WORDS[0] in run.ending.output else SILENT


def _own_words(ending: Ending) -> set[str]:
    """Return what a program said itself: without the server's answer, and without numbers."""
    return set(re.findall(r"\b[^\W\d_]{3,}\b", ending.output + " " + ending.messages)) - set(WORDS)


def is_answered(evidence: Evidence) -> str:
    """Judge a transient failure: the program must get the answer in the end."""
    if evidence.result == ANSWERED:
        return ""
    again = len(evidence.run.arrivals) > 1
    return "did not get the answer" if again else "did not send the request again"


def is_sent_once(evidence: Evidence) -> str:
    """Judge a permanent failure: sending the same request again cannot help."""
    count = len(evidence.run.arrivals)
    return f"sent the request {count} times" if count > len(evidence.healthy.arrivals) else ""


def keeps_retry_after(evidence: Evidence) -> str:
    """Judge a Retry-After header: no request may come earlier."""
    waits = _waits(evidence.run)
    if not waits:
        raise NotTriedError("does not send a request again after a 429")
    if waits[0] >= RETRY_AFTER - 0.05:  # a timer may be early
        return ""
    return f"came back after {waits[0]:.2f} s, not after {RETRY_AFTER} s"


def gives_up(evidence: Evidence) -> str:
    """Judge a Retry-After of a day: the program must neither wait for it nor ignore it."""
    if evidence.result == RUNNING:
        return RUNNING
    waits = _waits(evidence.run)
    return f"came back after {waits[0]:.2f} s, not after a day" if waits else ""


def waits_grow(evidence: Evidence) -> str:
    """Judge the waits that three quarters of the callers keep: with jitter, each is random."""
    waits = [_waits(run) for run in evidence.runs if len(run.arrivals) > 2]
    if len(waits) < CALLERS / 2:
        raise NotTriedError("sends a request at most twice, so there is only one wait")
    first, last = (statistics.quantiles((each[n] for each in waits), n=4)[2] for n in (0, -1))
    if last > max(1.1 * first, 0.05):
        return ""
    return f"three quarters waited up to {first:.2f} s first, and up to {last:.2f} s last"


def is_spread(evidence: Evidence) -> str:
    """Judge the last waits of many callers: the shorter half of them must not be nearly the same.

    The shorter half counts, because a busy machine makes some waits longer, but none shorter.
    """
    waits = sorted(_waits(run)[-1] for run in evidence.runs if len(run.arrivals) > 1)
    if len(waits) < CALLERS / 2:
        raise NotTriedError("does not send a request again after a 503")
    shortest, middle = waits[0], waits[len(waits) // 2]
    if middle - shortest > max(0.07 * middle, 0.05):
        return ""
    return f"half of the callers waited between {shortest:.2f} and {middle:.2f} s"


def sends_few(evidence: Evidence) -> str:
    """Judge how many requests per call a service gets while it is down."""
    sent = statistics.mean(len(run.requests) for run in evidence.runs)
    calls = statistics.mean(len({each.content for each in run.requests}) for run in evidence.runs)
    if sent <= MOST_REQUESTS_PER_CALL * calls:
        return ""
    return f"sent {sent / calls:.1f} requests per call"


def ends(evidence: Evidence) -> str:
    """Judge whether every caller ended within the patience."""
    return RUNNING if any(run.ending.running for run in evidence.runs) else ""


def is_an_error(evidence: Evidence) -> str:
    """Judge a response without a whole answer: the program must not treat it as an answer."""
    return evidence.result if evidence.result in (RAW, HALF, SILENT, RUNNING) else ""


def keeps_the_key(evidence: Evidence) -> str:
    """Judge all that the program printed or raised in all runs."""
    endings = [run.ending for run in evidence.all_runs]
    leaks = [each for each in endings if KEY in each.output + each.messages + each.failure]
    return f"printed the key in {len(leaks)} of {len(endings)} runs" if leaks else ""


def _waits(run: Run) -> list[float]:
    """Return the seconds between the arrivals of the same request."""
    return [later - earlier for earlier, later in itertools.pairwise(run.arrivals)]


NUMBERS = "lib/README.md#choose-the-numbers"
RETRIES = "examples/README.md#lesson-2-backoff"
STREAMS = "examples/README.md#streams"
ANSWERS = "examples/README.md#answers"
ERRORS = "examples/troubleshooting.md#what-each-error-means"
TIMEOUTS = "examples/troubleshooting.md#timeouts"
LIMITS = "examples/troubleshooting.md#frequent-429s"
OUTAGE = "503*"
RULES = (
    Rule(
        "a 503 is retried", "503", is_answered,
        "Most server errors are gone a second later.", RETRIES,
    ),
    Rule(
        "a lost connection is retried", "drop", is_answered,
        "Connections are lost every day; the next one usually works.", RETRIES,
    ),
    Rule(
        "a wrong key is sent once", "401*", is_sent_once,
        "A wrong key stays wrong, and some APIs block clients that keep trying.", ERRORS,
    ),
    Rule(
        "a wrong request is sent once", "400*", is_sent_once,
        "The same request gets the same error; retries only cost time and quota.", ERRORS,
    ),
    Rule(
        "a quota that is used up is not retried", "noquota*", is_sent_once,
        "Waiting does not help after this 429: the limit is 0, or the quota is used up.", LIMITS,
    ),
    Rule(
        "Retry-After is kept", f"429:{RETRY_AFTER}", keeps_retry_after,
        "A request that comes earlier is rejected again, and counts against your limit.", LIMITS,
    ),
    Rule(
        "a day of Retry-After is not waited for", "429:86400*", gives_up,
        "A caller that waits for a day hangs; one that ignores the header is rejected.", LIMITS,
    ),
    Rule(
        "waits grow", OUTAGE, waits_grow,
        "A service that is down needs longer and longer pauses to recover.", RETRIES, CALLERS,
    ),
    Rule(
        "retries are spread", OUTAGE, is_spread,
        "Callers that fail together and retry together cause the next peak of load.", RETRIES,
        CALLERS,
    ),
    Rule(
        "an outage gets few requests", OUTAGE, sends_few,
        f"More than {MOST_REQUESTS_PER_CALL} requests per call multiply the load of a service "
        "that is down.", RETRIES, CALLERS,
    ),
    Rule(
        "retries end", OUTAGE, ends,
        "A caller that never gives up blocks its thread, and its user, forever.", NUMBERS, CALLERS,
    ),
    Rule(
        "silence ends", "timeout*", ends,
        "Lower the read timeout and the number of attempts: MistralClient(timeout=), "
        "OpenAI(timeout=, max_retries=), Mistral(timeout_ms=). The defaults wait for minutes.",
        TIMEOUTS,
    ),
    Rule(
        "a drip ends", "drip:{drip}*", ends,
        "A read timeout limits each silence, not the whole response. Set a limit for all of it: "
        "MistralClient(total_timeout=), lib/total_timeout.py, or asyncio.timeout.", TIMEOUTS,
    ),
    Rule(
        "an HTML page is an error", "html:502*", is_an_error,
        "A gateway in front of the API answers with pages, not with JSON.", ERRORS,
    ),
    Rule(
        "cut JSON is an error", "badjson*", is_an_error,
        "A response may be broken although its status is 200.", ERRORS,
    ),
    Rule(
        "a broken stream is an error", "cut*", is_an_error,
        "To the user, half of an answer can look like a whole one.", STREAMS, needs_stream=True,
    ),
    Rule(
        "a stalled stream is an error", "stall*", is_an_error,
        "A stream may stop without an end; only a read timeout notices it.", STREAMS,
        needs_stream=True,
    ),
    Rule(
        "a stream without its end is an error", "truncate*", is_an_error,
        "A stream is whole only if it ends with a finish reason or [DONE].", STREAMS,
        needs_stream=True,
    ),
    Rule(
        "an error in a stream is an error", "streamerror*", is_an_error,
        "Once a stream has begun with a 200, an error can only come as an event.", STREAMS,
        needs_stream=True,
    ),
    Rule(
        "a cut-off answer is noticed", "length*", is_an_error,
        "finish_reason says that the answer is not whole; the text does not.", ANSWERS,
    ),
    Rule(
        "the key stays secret", "401*", keeps_the_key,
        "What is printed ends up in logs and in bug reports.", ERRORS,
    ),
)  # fmt: skip
