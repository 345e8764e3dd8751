# SPDX-License-Identifier: MIT-0
"""Parse a fault script, which says what happens to each request, in order of arrival.

A script is a list of words separated by commas, one word per request. After the last word,
every request succeeds.

    ok            a normal response
    503           that status, with the body that the real API sends (any of 400 to 599)
    429:2         the same, with Retry-After: 2
    noquota       the permanent 429: a limit of 0 requests per minute
    slow:1.5      a normal response, 1.5 seconds late
    timeout       no response, ever
    drop          the connection is closed without a response
    badjson       a 200 whose JSON is truncated
    cut           a 200, or a stream, that breaks off in the middle
    drip:0.2      a normal response, one byte every 0.2 seconds
    html:502      that status, with a gateway's HTML page
    503*3         repeat 3 times               503*      for all remaining requests
    503@20%       each remaining request with a probability of 20% (same seed, same requests)
"""

from __future__ import annotations

import difflib
import itertools
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

FAULT_SYNTAX = (
    "ok, a status from 400 to 599, 429:2 (seconds of Retry-After), noquota, slow:1.5, timeout, "
    "drop, badjson, cut, drip:0.2 or html:502; add *3 to repeat a word 3 times, * to repeat it "
    "for all remaining requests, or @20% for a random share of them"
)
PLAIN_KINDS = ("ok", "noquota", "timeout", "drop", "badjson", "cut")
KINDS_WITH_SECONDS = ("slow", "drip")
MAX_SECONDS = 86_400
MAX_REPEATS = 1_000_000


class Fault(NamedTuple):
    """What happens to one request; ``seconds`` is a Retry-After, a delay, or a time per byte."""

    kind: str
    status: int = 200
    seconds: float | None = None


OK = Fault("ok")


def parse_faults(script: str, seed: int = 0) -> Iterator[Fault]:
    """Return an iterator with one Fault per request; it may end, or go on forever.

    Raises ValueError for an invalid script. The message names the word and says what is wrong.
    """
    script = script.strip()
    if len(script) >= 2 and script[0] == script[-1] == "'":
        script = script[1:-1]  # cmd.exe on Windows does not remove single quotes
    words = [word.strip() for word in script.split(",")] if script else []
    parts: list[Iterator[Fault]] = []
    shares: list[tuple[float, Fault]] = []
    for number, word in enumerate(words):
        if re.search(r"\s", word):
            raise ValueError(f"'{ascii(word)[1:-1]}': separate words with commas")
        name, at, percent = word.partition("@")
        if at:
            shares.append((_parse_share(word, percent), _parse_fault(name, word)))
            continue
        if shares:
            raise ValueError(f"'{word}': words with @ come last; they apply to all later requests")
        name, star, times = word.partition("*")
        if star and not times and number < len(words) - 1:
            raise ValueError(f"'{word}' never ends, so nothing may follow it")
        parts.append(_repeat(_parse_fault(name, word), word, star, times))
    if sum(share for share, _ in shares) > 1:
        raise ValueError("the shares with @ add up to more than 100 %")
    if shares:
        parts.append(_draw(shares, random.Random(seed)))
    return itertools.chain.from_iterable(parts)


def _parse_fault(text: str, word: str) -> Fault:
    """Parse a word without its * or @. ``word`` is the whole word, for the error message."""
    name, colon, value = text.partition(":")
    if name in PLAIN_KINDS and not colon:
        return Fault(name)
    if name in KINDS_WITH_SECONDS and _is_seconds(value):
        return Fault(name, 200, float(value))
    if name == "html" and _is_status(value):
        return Fault("html", int(value))
    if _is_status(name) and (not colon or _is_seconds(value)):
        return Fault("status", int(name), float(value) if colon else None)
    raise ValueError(f"unknown fault '{ascii(word)[1:-1]}': {_diagnosis(text)}")


def _diagnosis(text: str) -> str:
    """Return what is wrong with an unknown word, or what to write instead."""
    name = text.partition(":")[0]
    if match := re.fullmatch(r"(\w+)x([0-9]+)", text, re.ASCII):
        return f"did you mean {match[1]}*{match[2]}?"
    if name in KINDS_WITH_SECONDS:
        return f"{name} needs seconds, up to a day: {name}:1.5"
    if name == "html":
        return "html needs a status from 400 to 599: html:502"
    if name in PLAIN_KINDS:
        return f"{name} takes no number"
    if name.isascii() and name.isdigit():
        return "a status is a number from 400 to 599; seconds, up to a day, follow a colon"
    known = [*PLAIN_KINDS, *KINDS_WITH_SECONDS, "html"]
    if close := difflib.get_close_matches(name.lower(), known, 1):
        return f"did you mean {close[0]}?"
    return f"use {FAULT_SYNTAX}"


def _repeat(fault: Fault, word: str, star: str, times: str) -> Iterator[Fault]:
    if not star:
        return iter([fault])
    if not times:
        return itertools.repeat(fault)
    if not re.fullmatch("[0-9]{1,7}", times) or not 1 <= int(times) <= MAX_REPEATS:
        raise ValueError(f"'{word}': repeat it 1 to {MAX_REPEATS} times, or always with a bare *")
    return itertools.repeat(fault, int(times))


def _parse_share(word: str, percent: str) -> float:
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?%", percent) and float(percent[:-1]) <= 100:
        return float(percent[:-1]) / 100
    raise ValueError(f"'{word}': a share is a percentage up to 100, such as 503@20%")


def _draw(shares: list[tuple[float, Fault]], chance: random.Random) -> Iterator[Fault]:
    while True:
        drawn = chance.random()
        for share, fault in shares:
            drawn -= share
            if drawn < 0:
                yield fault
                break
        else:
            yield OK


def _is_status(text: str) -> bool:
    return re.fullmatch("[45][0-9][0-9]", text) is not None


def _is_seconds(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) is not None and float(text) <= MAX_SECONDS
