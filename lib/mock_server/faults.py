# SPDX-License-Identifier: MIT-0
"""Parse a fault script, which says what happens to each request, in order of arrival.

A script is a list of words separated by commas, one word per request. After the last word,
every request gets a normal response. ``VOCABULARY`` lists the words; ``effects.py`` says what
each of them does to a response.
"""

from __future__ import annotations

import difflib
import itertools
import random
import re
from collections.abc import Iterator
from typing import NamedTuple


class Word(NamedTuple):
    """A word of the vocabulary; STATUS and SECONDS in its form stand for a number."""

    form: str
    example: str
    meaning: str


class Fault(NamedTuple):
    """What happens to one request; ``seconds`` is a Retry-After, a delay, or a time per byte."""

    kind: str
    status: int = 200
    seconds: float | None = None


# The table in this folder's README.md has these rows.
VOCABULARY = (
    Word("ok", "ok", "a normal response"),
    Word("STATUS", "503", "an error with this status (400 to 599) and a body in the API's format"),
    Word("STATUS:SECONDS", "429:2", "the same, with Retry-After: 2 (try again in 2 seconds)"),
    Word("noquota", "noquota", "a permanent 429: the plan allows no requests to this model"),
    Word("toolong", "toolong", "a 400: the prompt is larger than the model's context"),
    Word("slow:SECONDS", "slow:1.5", "a normal response, 1.5 seconds late"),
    Word("timeout", "timeout", "no response, ever"),
    Word("drop", "drop", "the connection is closed without a response"),
    Word("badjson", "badjson", "a 200 whose JSON is cut short"),
    Word("cut", "cut", "a response or a stream that breaks off: the connection is closed"),
    Word("stall", "stall", "half of a response or a stream, and then silence"),
    Word("truncate", "truncate", "a stream that ends too early, as if it were complete"),
    Word("streamerror", "streamerror", "a stream with a 200 that ends with an error event"),
    Word("drip:SECONDS", "drip:0.2", "a normal response, one byte every 0.2 seconds"),
    Word("html:STATUS", "html:502", "an error with this status and the HTML page of a gateway"),
    Word("length", "length", "a 200 whose answer is cut off (finish_reason: length)"),
    Word("empty", "empty", "a 200 with an empty answer"),
    Word("filter", "filter", "a 200 whose answer a content filter has withheld"),
)
REPETITIONS = (
    ("503*3", "three requests in a row get a 503; works with any word"),
    ("503*", "all remaining requests get a 503"),
    ("503@20%", "from here on, 20 % of the requests get a 503, the same ones in every run"),
)
FAULT_SYNTAX = (
    ", ".join(word.example for word in VOCABULARY)
    + " (with any status from 400 to 599 and any number of seconds); add *3 to repeat a word "
    "3 times, * to repeat it for all remaining requests, or @20% for a random share of them"
)
NUMBERS = {
    "STATUS": (r"(?P<status>[45][0-9][0-9])", "a status from 400 to 599"),
    "SECONDS": (r"(?P<seconds>[0-9]{1,5}(\.[0-9]+)?)", "seconds, below 100000"),
}
# What is wrong with a word that begins like this.
DIAGNOSES = {
    r"\S*\s": "separate words with commas",
    r"([0-9A-Za-z_]+)x([0-9]+)$": r"did you mean \1*\2?",
    r"[0-9]+(:|$)": "a status is a number from 400 to 599; seconds, below 100000, follow a colon",
}
TIMES = "[1-9][0-9]{0,5}|1000000"
PERCENT = r"([0-9]{1,2}(\.[0-9]+)?|100(\.0+)?)%"
OK = Fault("ok")


def parse_faults(script: str, seed: int = 0) -> Iterator[Fault]:
    """Return an iterator with one Fault per request; it may end, or go on forever.

    Raises ValueError for an invalid script. The message names the word and says what is wrong.
    """
    words = _split(script)
    counted = list(itertools.takewhile(lambda word: "@" not in word, words))
    parts = [_parse_counted(word) for word in counted]
    shares = [_parse_share(word) for word in words[len(counted) :]]
    rest = round(100 - sum(percent for percent, _ in shares), 9)  # without the errors of floats
    if rest < 0:
        raise ValueError("the shares with @ add up to more than 100 %")
    return itertools.chain(*parts, _draw(shares, rest, random.Random(seed)))


def _split(script: str) -> list[str]:
    script = re.sub("^'(.*)'$", r"\1", script.strip())  # cmd.exe does not remove the quotes
    words = [word.strip() for word in script.split(",")] if script else []
    for word in words[:-1]:
        if word.endswith("*"):
            raise ValueError(f"{_quoted(word)} never ends, so nothing may follow it")
    return words


def _parse_counted(word: str) -> Iterator[Fault]:
    """Parse a word that is for one request, or for several with *3 or *."""
    text, star, times = word.partition("*")
    fault = _parse_fault(text, word)
    if not star:
        return itertools.repeat(fault, 1)
    if not times:
        return itertools.repeat(fault)
    if not re.fullmatch(TIMES, times):
        raise ValueError(f"{_quoted(word)}: repeat it 1 to 1000000 times, or always with a bare *")
    return itertools.repeat(fault, int(times))


def _parse_share(word: str) -> tuple[float, Fault]:
    """Parse a word with a percentage, such as 503@20%: return (20.0, the fault)."""
    text, at, percent = word.partition("@")
    if not at:
        raise ValueError(
            f"{_quoted(word)}: words with @ come last; they apply to all later requests"
        )
    fault = _parse_fault(text, word)
    if not re.fullmatch(PERCENT, percent):
        raise ValueError(f"{_quoted(word)}: a share is a percentage up to 100, such as 503@20%")
    return float(percent[:-1]), fault


def _draw(shares: list[tuple[float, Fault]], rest: float, chance: random.Random) -> Iterator[Fault]:
    """Yield a fault for each request, at random; OK for the rest of the 100 %."""
    percents = [percent for percent, _ in shares] + [rest]
    faults = [fault for _, fault in shares] + [OK]
    while shares:
        yield chance.choices(faults, percents)[0]


def _parse_fault(text: str, word: str) -> Fault:
    """Parse a word without its * or @. ``word`` is the whole word, for the error message."""
    for known in VOCABULARY:
        if match := re.fullmatch(_pattern(known.form), text):
            numbers = match.groupdict()
            kind = known.form.partition(":")[0].lower()
            seconds = float(numbers["seconds"]) if "seconds" in numbers else None
            return Fault(kind, int(numbers.get("status", 200)), seconds)
    raise ValueError(f"unknown fault {_quoted(word)}: {_diagnosis(text)}")


def _quoted(word: str) -> str:
    """Return the word as it may be printed: without terminal codes and line ends."""
    return f"'{ascii(word)[1:-1]}'"


def _pattern(form: str) -> str:
    return re.sub("STATUS|SECONDS", lambda number: NUMBERS[number[0]][0], form)


def _diagnosis(text: str) -> str:
    """Return what is wrong with an unknown word, or what to write instead."""
    for pattern, diagnosis in DIAGNOSES.items():
        if match := re.match(pattern, text):
            return match.expand(diagnosis)
    name = text.partition(":")[0]
    words = {word.form.partition(":")[0]: word for word in VOCABULARY}
    if name not in words:
        close = difflib.get_close_matches(name.lower(), words, 1)
        return f"did you mean {words[close[0]].example}?" if close else f"use {FAULT_SYNTAX}"
    _, colon, number = words[name].form.partition(":")
    if not colon:
        return f"{name} takes no number"
    return f"{name} needs {NUMBERS[number][1]}: {words[name].example}"
