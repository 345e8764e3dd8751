"""lib/error_logger.py: whole lines, right counts, no secrets, and no harm to the caller."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from datetime import datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import Mock
from urllib.parse import quote, quote_plus

import pytest

from lib.error_logger import TEXTS_WITH_SECRETS, ErrorLogger, Metrics
from lib.errors import RateLimitError
from support import (
    in_forked_child,
    interrupt_everywhere,
    returns_when_interrupted,
    run_in_threads,
)

SECRET = "Qd51d0c0deZx9Rk77UwPv3"
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX system")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "errors.log"


def records_in(path: Path) -> list[dict[str, Any]]:
    """Every line of the log, each of which must be a JSON object in plain ASCII."""

    def reject(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    *lines, end = path.read_bytes().split(b"\n")
    assert end == b""
    assert all(0x20 <= byte <= 0x7E for line in lines for byte in line)
    return [json.loads(line, parse_constant=reject) for line in lines]


def types_in(path: Path) -> list[str]:
    return [record["type"] for record in records_in(path)]


def logged(path: Path, *arguments: Any, **settings: Any) -> dict[str, Any]:
    """What ``log_request(*arguments)`` writes."""
    ErrorLogger(path, **settings).log_request(*arguments)
    return records_in(path)[-1]


def context_of(path: Path, context: Any, **settings: Any) -> Any:
    return logged(path, "chat", True, None, context, **settings)["context"]


def log_outcomes(logger: ErrorLogger, outcomes: str) -> None:
    """Log a request for each letter: f for a failure, s for a success."""
    for outcome in outcomes:
        logger.log_request("chat", outcome == "s")


def with_attributes(**attributes: object) -> Exception:
    error = Exception("odd")
    vars(error).update(attributes)
    return error


class UnprintableError(Exception):
    """Its text and its attributes can't be read."""

    def fail(self, *_: object) -> Any:
        raise RuntimeError("not now")

    status_code = property(fail)
    __str__ = __getattr__ = fail


class UnusableMapping(dict[str, Any]):
    items = UnprintableError.fail


DEEP: list[object] = []
for _ in range(50_000):
    DEEP = [DEEP]

ANY_VALUES: list[Any] = [
    'a\nb\r\n{"type": "forged"}\u2028\x85\x00\x1b[31m\x7f\ud800\U0001f600"\'\\',
    float("nan"),
    [{"a": float("-inf")}],
    b"\xff\n",
    {1},
    object(),
    UnprintableError(),
    DEEP,
    MappingProxyType({(1, 2): 3, None: 4, 5: 6}),
    10**5000,
    UnusableMapping(a=1),
]


class TestRecord:
    def test_it_says_when_what_and_how_it_ended(self, path: Path) -> None:
        error = RateLimitError(429, "Rate limit exceeded", request_id="abc")
        error.gave_up = "attempts exhausted"  # type: ignore[attr-defined]
        record = logged(path, "chat", False, error, {"model": "mistral-small-latest"})
        written = datetime.fromisoformat(record.pop("timestamp"))
        assert written.utcoffset() == timedelta(0)
        assert abs(datetime.now(timezone.utc) - written) < timedelta(minutes=1)
        assert record == {
            "type": "chat",
            "success": False,
            "error": {
                "class": "RateLimitError",
                "message": "Rate limit exceeded",
                "status_code": 429,
                "request_id": "abc",
                "gave_up": "attempts exhausted",
                "last_failure": None,
            },
            "context": {"model": "mistral-small-latest"},
        }

    def test_a_success_has_no_error_and_a_missing_context_is_empty(self, path: Path) -> None:
        record = logged(path, "chat", True)
        assert (record["success"], record["error"], record["context"]) == (True, None, {})

    @pytest.mark.parametrize("secrets", [[], ["odd"]], ids=["plain", "redacted"])
    def test_json_values_in_the_context_are_kept(self, path: Path, secrets: list[str]) -> None:
        context = {"text": "é\u2028\U0001f600\n\"'\\", "list": [1, 2.5, None, True], "a": {"b": {}}}
        assert logged(path, "odd", True, None, context, secrets=secrets)["context"] == context

    def test_no_value_breaks_a_line_or_the_caller(self, path: Path) -> None:
        logger = ErrorLogger(path)
        for value in ANY_VALUES:
            logger.log_request("chat", True, None, {"value": value, "list": [value]})
            logger.log_request("chat", False, Exception(value))
            logger.log_request("chat", False, with_attributes(status_code=value, request_id=value))
            logger.log_request(value, True, None, value)
        assert len(records_in(path)) == 4 * len(ANY_VALUES)

    def test_an_error_that_cannot_be_read_is_logged_by_its_class(self, path: Path) -> None:
        error = logged(path, "chat", False, UnprintableError())["error"]
        assert list(error.values()) == ["UnprintableError", "<unreadable>", None, None, None, None]


class TestCycles:
    def test_a_container_within_itself_is_written_once(self, path: Path) -> None:
        tree: dict[str, Any] = {"name": "root", "children": []}
        tree["children"] = [{"name": "leaf", "parent": tree}, {"name": "leaf", "parent": tree}]
        leaf = {"name": "leaf", "parent": "..."}
        assert context_of(path, tree) == {"name": "root", "children": [leaf, leaf]}

    def test_one_that_occurs_twice_is_written_twice(self, path: Path) -> None:
        shared, written = [object], [str(object)]
        assert context_of(path, {"a": shared, "b": shared}) == {"a": written, "b": written}

    def test_nodes_that_all_know_each_other_take_a_line_of_bounded_length(self, path: Path) -> None:
        nodes: list[dict[str, Any]] = [{} for _ in range(30)]
        for node in nodes:
            node["peers"] = list(nodes)
        context_of(path, {"nodes": nodes})
        assert path.stat().st_size < 100_000

    def test_what_is_nested_deeper_than_eight_levels_is_left_out(self, path: Path) -> None:
        deep: dict[str, Any] = {}
        for _ in range(20):
            deep = {"a": deep}
        written = context_of(path, {"a": deep, "object": object()})  # the record is the first one
        for _ in range(7):
            written = written["a"]
        assert written == "..."


class TestManyWriters:
    def test_each_record_is_appended_by_one_write(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """POSIX keeps it whole among the writes of other threads and processes."""
        written, write = list[bytes](), os.write

        def noted_write(file: int, data: bytes) -> int:
            written.append(data)
            return write(file, data)

        monkeypatch.setattr(os, "write", noted_write)
        loggers = [ErrorLogger(path), ErrorLogger(path)]  # as two processes would have
        for number in range(6):
            loggers[number % 2].log_request(str(number), True)
        assert types_in(path) == list("012345")
        assert path.read_bytes().splitlines(keepends=True) == written

    @on_posix
    def test_processes_that_share_a_file_lose_no_line(self, path: Path) -> None:
        logger = ErrorLogger(path)

        def write_beside_a_child() -> None:
            if child := os.fork():
                write()
                os.waitpid(child, 0)
            else:
                write()
                os._exit(0)

        def write() -> None:
            for number in range(200):
                logger.log_request(str(number), True)

        in_forked_child(write_beside_a_child)
        assert sorted(types_in(path)) == sorted([str(number) for number in range(200)] * 2)


class TestPath:
    def test_a_change_of_the_working_directory_does_not_move_the_log(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        logger = ErrorLogger()
        monkeypatch.chdir("elsewhere")
        logger.log_request("chat", True)
        assert types_in(tmp_path / "mistral_errors.log") == ["chat"]
        assert logger.path == str(tmp_path / "mistral_errors.log")

    @on_posix
    def test_a_named_pipe_gets_the_records_only_while_it_is_read(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        os.mkfifo(pipe := tmp_path / "pipe")
        logger = ErrorLogger(pipe)
        thread = threading.Thread(target=log_outcomes, args=(logger, "s"), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        assert logger.dropped_records == 1
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        log_outcomes(logger, "f")
        line = os.read(reader, 1000)
        os.close(reader)
        assert json.loads(line)["success"] is False
        assert capfd.readouterr().err.count("can't be written") == 1

    def test_a_log_that_was_rotated_away_is_created_again(self, path: Path) -> None:
        logger = ErrorLogger(path)
        logger.log_request("first", True)
        path.rename(rotated := path.with_suffix(".1"))
        logger.log_request("second", True)
        assert types_in(rotated) + types_in(path) == ["first", "second"]


class TestCutLine:
    """A line that is cut short does not swallow the record after it."""

    def test_one_of_a_process_that_crashed(self, path: Path) -> None:
        path.write_bytes(b'{"type": "cut')
        logger = ErrorLogger(path)
        log_outcomes(logger, "sf")
        with path.open("ab") as other_process:
            other_process.write(b'{"type": "cut')
        log_outcomes(logger, "f")
        whole = [line for line in path.read_text().splitlines() if not line.startswith('{"type')]
        assert [json.loads(line)["success"] for line in whole] == [True, False, False]

    def test_one_of_our_own_on_a_full_disk(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        logger, write = ErrorLogger(path), os.write
        logger.log_request("before", True)
        with monkeypatch.context() as disk:
            disk.setattr(os, "write", lambda file, line: 0)
            logger.log_request("dropped", True)
            disk.setattr(os, "write", lambda file, line: write(file, line[:1]))
            logger.log_request("cut", True)
        logger.log_request("after", True)
        logger.log_request("later", True)
        whole = [line for line in path.read_text().splitlines() if not line.startswith("{{")]
        assert [json.loads(line)["type"] for line in whole] == ["before", "after", "later"]
        assert logger.dropped_records == 2
        assert "the disk is full" in capfd.readouterr().err

    @on_posix
    def test_a_log_that_may_only_be_written_is_written(self, path: Path) -> None:
        path.touch(0o222)
        log_outcomes(ErrorLogger(path), "sf")
        path.chmod(0o666)
        assert len(records_in(path)) == 2


class TestDroppedRecords:
    """A log that can't be written never breaks the caller; stderr says so once."""

    @pytest.mark.parametrize("name", ["", "\0", "no/such/folder", "/dev/full"], ids=repr)
    def test_records_that_cannot_be_written_are_counted_and_reported_once(
        self, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        if name == "/dev/full" and not Path(name).exists():
            pytest.skip("this system has no /dev/full")
        monkeypatch.chdir(tmp_path)
        logger = ErrorLogger(name)
        log_outcomes(logger, "sss")
        assert repr(logger) == f"ErrorLogger({logger.path!r}, dropped_records=3)"
        assert logger.metrics()["total_requests"] == 3
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert re.match(
            f"The log {re.escape(logger.path)} can't be written \\([^)[]+\\): records", err
        )

    def test_threads_count_every_dropped_record(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        logger = ErrorLogger(tmp_path)  # a folder
        run_in_threads(4, lambda: log_outcomes(logger, "s" * 8), interleaved=True)
        assert logger.dropped_records == 32
        assert capfd.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("stderr", ["missing", "closed"])
    def test_without_a_stderr_nothing_is_raised_or_printed_on_stdout(
        self, stderr: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Python has none where a program was started without one; print(file=None) is stdout."""
        closed = (tmp_path / "console").open("w")
        closed.close()
        monkeypatch.setattr(sys, "stderr", closed if stderr == "closed" else None)
        logger = ErrorLogger(tmp_path)
        logger.log_request("chat", True)
        assert logger.dropped_records == 1
        assert capsys.readouterr().out == ""


class Pause:
    """It is true; whoever asks in another thread has to wait for the end of the pause."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __bool__(self) -> bool:
        if threading.current_thread() is not threading.main_thread():
            self.begun.set()
            self.ended.wait(30)
        return True


@on_posix
class TestRealProgram:
    def test_a_signal_handler_may_log_and_read_the_metrics(self) -> None:
        logger = ErrorLogger(os.devnull)

        def log_and_count() -> None:
            logger.log_request("chat", False, TimeoutError())
            logger.metrics()

        assert returns_when_interrupted(log_and_count, log_and_count)

    def test_the_child_of_a_busy_process_may_log_and_read_the_metrics(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When it is forked, one thread is writing a record, and one is counting."""
        logger, pause, write = ErrorLogger(path), Pause(), os.write
        monkeypatch.setattr(os, "write", lambda file, data: bool(pause) and write(file, data))
        writing = threading.Thread(target=logger.log_request, args=("writing", True))
        counting = threading.Thread(target=logger.log_request, args=("counting", pause))
        for thread in (writing, counting):
            thread.start()
            assert pause.begun.wait(30)
            pause.begun.clear()
        in_forked_child(lambda: logger.log_request("child", not logger.metrics()["failed"]))
        pause.ended.set()
        writing.join()
        counting.join()
        assert sorted(types_in(path)) == ["child", "counting", "writing"]

    # An interruption while CPython closes a generator is printed, not raised.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_ctrl_c_at_any_point_lets_other_threads_go_on(self) -> None:
        logger, points = ErrorLogger(os.devnull), 0

        def log_and_count() -> None:
            logger.log_request("chat", False, TimeoutError())
            logger.metrics()

        for points in interrupt_everywhere(log_and_count):  # noqa: B007
            thread = threading.Thread(target=log_and_count, daemon=True)
            thread.start()
            thread.join(10)
            assert not thread.is_alive()
        assert points > 40


class TestMetrics:
    def test_they_count_by_outcome_and_error_type(self) -> None:
        logger = ErrorLogger(os.devnull)
        for error in (None, TimeoutError(), None, TimeoutError(), ValueError(), None):
            logger.log_request("chat", error is None, error)
        logger.log_request("chat", False)
        assert logger.metrics() == {
            "total_requests": 7,
            "successful": 3,
            "failed": 4,
            "errors_by_type": {"TimeoutError": 2, "ValueError": 1},
            "success_rate": 42.86,
        }

    def test_they_are_a_copy(self) -> None:
        logger = ErrorLogger(os.devnull)
        logger.metrics()["errors_by_type"]["ValueError"] = 99
        assert logger.metrics()["errors_by_type"] == {}
        assert logger.metrics()["success_rate"] == 0

    def test_they_are_consistent_while_threads_log(self) -> None:
        logger, seen = ErrorLogger(os.devnull), list[Metrics]()

        def log_and_look() -> None:
            for error in [None, ValueError(), TimeoutError()] * 3:
                logger.log_request("chat", error is None, error)
                seen.append(logger.metrics())

        run_in_threads(3, log_and_look, interleaved=True)
        for metrics in seen:
            assert metrics["successful"] + metrics["failed"] == metrics["total_requests"]
            assert sum(metrics["errors_by_type"].values()) == metrics["failed"]
        assert logger.metrics()["errors_by_type"] == {"ValueError": 9, "TimeoutError": 9}
        assert logger.metrics()["success_rate"] == 33.33

    def test_error_types_beyond_a_hundred_are_counted_together(self) -> None:
        logger = ErrorLogger(os.devnull)
        types = [type(f"Error{number}", (Exception,), {}) for number in range(150)]
        for error_type in [*types, types[0]]:
            logger.log_request("chat", False, error_type())
        by_type = logger.metrics()["errors_by_type"]
        assert (len(by_type), by_type["other"], by_type["Error0"]) == (101, 50, 2)


class TestAlert:
    @pytest.mark.parametrize(
        ("outcomes", "rates"),
        [
            ("ffsf", [0.75]),
            ("fff", []),  # the window of four is not full yet
            ("sfsf", []),  # the rate is the threshold, not above it
            ("fffffffff", [1.0]),  # once
            ("fffsfff", [0.75]),  # it never fell back
            ("ffffssff" + "ff", [1.0, 0.75]),  # it fell back to a half, and rose again
            ("ssssssssssfff", [0.75]),  # only the last four count
        ],
    )
    def test_it_fires_once_when_the_failure_rate_rises_above_the_threshold(
        self, outcomes: str, rates: list[float]
    ) -> None:
        fired: list[float] = []
        log_outcomes(ErrorLogger(os.devnull, alert=fired.append, alert_window=4), outcomes)
        assert fired == rates

    def test_one_that_fails_is_reported_and_breaks_nothing(
        self, path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        alert = Mock(side_effect=ConnectionError("the pager is down"))
        log_outcomes(ErrorLogger(path, alert=alert, alert_window=1), "fs")
        assert [record["success"] for record in records_in(path)] == [False, True]
        assert "ConnectionError" in capfd.readouterr().err

    def test_ctrl_c_in_it_passes_through_and_no_record_is_lost(self, path: Path) -> None:
        logger = ErrorLogger(path, alert=Mock(side_effect=KeyboardInterrupt), alert_window=1)
        with pytest.raises(KeyboardInterrupt):
            log_outcomes(logger, "f")
        log_outcomes(logger, "s")
        assert [record["success"] for record in records_in(path)] == [False, True]

    def test_it_may_use_the_logger(self, path: Path) -> None:
        def alert(rate: float) -> None:
            logger.log_request(f"alert after {logger.metrics()['failed']} failure", True)

        logger = ErrorLogger(path, alert=alert, alert_threshold=0, alert_window=1)
        log_outcomes(logger, "f")
        assert types_in(path) == ["chat", "alert after 1 failure"]

    def test_a_wrong_argument(self) -> None:
        wrong: dict[str, list[Any]] = {
            "alert_threshold": [-0.1, 1, float("nan"), "0.5"],
            "alert_window": [0, 2.5],
        }
        for name, values in wrong.items():
            for value in values:
                with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
                    ErrorLogger(os.devnull, **{name: value})

    def test_an_alert_that_could_never_run(self) -> None:
        class AsyncAlert:
            async def __call__(self, failure_rate: float) -> None: ...

        async def alert(failure_rate: float) -> None: ...

        for function in (alert, AsyncAlert()):
            with pytest.raises(TypeError, match="alert must be a plain function, got an async one"):
                ErrorLogger(os.devnull, alert=function)
        with pytest.raises(ValueError, match="alert must be a function, got 'email'"):
            ErrorLogger(os.devnull, alert="email")  # type: ignore[arg-type]


# Texts with a secret in place of the {}, beside the examples in the table.
FORMS = r"""
Authorization: Basic {}
Authorization: Token {}
Authorization: Digest username="a", response="{}"
Basic YWRhOmxv{}==
Set-Cookie: a=1; session={}
postgresql://{}@localhost
postgresql://user:p@{}@localhost
postgresql://user:'/{}@localhost
GET /v1/models?api_key={}&page=2
wss://host/ws?token={}
https://host/v1?page=2&key={}
GET /blob?sig={}
api_key%3D{}
x-api-key: {}
Incorrect API key provided: {}.
tool --password {}
['tool', '--api-key', '{}'] returned 1
[(b'x-api-key', b'{}')]
[{"name": "x-api-key", "value": "{}"}]
Client(api_key='{}', timeout=5)
password="it's {}"
password="a quote \" and {}"
{b'authorization': b'Bearer {}'}
'it\'s {\'password\': \'correct horse {}\'}'
{"access_token":"{}"}
{"token": "{}"}
AIza{} ghp_{} github_pat_{} hf_{} glpat-{} xoxb-{} sk_live_{}
eyJhbGciOiJIUzI1NiJ9.eyJ{}.c2ln
""".strip().splitlines()
FORMS += [
    "authorization: bearer\n\t{}",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n{}\n-----END RSA PRIVATE KEY-----",
    json.dumps(json.dumps({"request": json.dumps({"client_secret": "{}"})})),
    *(f"{row.example} end" for row in TEXTS_WITH_SECRETS),
]

SECRET_FIELDS: dict[str, Any] = {
    "api_key": SECRET,
    "headers": {"X-Api-Key": SECRET, "Authorization": f"Token {SECRET}", "Set-Cookie": SECRET},
    "pairs": [("Authorization", SECRET), (b"X-Api-Key", SECRET.encode())],
    "env": [{"name": "MISTRAL_API_KEY", "value": SECRET}],
    "argv": ["tool", "--api-key", SECRET, "--page", "1"],
    "arguments": ["tool", "--no\n-password", SECRET],
    "db_password": f'quote " backslash \\ and {SECRET}',
    "token": SECRET, "id_token": SECRET, "AWS_SESSION_TOKEN": SECRET, "refreshToken": SECRET,
    "private-keys": [SECRET, SECRET],
    "client_secret": {"value": SECRET},
    "credentials": SECRET, "passphrase": SECRET,
    "passwd": f"\n\u2028{SECRET}",
    "refresh_token": 4711,
}  # fmt: skip


class TestRedaction:
    def test_a_secret_in_a_text_is_redacted_wherever_it_is_logged(self, path: Path) -> None:
        logger = ErrorLogger(path)
        for text in [form.replace("{}", SECRET) for form in FORMS]:
            logger.log_request("chat", False, ValueError(text))
            logger.log_request("chat", False, with_attributes(request_id=text, last_failure=text))
            logger.log_request("chat", True, None, {"text": text, text: 1, "list": [{"a": text}]})
            logger.log_request("chat", True, None, {"object": ValueError(text)})
            logger.log_request(text, True)
        assert len(records_in(path)) == 5 * len(FORMS)
        lines = path.read_text().splitlines()
        assert [line for line in lines if SECRET in line or "[redacted]" not in line] == []

    def test_a_field_whose_name_looks_like_a_secret_is_redacted(self, path: Path) -> None:
        for name, value in SECRET_FIELDS.items():
            written = str(context_of(path, {name: value}))
            assert SECRET not in written, name
            assert "4711" not in written

    def test_anything_else_is_kept(self, path: Path) -> None:
        context = {
            "usage": {"prompt_tokens": 4, "max_tokens": 100, "seconds_to_first_token": 0.25},
            "key": "value",
            "monkey": "banana",
            "pair": ["key", "value"],
            "url": "https://api.mistral.ai:8080/v1/chat/completions?page=1",
            "mail": "ada@example.org",
            "error": "AuthenticationError",
            "text": "the author pressed a key, it was no secret, basic usage, task-1",
            "names": "hf_hub_download_file, hf_meta-llama-3-8b-instruct and aiza_is_a_word",
            "empty": 'Client(api_key="", host="localhost")',
            "unset": {"api_key": None, "password": "", "has_secret": True, "has_passwd": False},
            "setting": {"name": "size", "value": 3},
            "argv": ["tool", "password", "reset", "--page", "1"],
        }
        assert context_of(path, context) == context

    def test_it_takes_no_quadratic_time(self, path: Path) -> None:
        """On 20,000 characters, a quadratic pattern would take many seconds."""
        started_at = time.process_time()
        for piece in ("api_key-", "bearer\n", "://a", "://a:", "'api_key': '", "eyJ-", "--", " "):
            text = "bearer secret: ://" + piece * (20_000 // len(piece))
            logged(path, "chat", False, ValueError(text), secrets=[SECRET])
        assert time.process_time() - started_at < 5


class TestGivenSecrets:
    @pytest.mark.parametrize(
        "secret",
        [SECRET, "\"quotes\" and 'more'", "back\\slash/\\", "clé-密码-\U0001f511\tand\nline"],
        ids=ascii,
    )
    def test_they_are_redacted_in_every_encoding(self, secret: str, path: Path) -> None:
        in_json, in_url = json.dumps(secret), quote(secret, safe="")
        in_lower_hex = re.sub("%..", lambda byte: byte[0].lower(), in_url)
        for text in (
            secret, repr(secret), ascii(secret), in_json, json.dumps({"a": in_json}),
            in_json.replace("/", "\\/"), in_url, in_lower_hex, quote(secret), quote_plus(secret),
        ):  # fmt: skip
            context = {f"rejected: {text}, sorry": [f"rejected: {text}, sorry"]}
            error = ValueError(f"rejected: {text}, sorry")
            record = logged(path, "chat", False, error, context, secrets=[secret])
            ((key, (value,)),) = record["context"].items()
            for written in (record["error"]["message"], key, value):
                redacted = written.removeprefix("rejected: ").removesuffix(", sorry")
                assert redacted.strip("\"'\\{}a: ") == "[redacted]"

    def test_they_are_redacted_in_base64_wherever_they_begin(self, path: Path) -> None:
        secret = "s3cr3t/K+y=Value?>~99"
        for before, encode in product(("", "u", "me", "you:"), (b64encode, urlsafe_b64encode)):
            encoded = encode(f"{before}{secret}!".encode()).decode()
            context = context_of(path, {"text": f"rejected: {encoded}"}, secrets=[secret])
            assert len(context["text"].replace("[redacted]", "")) < len("rejected: ") + 12

    def test_of_secrets_that_begin_alike_the_longest_is_redacted_first(self, path: Path) -> None:
        error = ValueError("sk-51 sk-51d0c0de sk-51d0")
        record = logged(path, "chat", False, error, secrets=["sk-51d0", "sk-51d0c0de", "sk-51"])
        assert record["error"]["message"] == "[redacted] [redacted] [redacted]"

    @pytest.mark.parametrize(
        ("secret", "context"),
        [
            ("a", {}),
            ("status_code", {}),
            ("12345678", {"account": 12345678}),
            ("n0rthwind", {"text": "over\n0rthwind"}),
            ("u00e9abc", {"text": "éabc"}),
            ("\\", {"text": 'a"'}),
            ("true", {"number": 1}),
        ],
    )
    def test_our_own_names_and_json_are_no_secrets(
        self, secret: str, context: dict[str, Any], path: Path
    ) -> None:
        record = logged(path, "chat", True, ValueError(), context, secrets=[secret])
        assert list(record) == ["timestamp", "type", "success", "error", "context"]
        assert list(record["error"])[:3] == ["class", "message", "status_code"]
        assert record["success"] is True
        assert record["context"] == context

    def test_a_wrong_argument(self) -> None:
        wrong: list[Any] = ["abc", [""], [None], [b"abc"]]
        for secrets in wrong:
            with pytest.raises(ValueError, match="secrets must be a list of non-empty") as info:
                ErrorLogger(os.devnull, secrets=secrets)
            assert "abc" not in str(info.value)
