"""Read the files of a batch job: a JSON object in each line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from examples.support.lesson import UsageError

BEGINNING = b'{"id": '  # of each line that a batch job writes


def read_prompts(path: Path, answers: Path) -> dict[Any, str]:
    """Return the prompts by their ids. Raises UsageError for a line that holds none.

    The answers must go to another file, or a UsageError is raised, too.
    """
    if path.resolve() == answers.resolve():
        raise UsageError("The answers need a file of their own.")
    prompts: dict[Any, str] = {}
    for entry in read_lines(path, path.read_bytes(), "prompt"):
        if entry["id"] in prompts:
            raise UsageError(f"{path}: the id {entry['id']!r} is there twice.")
        prompts[entry["id"]] = entry["prompt"]
    return prompts


def read_done(path: Path) -> set[Any]:
    """Return the ids that need no further call. Drop a last line that a kill cut short.

    A prompt that failed and was asked again has two lines. Raises UsageError if the file holds
    something else, and leaves it alone.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    results = read_lines(path, whole, "answer")
    cut = content[len(whole) :]
    if not cut.startswith(BEGINNING[: len(cut)]):
        raise UsageError(f"{path} does not end with an answer: name another file.")
    if cut:
        os.truncate(path, len(whole))
    return {result["id"] for result in results if not result.get("retryable")}


def read_lines(path: Path, content: bytes, field: str) -> list[dict[str, Any]]:
    """Return the JSON object in each line. Raise UsageError for one without an id or this field."""
    entries = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            entry = json.loads(line.decode("utf-8-sig"))
            if not {"id", field} <= entry.keys():
                raise ValueError
        except (ValueError, RecursionError, AttributeError):  # not an object, for example
            needed = f'"id" and "{field}"'
            raise UsageError(f"{path}, line {number}: expected JSON with {needed}.") from None
        if not isinstance(entry["id"], (str, int)):
            raise UsageError(f"{path}, line {number}: the id must be a text or a number.")
        entries.append(entry)
    return entries
