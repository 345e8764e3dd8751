# SPDX-License-Identifier: MIT-0
"""Log every call as one JSON line, count what happens, and raise the alarm once.

Copy this file alone: it needs the standard library only.

    >>> import json, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "errors.log")
    >>> logger = ErrorLogger(path)
    >>> logger.log_request("chat", True)
    >>> logger.log_request("chat", False, TimeoutError("no answer, Bearer abc123"))
    >>> logger.metrics()["errors_by_type"]
    {'TimeoutError': 1}
    >>> json.loads(path.read_text().splitlines()[1])["error"]["message"]
    'no answer, Bearer [redacted]'

Any JSON tool reads the file: ``jq 'select(.success == false)' mistral_errors.log``.
The format is JSON Lines (jsonlines.org).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, TypedDict

MAX_ERROR_TYPES = 100  # counted one by one; what is beyond goes to "other"

# What looks like a secret in a finished JSON line, behind what tells that it is one.
# No match takes in a quote that belongs to the JSON, so the line stays valid.
_NAME = r"""(?: api[_-]?key | passw(?:or)?d | secret | authorization
             | (?: access | auth | bearer )[_-]?token ) [\w-]{0,40} | (?<=") token (?=")"""
_SECRET = re.compile(
    rf"""
      (?P<json>   (?: {_NAME} ) " :[ ] " )                                   (?: [^"\\] | \\. )+
    | (?P<quoted> (?: {_NAME} ) (?: \\" | ' ) \s* : \s* (?: \\" | ' ) )      [^"'\\]+
    | (?P<plain>  (?: {_NAME} ) \s* [:=] \s* (?: (?: bearer | basic ) \s+ )? ) [^\s"'\\&,;]+
    | (?P<bearer> \b bearer (?: \s | \\[nrt] )+ )                           [^\s"'\\,;]+
    | (?P<url>    :// )                                                     [^\s"\\/@]+ (?=@)
    """,
    re.IGNORECASE | re.VERBOSE,
)
# One of these stands in every match; to look for them first is a hundred times quicker.
_HINTS = ("key", "passw", "secret", "auth", "access", "bearer", '"token"', "://")


class Metrics(TypedDict):
    """Counts since the start; ``success_rate`` in percent, with two decimals."""

    total_requests: int
    successful: int
    failed: int
    errors_by_type: dict[str, int]
    success_rate: float


class ErrorLogger:
    """Appends records to ``path``, one JSON object a line; safe for threads and processes.

    A record is one write to a file opened for appending, which POSIX keeps whole
    among many writers. A log that can't be written never breaks the caller: the
    record is counted in ``lost`` and the trouble said once on stderr. ``secrets``
    are blotted out wherever they occur, as are bearer tokens, passwords in URLs and
    fields named like a key.

    ``alert(failure_rate)`` is called when more than ``alert_threshold`` (0 to 1) of
    the last ``alert_window`` requests failed: once, until the rate has come down again.
    Raises ValueError for a threshold or a window that cannot be right.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "mistral_errors.log",
        *,
        alert: Callable[[float], object] | None = None,
        alert_threshold: float = 0.5,
        alert_window: int = 20,
        secrets: Iterable[str] = (),
    ) -> None:
        if not 0 <= alert_threshold < 1:
            raise ValueError(f"alert_threshold must be 0 or more, below 1, not {alert_threshold!r}")
        if not (isinstance(alert_window, int) and alert_window >= 1):
            raise ValueError(f"alert_window must be a whole number from 1, not {alert_window!r}")
        self.path = os.fspath(path)
        self.lost = 0
        self._alert = alert
        self._alert_threshold = alert_threshold
        self._alerted = False
        self._recent_failures: deque[bool] = deque(maxlen=alert_window)
        self._secrets = [json.dumps(secret)[1:-1] for secret in secrets if secret]
        self._successful = 0
        self._failed = 0
        self._errors_by_type: dict[str, int] = {}
        self._line_is_torn = False
        self._count_lock = threading.Lock()
        self._file_lock = threading.Lock()

    def log_request(
        self,
        type: str,
        success: bool,
        error: BaseException | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Record one request: its ``type`` ("chat"), its outcome and what is worth knowing.

        Raises nothing: what is not JSON in ``context`` is written as its repr.
        """
        record: dict[str, Any] = {
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "type": str(type),
            "success": bool(success),
            "error": None if error is None else _described(error),
            "context": context or {},
        }
        line = self._redacted(_to_json(record)) + "\n"
        with self._count_lock:
            failure_rate = self._count(success, error)
        with self._file_lock:
            trouble = self._append(line.encode("ascii"))
        if trouble:
            _say(f"The log {self.path} can't be written ({trouble}): records are lost.")
        if failure_rate is not None and self._alert:
            try:
                self._alert(failure_rate)
            except Exception as broken:
                _say(f"The alert failed ({_class_name(broken)}).")

    def metrics(self) -> Metrics:
        """A consistent copy of the counts."""
        with self._count_lock:
            total = self._successful + self._failed
            return {
                "total_requests": total,
                "successful": self._successful,
                "failed": self._failed,
                "errors_by_type": dict(self._errors_by_type),
                "success_rate": round(100 * self._successful / total, 2) if total else 0.0,
            }

    def _count(self, success: bool, error: BaseException | None) -> float | None:
        """Count one request; returns the failure rate if it has just passed the threshold."""
        if success:
            self._successful += 1
        else:
            self._failed += 1
            if error is not None:
                name, counts = _class_name(error), self._errors_by_type
                if name not in counts and len(counts) >= MAX_ERROR_TYPES:
                    name = "other"
                counts[name] = counts.get(name, 0) + 1
        recent = self._recent_failures
        recent.append(not success)
        rate, was_above = sum(recent) / len(recent), self._alerted
        self._alerted = len(recent) == recent.maxlen and rate > self._alert_threshold
        return rate if self._alerted and not was_above else None

    def _append(self, line: bytes) -> str:
        """Write the line; returns what is wrong, if it is the first time, else ''."""
        if self._line_is_torn:
            line = b"\n" + line  # a disk that was full cut the last one off
        try:
            # Opened anew each time, so that a rotated or deleted log is simply begun again.
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                written = os.write(file, line)
            finally:
                os.close(file)
            if written == len(line):
                self._line_is_torn = False
                return ""
            self._line_is_torn = written > 0 or self._line_is_torn
            trouble = "the disk is full"
        except (OSError, ValueError) as error:
            trouble = getattr(error, "strerror", None) or str(error)
        self.lost += 1
        return trouble if self.lost == 1 else ""

    def _redacted(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, "[redacted]")
        lowered = line.lower()
        if not any(hint in lowered for hint in _HINTS):
            return line
        return _SECRET.sub(lambda found: f"{found[found.lastgroup or 0]}[redacted]", line)


def _class_name(error: BaseException) -> str:
    return error.__class__.__name__


def _described(error: BaseException) -> dict[str, Any]:
    """The class, the text, and the two facts of an API's error that support asks for."""
    return {
        "class": _class_name(error),
        "message": _text(error),
        "status_code": getattr(error, "status_code", None),
        "request_id": getattr(error, "request_id", None),
    }


def _to_json(record: dict[str, Any]) -> str:
    """The record as ASCII on one line; what JSON cannot carry, as text."""
    try:
        return _strict_encoder.encode(record)
    except (TypeError, ValueError, RecursionError):
        return json.dumps({**record, "context": _text(record["context"])}, default=_text)


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that can't be shown>"


_strict_encoder = json.JSONEncoder(allow_nan=False, default=_text)


def _say(sentence: str) -> None:
    """Tell stderr, if there is one: a log must not fail for lack of a console."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(sentence, file=sys.stderr)
