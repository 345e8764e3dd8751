"""Write what was found into the pages: the tables of lib/frameworks.md and lib/comparison.md.

``results.json`` has the verdict of each client on each rule, and what happened. The tables stand
between two comments in the pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lib.resilience_check import RULES

from .clients import CLIENT, CLIENTS, FRAMEWORK, ROOT

RESULTS = Path(__file__).with_name("results.json")
PAGES = {
    "clients": ROOT / "lib" / "frameworks.md",
    "frameworks": ROOT / "lib" / "frameworks.md",
    "versions": ROOT / "lib" / "frameworks.md",
    "streams": ROOT / "lib" / "comparison.md",
}
# What is wrong, in a word or two: the legend of the page explains them.
SHORT = (
    (r"still running", "hangs"),
    (r"took half of the answer", "half"),
    (r"took the broken response", "raw"),
    (r"ended as if nothing", "silent"),
    (r"sent the request (\d+) times", r"\1 ×"),
    (r"sent ([\d.]+) requests per call", r"\1 ×"),
    (r"came back after ([\d.]+) s", r"\1 s"),
    (r"did not send the request again", "no retry"),
    (r"did not get the answer", "no answer"),
    (r"three quarters waited", "equal"),
    (r"half of the callers waited", "together"),
    (r"printed the key", "key"),
)
IN_COMPARISON = ("ours", "openai", "openai, 10 s", "mistralai", "mistralai, retries", "litellm")
STREAM_RULES = [rule for rule in RULES if rule.needs_stream]

Results = dict[str, Any]  # by client: {"date", "versions", "verdicts": {rule: [verdict, happened]}}


def load() -> Results:
    """Return the results that are there."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def write(results: Results) -> None:
    """Write the results and the pages."""
    kept = {client.name: results[client.name] for client in CLIENTS if client.name in results}
    RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for name, page in PAGES.items():
        before, _, after = split(page.read_text("utf-8"), name)
        page.write_text(before + tables(kept)[name] + after, "utf-8")


def split(page: str, name: str) -> tuple[str, str, str]:
    """Return what stands before a table, the table, and what follows."""
    start, end = f"<!-- {name}: make check-frameworks -->\n", "<!-- end -->"
    before, found, rest = page.partition(start)
    table, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page has no lines {start.strip()} and {end}")
    return before + found, table, found_end + after


def tables(results: Results) -> dict[str, str]:
    """Return each table, by the name in its comment."""
    names = {
        kind: [client.name for client in CLIENTS if client.table == kind and client.name in results]
        for kind in (CLIENT, FRAMEWORK)
    }
    return {
        "clients": _verdicts(results, names[CLIENT]),
        "frameworks": _verdicts(results, names[FRAMEWORK]),
        "versions": _table(
            ["client", "versions", "checked on"],
            ([name, each["versions"], each["date"]] for name, each in results.items()),
        ),
        "streams": _table(
            ["client", "versions", *(f"`{rule.faults.rstrip('*')}`" for rule in STREAM_RULES)],
            (
                [name, results[name]["versions"],
                 *(_in_words(*results[name]["verdicts"][rule.name]) for rule in STREAM_RULES)]
                for name in IN_COMPARISON if name in results
            ),
        ),
    }  # fmt: skip


def _verdicts(results: Results, names: Sequence[str]) -> str:
    rows = (
        [rule.name, *(cell(*results[name]["verdicts"][rule.name]) for name in names)]
        for rule in RULES
    )
    return _table(["rule", *names], rows)


def cell(verdict: str, happened: str) -> str:
    """Return a verdict for the table: a sign, and in a word what is wrong.

    A bare ✗ has no short form yet: the legend of the page lacks it, so a test fails.
    """
    if verdict != "fail":
        return {"pass": "✓", "not tried": "–"}[verdict]
    for pattern, short in SHORT:
        if match := re.match(pattern, happened):
            return f"✗ {match.expand(short)}"
    return "✗"


def _in_words(verdict: str, happened: str) -> str:
    """Return what a caller gets from a stream that breaks."""
    if verdict == "fail":
        short = cell(verdict, happened)
        words = {"✗ hangs": "nothing, for 30 s", "✗ half": "half of the answer, no error"}
        return words.get(short, short)
    found = re.search(r"([\d.]+) s\): (?:exit code \d+: )?(\w+)", happened)
    if not found:
        return happened
    seconds = round(float(found[1]))
    return f"`{found[2]}`" + (f" after {seconds} s" if seconds else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
