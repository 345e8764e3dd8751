# SPDX-License-Identifier: MIT-0
"""Log every call as one JSON line, count what happens, and alert once.

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
import math
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, TypedDict

APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)  # Windows has it
MAX_ERROR_TYPES = 100  # counted one by one; what is beyond goes to "other"

REDACTED = "[redacted]"
UNREADABLE = "<what cannot be read>"
MAX_DEPTH = 8  # of nested context; what is deeper is written as text

_NAMES = (
    r"api[_-]?key|private[_-]?key|passw(?:or)?d|secret|authorization"
    r"|(?:access|auth|bearer|refresh)[_-]?token"
)
_NAMES_A_SECRET = re.compile(rf"{_NAMES}|^token$", re.IGNORECASE)
_FIELD = rf"""(?: {_NAMES} ) [\w-]{{0,40}} [\\"']* \s* [:=] \s*"""
_SCHEME = r"(?: (?: bearer | basic ) \s+ )?"
_SECRET_IN_TEXT = re.compile(
    rf"""
      ( {_FIELD} b? [\\"']+ {_SCHEME} )               [^\\"']+              # to the closing quote
    | ( {_FIELD} {_SCHEME} | \b bearer \s+ )          [^\s"'\\,;&)}}\]]+    # to the word's end
    | (?<= :// )                                      [^\s"'/@]+ (?=@)
    """,
    re.IGNORECASE | re.VERBOSE,
)
# One of these stands in every line that holds a match: a quick look before a slow one.
_HINTS = ("key", "passw", "secret", "auth", "access", "bearer", "refresh", '"token"', "://")

_strictly_json = json.JSONEncoder(allow_nan=False).encode


class Metrics(TypedDict):
    """Counts since the start; ``success_rate`` in percent, with two decimals."""

    total_requests: int
    successful: int
    failed: int
    errors_by_type: dict[str, int]
    success_rate: float


class ErrorLogger:
    """Append records to ``path``, one JSON object per line.

    A record is one write to a file opened for appending, which POSIX keeps whole among
    many writers, so threads and processes may share a file. A log that can't be written
    never breaks the caller: the record is counted in ``dropped_records``, and stderr says
    so once. ``secrets`` are redacted wherever they occur, as are bearer tokens, passwords
    in URLs and any field whose name looks like a secret (api_key, password...).

    ``alert(failure_rate)`` fires once when the failure rate of the last ``alert_window``
    requests rises above ``alert_threshold`` (0 to 1), and re-arms when it falls back.

    Thread-safe. Raises ValueError for a wrong argument.
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
            raise ValueError(
                f"alert_threshold must be a number >= 0 and < 1, got {alert_threshold!r}"
            )
        if not (isinstance(alert_window, int) and alert_window >= 1):
            raise ValueError(f"alert_window must be an integer >= 1, got {alert_window!r}")
        self.path = os.fspath(path)
        self.dropped_records = 0
        self._alert = alert
        self._alert_threshold = alert_threshold
        self._alerted = False
        self._recent_failures: deque[bool] = deque(maxlen=alert_window)
        spellings = {text for secret in secrets for text in _encodings(secret)}
        self._secrets = sorted(spellings, key=len, reverse=True)  # the longest is replaced first
        self._hints = _HINTS + tuple(json.dumps(text)[1:-1].lower() for text in self._secrets)
        self._successful = 0
        self._failed = 0
        self._errors_by_type: dict[str, int] = {}
        self._last_line_incomplete = False
        self._count_lock = threading.Lock()
        self._file_lock = threading.Lock()

    def log_request(
        self,
        type: str,
        success: bool,
        error: BaseException | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Record one request: its ``type`` ("chat"), its outcome, and a context of your own.

        Raises nothing; what is not JSON in ``context`` is written as text.
        """
        record = {
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "type": type,
            "success": success,
            "error": None if error is None else _error_fields(error),
            "context": {} if context is None else context,
        }
        line = self._to_json(record) + "\n"
        with self._count_lock:
            failure_rate = self._count(success, error)
        with self._file_lock:
            trouble = self._append(line.encode("ascii"))
        if trouble:
            _print_err(f"The log {self.path} can't be written ({trouble}): records are lost.")
        if failure_rate is not None and self._alert:
            try:
                self._alert(failure_rate)
            except Exception as broken:
                _print_err(f"The alert failed ({_class_name(broken)}).")

    def metrics(self) -> Metrics:
        """Return a consistent copy of the counts."""
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
        """Write the line. Return what is wrong the first time that it fails, else ''."""
        if self._last_line_incomplete:
            line = b"\n" + line  # a full disk cut the last one short
        try:
            # Opened for each record, so that a rotated or deleted log is simply created again.
            file = os.open(self.path, APPEND, 0o666)
            try:
                written = os.write(file, line)
            finally:
                os.close(file)
            if written == len(line):
                self._last_line_incomplete = False
                return ""
            self._last_line_incomplete = written > 0 or self._last_line_incomplete
            trouble = "the disk is full"
        except (OSError, ValueError) as error:
            trouble = getattr(error, "strerror", None) or str(error)
        self.dropped_records += 1
        return trouble if self.dropped_records == 1 else ""

    def _to_json(self, record: dict[str, Any]) -> str:
        """Return the record as one line of ASCII, without secrets."""
        with contextlib.suppress(Exception):
            line = _strictly_json(record)
            lowered = line.lower()
            if not any(hint in lowered for hint in self._hints):
                return line  # as nearly all are: plain JSON that holds nothing to hide
        return json.dumps(self._clean(record))

    def _clean(self, value: Any, depth: int = 0) -> Any:
        """Return the value as JSON can carry it, without secrets; the rest as text."""
        try:
            if value is None or isinstance(value, bool):
                return value
            if isinstance(value, int) and value.bit_length() <= 1024:
                return int(value)
            if isinstance(value, float) and math.isfinite(value):
                return float(value)
            if isinstance(value, Mapping) and depth < MAX_DEPTH:
                return dict(self._clean_item(*item, depth + 1) for item in value.items())
            if isinstance(value, (list, tuple, set, frozenset)) and depth < MAX_DEPTH:
                return [self._clean(item, depth + 1) for item in value]
            return self._redacted(value if isinstance(value, str) else _safe_str(value))
        except Exception:
            return UNREADABLE

    def _clean_item(self, key: Any, value: Any, depth: int) -> tuple[str, Any]:
        name, cleaned = _safe_str(key), self._clean(value, depth)
        if _NAMES_A_SECRET.search(name) and cleaned not in (None, False, True, ""):
            cleaned = REDACTED
        return self._redacted(name), cleaned

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return _SECRET_IN_TEXT.sub(rf"\1\2{REDACTED}", text)


def _error_fields(error: BaseException) -> dict[str, Any]:
    """Return the class, the text, and what the API's support asks for."""
    described: dict[str, Any] = {"class": _class_name(error), "message": _safe_str(error)}
    for name in ("status_code", "request_id"):
        try:
            described[name] = getattr(error, name, None)
        except Exception:
            described[name] = None
    return described


def _encodings(secret: str) -> set[str]:
    """Return how a secret may look: as it is, in a repr, in JSON, in JSON within JSON."""
    json_text = json.dumps(secret)
    inner = {repr(secret)[1:-1], ascii(secret)[1:-1], json_text[1:-1], json.dumps(json_text)[3:-3]}
    return {text for text in {secret, *inner} if text}


def _class_name(error: BaseException) -> str:
    return error.__class__.__name__


def _safe_str(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return UNREADABLE


def _print_err(sentence: str) -> None:
    """Print on stderr, if there is one: a log must not fail for lack of a console."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(sentence, file=sys.stderr)
