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

ErrorLogger comes first, then what it consists of: RequestCounter counts, LineWriter appends to
the file, and Redactor hides secrets, which are listed in a table.

After "Fast and flexible observability with canonical log lines" (Stripe, 2019), which puts
all facts about a request into one line. The format is JSON Lines (jsonlines.org).
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import os
import re
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple, TypedDict
from urllib.parse import quote, quote_plus

ERROR_ATTRIBUTES = ("status_code", "request_id", "gave_up", "last_failure")  # of an error
MAX_ERROR_TYPES = 100  # counted separately; any further type counts as "other"


class Metrics(TypedDict):
    """Counts since the logger was created; ``success_rate`` is a percentage."""

    total_requests: int
    successful: int
    failed: int
    errors_by_type: dict[str, int]
    success_rate: float


class ErrorLogger:
    """Append records to ``path``, one JSON object per line.

    Each record is appended by a single write. POSIX systems do not mix such writes to a file on
    a local disk, so many threads and processes may share it. A log that can't be written never
    breaks the caller: the record is counted in ``dropped_records``, and one message goes to
    stderr. A relative path is resolved once, so ``os.chdir`` does not move the log.

    The strings in ``secrets`` are redacted wherever they occur, also URL-encoded or in Base64.
    So are the texts in the table TEXTS_WITH_SECRETS (bearer tokens, passwords in URLs...), and
    any field whose name looks like a secret (api_key, password...).

    ``alert(failure_rate)`` is called once when the failure rate of the last ``alert_window``
    requests rises above ``alert_threshold`` (0 to 1). It can be called again after the rate
    has fallen back. Until ``alert_window`` requests have been made, it is not called.

    Thread-safe. A signal handler may log, and so may a child process after a fork. Raises
    ValueError for a wrong argument, and TypeError for an async ``alert``.
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
        self.path = os.path.abspath(path)
        self._alert = _checked_alert(alert)
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

        A value in ``context`` that is not valid JSON is written as text. Raises nothing, but lets
        through a KeyboardInterrupt or SystemExit of the alert.
        """
        record = Fields(
            timestamp=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            type=type,
            success=success,
            error=None if error is None else _error_fields(error),
            context={} if context is None else context,
        )
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


class Fields(dict[str, Any]):
    """Fields of a record whose names are fixed: a secret can only be in their values."""


def _error_fields(error: BaseException) -> Fields:
    """Return an error's class, its message and the ERROR_ATTRIBUTES, None where it lacks one."""
    fields = Fields({"class": _class_name(error), "message": _safe_str(error)})
    for name in ERROR_ATTRIBUTES:
        try:
            fields[name] = getattr(error, name, None)
        except Exception:
            fields[name] = None
    return fields


def _class_name(error: BaseException) -> str:
    return type(error).__name__


def _safe_str(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return UNREADABLE


def _print_err(sentence: str) -> None:
    """Print a sentence on stderr. Do nothing if that fails, or if there is no stderr."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{sentence}\n")


def _checked_alert(alert: Callable[[float], object] | None) -> Callable[[float], object] | None:
    if not callable(alert) and alert is not None:
        raise ValueError(f"alert must be a function, got {alert!r}")
    if any(map(inspect.iscoroutinefunction, (alert, type(alert).__call__))):
        raise TypeError("alert must be a plain function, got an async one: it would never run")
    return alert


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
        self.lock = threading.RLock()  # a signal handler may log while its thread does
        _instances.add(self)

    def count(self, success: bool, error: BaseException | None) -> float | None:
        """Count one request. Return the failure rate if it just rose above the threshold."""
        with self.lock:
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
        with self.lock:
            total = self._successful + self._failed
            return {
                "total_requests": total,
                "successful": self._successful,
                "failed": self._failed,
                "errors_by_type": dict(self._errors_by_type),
                "success_rate": round(100 * self._successful / total, 2) if total else 0.0,
            }


APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT
APPEND |= getattr(os, "O_BINARY", 0)  # on Windows
APPEND |= getattr(os, "O_NONBLOCK", 0)  # a named pipe that nobody reads is an error, not a wait


class LineWriter:
    """Append lines of ASCII to a file, each with one write. Thread-safe."""

    def __init__(self, path: str) -> None:
        self.dropped_records = 0
        self._path = path
        self._end = -1  # where our last line ended in the file; -1 if it was cut short
        self.lock = threading.RLock()
        _instances.add(self)

    def append(self, line: str) -> str:
        """Write the line. Return the reason if this is the first failure, otherwise ""."""
        with self.lock:
            problem = self._write(line.encode("ascii") + b"\n")
            if problem:
                self.dropped_records += 1
            return problem if self.dropped_records == 1 else ""

    def _write(self, line: bytes) -> str:
        try:
            # The file is opened for each record: if it was rotated or deleted, it is recreated.
            file = os.open(self._path, APPEND, 0o666)
            try:
                written = os.write(file, line)
                if self._continues_a_cut_line(file, written):
                    written = os.write(file, line)
            finally:
                os.close(file)
        except (OSError, ValueError) as error:
            return getattr(error, "strerror", None) or str(error)
        if written < len(line):
            self._end = -1
            return "the disk is full"
        return ""

    def _continues_a_cut_line(self, file: int, written: int) -> bool:
        """Return True if a crash or a full disk had cut the line before the one just written."""
        with contextlib.suppress(OSError, ValueError):  # a pipe, the first line, not readable
            end_of_last, self._end = self._end, os.lseek(file, 0, os.SEEK_CUR)
            start = self._end - written
            if start != end_of_last:  # another process has written, or this is our first line
                with open(self._path, "rb") as log:
                    log.seek(start - 1)
                    return log.read(1) not in (b"", b"\n")
        return False


_instances: weakref.WeakSet[RequestCounter | LineWriter] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Renew the locks: the child lacks the threads that held them."""
    for each in _instances:
        each.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# What is a secret: a list of names, and a table of texts.

SECRET_NAMES = (
    "passw(?:or)?d", "passphrase", "secret", "authorization", "cookie", "credential",
    "(?:api|access|private)[ _-]?key", "(?<![a-z])id[_-]?token",
    "(?:api|access|auth|bearer|refresh|security|session)[ _-]?token",
)  # fmt: skip
SECRET_NAME = "|".join(SECRET_NAMES)
SECRET_FIELD = re.compile(f"{SECRET_NAME}|^token$", re.IGNORECASE)
SECRET_FIELD_OR_VALUE = re.compile(f"{SECRET_NAME}|^token$|^value$", re.IGNORECASE)
SECRET_OPTION = re.compile(f"(?s)^-.*(?:{SECRET_NAME})", re.IGNORECASE)

NAME = rf"""(?:{SECRET_NAME}|(?<=["'])token)[\w-]{{0,40}}"""
QUOTE = r"""\\*["']"""  # in JSON within JSON, backslashes come before a quote
OPEN = r"""(?:b?\\*(?P<quote>["']))?"""
WORD = r"""[^\s"'\\,;&)}\]]+"""
VALUE = rf"""(?(quote)(?:(?!(?P=quote))[^\\]|\\.)+|{WORD})"""  # up to the closing quote, or a word


class TextWithSecret(NamedTuple):
    """An example (``{}`` is the secret), the pattern of what precedes a secret, and its own."""

    example: str
    before: str
    secret: str


TEXTS_WITH_SECRETS = (
    TextWithSecret("Bearer {}", r"\bbearer\s+", WORD),
    TextWithSecret("Basic {}", r"\bbasic\s+", r"(?=[a-z]*[0-9+/=])[a-z0-9+/]{8,}=*"),
    TextWithSecret("Cookie: a=1; b={}", r"\b(?:authorization|cookie):\s*", r"""[^\s"'].*"""),
    TextWithSecret('api_key = "{}"', rf"{NAME}(?:{QUOTE})?\s*(?:[:=]|%3D)\s*{OPEN}", VALUE),
    TextWithSecret("API key provided: {}", rf"{NAME} (?:is|provided):?\s*{OPEN}", VALUE),
    TextWithSecret("('x-api-key', '{}')", rf"{NAME}{QUOTE},\s*(?!{QUOTE}value){OPEN}", VALUE),
    TextWithSecret(
        '{"name": "X-Api-Key", "value": "{}"}',
        rf"{NAME}{QUOTE},\s*{QUOTE}value{QUOTE}:\s*{OPEN}",
        VALUE,
    ),
    TextWithSecret("--api-key {}", rf"(?<![\w-])--[\w-]{{0,40}}{NAME}\s+{OPEN}", VALUE),
    TextWithSecret("?key={}", r"[?&](?:key|token|sig|signature)=", r"""[^\s"'&#]+"""),
    TextWithSecret("https://user:{}@host", r"://[^\s/:@]*:(?!\d+/)", r"(?:(?!://)\S)+(?=@)"),
    TextWithSecret("https://{}@host", r"://", r"(?:(?!://)[^\s/])+(?=@)"),
    TextWithSecret("sk-proj-{}", r"\bsk[-_]", r"[\w-]{16,}"),  # OpenAI, Stripe
    TextWithSecret("AIza{}", r"\bAIza", r"[\w-]{20,}"),  # Google
    TextWithSecret("ghp_{}", r"\b(?:ghp|github_pat|hf)_", r"\w{20,}"),  # GitHub, Hugging Face
    TextWithSecret("glpat-{}", r"\bglpat-", r"[\w-]{20,}"),  # GitLab
    TextWithSecret("xoxb-{}", r"\bxox[a-z]-", r"[\w-]{10,}"),  # Slack
    TextWithSecret("eyJ{}.eyJ{}.{}", r"(?<![\w-])eyJ", r"[\w-]+(?:\.[\w-]+)+"),  # JSON Web Token
    TextWithSecret(
        "-----BEGIN PRIVATE KEY-----\n{}",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
        r"(?s:.+?)(?=-----END|\Z)",
    ),
)
PATTERNS = [
    re.compile(rf"(?P<before>{row.before})(?!\[redacted)(?:{row.secret})", re.IGNORECASE | re.ASCII)
    for row in TEXTS_WITH_SECRETS
]
# A lowercase text without any of these matches no pattern and is not the name of a secret.
HINTS = (
    "key", "token", "pass", "secret", "authorization", "cookie", "credential", "bearer", "basic",
    "sig", "://", "sk-", "sk_", "aiza", "ghp_", "github_pat_", "hf_", "glpat-", "xox", "eyj",
)  # fmt: skip

NO_SECRETS = (None, False, True, "")  # values that say only whether there is a secret
REDACTED = "[redacted]"
UNREADABLE = "<unreadable>"
OMITTED = "..."  # in place of a container within itself, or beyond the limits
MAX_DEPTH = 8  # levels, with the record itself
MAX_CONTAINERS = 1000  # in one record
CONTAINERS = (Mapping, list, tuple, set, frozenset)

_to_json = json.JSONEncoder(default=str).encode  # an object becomes text
_from_json = json.JSONDecoder(parse_constant=str).decode  # NaN becomes text, too
_to_strict_json = json.JSONEncoder(allow_nan=False).encode


class Redactor:
    """Turn any value into JSON without secrets. Thread-safe.

    Raises ValueError for a secret that is not a non-empty string.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in _checked(secrets) for form in _encodings(secret)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._given = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._hints = (*HINTS, *(json.dumps(form)[1:-1].lower() for form in forms))

    def to_json(self, value: Any) -> str:
        """Return the value as one line of ASCII JSON; anything that is not valid JSON is text."""
        try:
            line = _to_strict_json(value)
            may_hold_a_secret = any(map(line.lower().__contains__, self._hints))
        except Exception:  # it is not JSON as it stands
            may_hold_a_secret = True
        return json.dumps(_Copier(self.redact).copy(value)) if may_hold_a_secret else line

    def redact(self, text: str) -> str:
        """Return the text with every secret in it replaced."""
        text = self._given.sub(REDACTED, text)
        for pattern in PATTERNS:
            text = pattern.sub(rf"\g<before>{REDACTED}", text)
        return text


class _Copier:
    """Makes one redacted copy of a value."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._containers = 0

    def copy(self, value: Any, is_secret: bool = False, around: tuple[int, ...] = ()) -> Any:
        """Copy a value. ``around`` holds the IDs of the containers that it is in."""
        try:
            copied = self._copy(value, around)
        except Exception:
            copied = UNREADABLE
        if is_secret and copied not in NO_SECRETS:
            return REDACTED
        return copied

    def _copy(self, value: Any, around: tuple[int, ...]) -> Any:
        if isinstance(value, CONTAINERS):
            return self._copy_container(value, around)
        plain = _from_json(_to_json(value))
        return self._redact(plain) if isinstance(plain, str) else plain

    def _copy_container(self, value: Any, around: tuple[int, ...]) -> Any:
        self._containers += 1
        too_much = len(around) >= MAX_DEPTH or self._containers > MAX_CONTAINERS
        if too_much or id(value) in around:
            return OMITTED
        copy = self._copy_mapping if isinstance(value, Mapping) else self._copy_items
        return copy(value, (*around, id(value)))

    def _copy_mapping(self, mapping: Mapping[Any, Any], around: tuple[int, ...]) -> dict[str, Any]:
        """Copy a mapping; in ``{"name": "api_key", "value": x}``, x is a secret."""
        secret = SECRET_FIELD
        if "value" in mapping and any(map(secret.search, map(_as_name, mapping.values()))):
            secret = SECRET_FIELD_OR_VALUE
        redact_name = str if isinstance(mapping, Fields) else self._redact
        copied = {}
        for key, item in mapping.items():
            name = _safe_str(key)
            copied[redact_name(name)] = self.copy(item, bool(secret.search(name)), around)
        return copied

    def _copy_items(self, items: Iterable[Any], around: tuple[int, ...]) -> list[Any]:
        """Copy a sequence; in ``("api_key", x)`` and ``["--api-key", x]``, x is a secret."""
        items = list(items)
        secret = SECRET_FIELD if len(items) == 2 else SECRET_OPTION
        names = ["", *map(_as_name, items)]  # what stands before each item
        return [
            self.copy(item, bool(secret.search(name)), around)
            for name, item in zip(names, items, strict=False)
        ]


def _as_name(value: Any) -> str:
    """Return the beginning of a text, where the name of a secret may be; "" for anything else."""
    return _safe_str(value[:60]) if isinstance(value, (str, bytes)) else ""


def _checked(secrets: Iterable[str]) -> list[str]:
    given = [""] if isinstance(secrets, str) else list(secrets)
    if not all(isinstance(secret, str) and secret for secret in given):
        raise ValueError(
            "secrets must be a list of non-empty strings (what came may be secret: not shown)"
        )
    return given


def _encodings(secret: str) -> set[str]:
    """Return the forms that a secret may take: in code, JSON, JSON within JSON, URLs, Base64."""
    in_json = json.dumps(secret)
    in_url = quote(secret, safe="", errors="replace")
    return {
        secret,
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
        in_json[1:-1],
        in_json[1:-1].replace("/", "\\/"),
        json.dumps(in_json)[3:-3],
        in_url,
        re.sub("%..", lambda byte: byte[0].lower(), in_url),
        quote(secret, errors="replace"),
        quote_plus(secret, errors="replace"),
        *_base64_forms(secret.encode("utf-8", "replace")),
    }


def _base64_forms(secret: bytes) -> list[str]:
    """Return the Base64 forms of a secret, whatever text stands before and after it."""
    forms = []
    for bytes_before, unsure in ((0, 0), (1, 2), (2, 3)):  # characters that depend on them
        encoded = base64.b64encode(bytes(bytes_before) + secret).decode()
        form = encoded[unsure : (bytes_before + len(secret)) * 8 // 6]
        if len(form) >= 6:  # a shorter one would occur by chance
            forms += [form, form.replace("+", "-").replace("/", "_")]
    return forms
