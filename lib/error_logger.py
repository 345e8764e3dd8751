# SPDX-License-Identifier: MIT-0
"""Log each call as one line of JSON, count the failures, and alert when too many calls fail.

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

There are four small classes: Redactor hides secrets, LineWriter appends to the file,
RequestCounter counts, and ErrorLogger combines the three.

After "Fast and flexible observability with canonical log lines" (Stripe, 2019), which puts
all facts about a request into one line. The format is JSON Lines (jsonlines.org).
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

APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)  # on Windows
MAX_ERROR_TYPES = 100  # counted separately; any further type counts as "other"
MAX_DEPTH = 8  # of nested context; anything deeper is written as text

REDACTED = "[redacted]"
UNREADABLE = "<unreadable>"

SECRET_NAMES = (
    "passwd", "password", "secret", "authorization", "api[_-]?key", "private[_-]?key",
    "access[_-]?token", "auth[_-]?token", "bearer[_-]?token", "refresh[_-]?token",
)  # fmt: skip
SECRET_NAME = "|".join(SECRET_NAMES)
SECRET_FIELD = re.compile(rf"{SECRET_NAME}|^token$", re.IGNORECASE | re.ASCII)
_ASSIGNED = rf"""(?:{SECRET_NAME})[\w-]{{0,40}}[\\"']*\s*[:=]\s*"""
_SCHEME = r"(?:(?:bearer|basic|digest|token)\s+)?"
# In text, a secret is whatever follows one of these prefixes. A quoted one ends at the next quote
# like the first: in JSON within JSON, with as many backslashes before it.
SECRETS_IN_TEXT = [
    re.compile(rf"({prefix}){secret}", re.IGNORECASE | re.DOTALL)
    for prefix, secret in [
        (rf"""{_ASSIGNED}b?(\\*["']){_SCHEME}""", r"""(?:(?!(?<!\\)\2).)+"""),  # api_key="..."
        (rf"""{_ASSIGNED}{_SCHEME}|\bbearer\s+""", r"""[^\s"'\\,;&)}}\]]+"""),  # api_key=...
        (r"://", r"""[^\s"'/]+(?=@)"""),  # https://user:password@host
    ]
]
# A quick check: a line in lower case that does not match this matches no pattern above.
SECRET_HINT = re.compile(rf'{SECRET_NAME}|"token"|bearer|://')

_strictly_json = json.JSONEncoder(allow_nan=False).encode


class Metrics(TypedDict):
    """Counts since the logger was created; ``success_rate`` is a percentage."""

    total_requests: int
    successful: int
    failed: int
    errors_by_type: dict[str, int]
    success_rate: float


class ErrorLogger:
    """Append records to ``path``, one JSON object per line.

    Each record is appended by a single write. POSIX systems do not mix such writes, so many
    threads and processes may share a file. A log that can't be written never breaks the
    caller: the record is counted in ``dropped_records``, and one message goes to stderr. The
    strings in ``secrets`` are redacted wherever they occur. So are bearer tokens, passwords
    in URLs, and any field whose name looks like a secret (api_key, password...).

    ``alert(failure_rate)`` is called once when the failure rate of the last ``alert_window``
    requests rises above ``alert_threshold`` (0 to 1). It can be called again after the rate
    has fallen back. Until ``alert_window`` requests have been made, it is not called.

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
        self.path = os.fspath(path)
        self._alert = alert
        self._counter = RequestCounter(alert_threshold, alert_window)
        self._redactor = Redactor(secrets)
        self._writer = LineWriter(self.path)

    def log_request(
        self,
        type: str,
        success: bool,
        error: BaseException | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Record one request: its ``type`` ("chat"), its outcome, and any context you add.

        Raises nothing. A value in ``context`` that is not valid JSON is written as text.
        """
        record = {
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "type": type,
            "success": success,
            "error": None if error is None else _error_fields(error),
            "context": {} if context is None else context,
        }
        line = self._redactor.to_json(record)
        failure_rate = self._counter.count(success, error)
        problem = self._writer.append(line)
        if problem:
            _print_err(f"The log {self.path} can't be written ({problem}): records are lost.")
        if failure_rate is not None and self._alert:
            try:
                self._alert(failure_rate)
            except Exception as alert_error:
                _print_err(f"The alert failed ({_class_name(alert_error)}).")

    @property
    def dropped_records(self) -> int:
        """The number of records that could not be written."""
        return self._writer.dropped_records

    def metrics(self) -> Metrics:
        """Return a consistent copy of the counts."""
        return self._counter.metrics()

    def __repr__(self) -> str:
        return f"ErrorLogger({self.path!r}, dropped_records={self.dropped_records})"


class Redactor:
    """Turn any value into JSON without secrets. Thread-safe."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        encodings = {text for secret in secrets for text in _encodings(secret)}
        self._secrets = sorted(encodings, key=len, reverse=True)  # the longest is replaced first
        self._secrets_in_json = [json.dumps(text)[1:-1] for text in self._secrets]

    def to_json(self, value: Any) -> str:
        """Return the value as one line of ASCII JSON, redacted."""
        with contextlib.suppress(Exception):
            line = _strictly_json(value)
            hint = SECRET_HINT.search(line.lower())
            if not hint and not any(secret in line for secret in self._secrets_in_json):
                return line  # plain JSON without secrets needs no copy
        return json.dumps(self.clean(value))

    def clean(self, value: Any, depth: int = 0) -> Any:
        """Return a redacted copy of the value; anything that is not valid JSON becomes text."""
        try:
            if isinstance(value, str):
                return self._redact(value)
            if value is None or isinstance(value, bool):
                return value
            if isinstance(value, int) and value.bit_length() <= 1024:
                return int(value)
            if isinstance(value, float) and math.isfinite(value):
                return float(value)
            if isinstance(value, Mapping) and depth < MAX_DEPTH:
                return dict(self._clean_item(*item, depth + 1) for item in value.items())
            if isinstance(value, (list, tuple, set, frozenset)) and depth < MAX_DEPTH:
                return [self.clean(item, depth + 1) for item in value]
            return self._redact(_safe_str(value))
        except Exception:
            return UNREADABLE

    def _clean_item(self, key: Any, value: Any, depth: int) -> tuple[str, Any]:
        name, cleaned = _safe_str(key), self.clean(value, depth)
        if SECRET_FIELD.search(name) and cleaned not in (None, False, True, ""):
            cleaned = REDACTED
        return self._redact(name), cleaned

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        for pattern in SECRETS_IN_TEXT:
            text = pattern.sub(rf"\1{REDACTED}", text)
        return text


class LineWriter:
    """Append lines of ASCII to a file, each with one write. Thread-safe."""

    def __init__(self, path: str) -> None:
        self.dropped_records = 0
        self._path = path
        self._last_line_incomplete = False
        self._lock = threading.Lock()

    def append(self, line: str) -> str:
        """Write the line. Return the reason if this is the first failure, otherwise ""."""
        with self._lock:
            problem = self._write(line.encode("ascii") + b"\n")
            if not problem:
                return ""
            self.dropped_records += 1
            return problem if self.dropped_records == 1 else ""

    def _write(self, line: bytes) -> str:
        if self._last_line_incomplete:
            line = b"\n" + line  # the disk was full, so the last line was cut short
        try:
            # The file is opened for each record: if it was rotated or deleted, it is recreated.
            file = os.open(self._path, APPEND, 0o666)
            try:
                written = os.write(file, line)
            finally:
                os.close(file)
        except (OSError, ValueError) as error:
            return getattr(error, "strerror", None) or str(error)
        if written == len(line):
            self._last_line_incomplete = False
            return ""
        self._last_line_incomplete = written > 0 or self._last_line_incomplete
        return "the disk is full"


class RequestCounter:
    """Count requests and errors, and detect a rise in the failure rate. Thread-safe."""

    def __init__(self, alert_threshold: float, alert_window: int) -> None:
        if type(alert_threshold) not in (int, float) or not 0 <= alert_threshold < 1:
            raise ValueError(
                f"alert_threshold must be a number >= 0 and < 1, got {alert_threshold!r}"
            )
        if type(alert_window) is not int or alert_window < 1:
            raise ValueError(f"alert_window must be an integer >= 1, got {alert_window!r}")
        self._alert_threshold = alert_threshold
        self._above_threshold = False
        self._recent_failures: deque[bool] = deque(maxlen=alert_window)
        self._successful = 0
        self._failed = 0
        self._errors_by_type: dict[str, int] = {}
        self._lock = threading.Lock()

    def count(self, success: bool, error: BaseException | None) -> float | None:
        """Count one request. Return the failure rate if it just rose above the threshold."""
        with self._lock:
            if success:
                self._successful += 1
            else:
                self._failed += 1
                if error is not None:
                    self._count_type(_class_name(error))
            recent = self._recent_failures
            recent.append(not success)
            rate, was_above = sum(recent) / len(recent), self._above_threshold
            window_is_full = len(recent) == recent.maxlen
            self._above_threshold = window_is_full and rate > self._alert_threshold
            return rate if self._above_threshold and not was_above else None

    def _count_type(self, name: str) -> None:
        counts = self._errors_by_type
        if name not in counts and len(counts) >= MAX_ERROR_TYPES:
            name = "other"
        counts[name] = counts.get(name, 0) + 1

    def metrics(self) -> Metrics:
        """Return a consistent copy of the counts."""
        with self._lock:
            total = self._successful + self._failed
            return {
                "total_requests": total,
                "successful": self._successful,
                "failed": self._failed,
                "errors_by_type": dict(self._errors_by_type),
                "success_rate": round(100 * self._successful / total, 2) if total else 0.0,
            }


def _error_fields(error: BaseException) -> dict[str, Any]:
    """Return an error's class, message, HTTP status and request ID (for the API's support)."""
    fields: dict[str, Any] = {"class": _class_name(error), "message": _safe_str(error)}
    for name in ("status_code", "request_id"):
        try:
            fields[name] = getattr(error, name, None)
        except Exception:
            fields[name] = None
    return fields


def _encodings(secret: str) -> set[str]:
    """Return the forms a secret may take: plain, in a repr, in JSON, in JSON within JSON."""
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
    """Print a sentence on stderr. Do nothing if that fails, or if there is no stderr."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(sentence, file=sys.stderr)
