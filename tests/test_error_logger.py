"""The rules of lib/error_logger.py: whole lines, right counts, no secrets, no harm done."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import time
import tracemalloc
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from lib.error_logger import MAX_ERROR_TYPES, ErrorLogger, Metrics
from lib.errors import RateLimitError
from support import finish, interrupt_everywhere, run, run_in_threads, start

SECRET = "sk-51d0c0de"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "errors.log"


def records_in(path: Path) -> list[dict[str, Any]]:
    """Every line of the log, each of which must be one JSON object, in plain ASCII."""
    text = path.read_bytes()
    assert text.endswith(b"\n")
    return [parsed(line) for line in text[:-1].split(b"\n")]


def parsed(line: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    assert all(0x20 <= byte <= 0x7E for byte in line), line
    record = json.loads(line, parse_constant=refuse)
    assert isinstance(record, dict), line
    return record


def logged(path: Path, *arguments: Any, **settings: Any) -> dict[str, Any]:
    """What ``log_request(*arguments)`` writes."""
    ErrorLogger(path, **settings).log_request(*arguments)
    (record,) = records_in(path)
    return record


def strings_in(value: Any) -> Iterator[str]:
    """Every text, key and number of a parsed JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    else:
        yield str(value)


# What is written.


def test_a_record_says_when_what_and_how_it_went(path: Path) -> None:
    error = RateLimitError(429, "Rate limit exceeded", request_id="abc")
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
        },
        "context": {"model": "mistral-small-latest"},
    }


def test_a_success_has_no_error_and_a_missing_context_is_empty(path: Path) -> None:
    record = logged(path, "chat", True)
    assert (record["success"], record["error"], record["context"]) == (True, None, {})


def test_records_are_appended_to_what_is_there(path: Path) -> None:
    path.write_text('{"type": "earlier"}\n')
    ErrorLogger(path).log_request("first", True)
    ErrorLogger(path).log_request("second", True)
    assert [record["type"] for record in records_in(path)] == ["earlier", "first", "second"]


class UnprintableError(Exception):
    """Its text and its attributes can't be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    @property
    def status_code(self) -> int:
        raise RuntimeError("no status code")


class Unusable(dict[str, Any]):
    """A mapping that fails at everything."""

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def items(self) -> Any:
        raise RuntimeError("no items")


def with_attributes(**attributes: object) -> Exception:
    error = Exception("odd")
    vars(error).update(attributes)
    return error


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)
RING: dict[str, object] = {}
RING["again"] = RING
DEEP: list[object] = []
for _ in range(50_000):
    DEEP = [DEEP]

NASTY = {
    "line breaks": 'a\nb\r\n{"type": "forged", "success": true}\n',
    "unicode line breaks": "a\u2028b\u2029c\u0085d\x0b\x0c\x1c",
    "lone surrogates": "a\ud800b\udfff",
    "control characters": "\x00\x1b[31m\x7f\b",
    "emoji": "\U0001f600",
    "quotes": '"\'\\\\"\\',
    "NaN": float("nan"),
    "infinity": float("-inf"),
    "nested NaN": {"a": [float("nan")]},
    "bytes": b"\xff\n",
    "set": {1},
    "object": object(),
    "class": int,
    "exception": ValueError("a\nb"),
    "unprintable": UnprintableError(),
    "circle": CIRCLE,
    "ring": RING,
    "deep": DEEP,
    "keys that are no text": {(1, 2): 3, None: 4, 5: 6},
    "huge number": 10**5000,
    "unusable": Unusable(a=1),
    "date": datetime(2026, 1, 1, tzinfo=timezone.utc),
}


@pytest.mark.parametrize("nasty", NASTY.values(), ids=NASTY)
def test_nothing_in_the_context_breaks_a_line_or_the_caller(nasty: Any, path: Path) -> None:
    record = logged(path, "chat", True, None, {"value": nasty, "list": [nasty]})
    assert (record["type"], record["success"]) == ("chat", True)
    assert record["context"]
    assert path.stat().st_size < 2000  # however deep or endless it was


@pytest.mark.parametrize("nasty", NASTY.values(), ids=NASTY)
def test_nothing_in_an_error_breaks_a_line_or_the_caller(nasty: Any, path: Path) -> None:
    for error in (Exception(nasty), with_attributes(status_code=nasty, request_id=nasty)):
        ErrorLogger(path).log_request("chat", False, error)
    assert [record["error"]["class"] for record in records_in(path)] == ["Exception"] * 2


@pytest.mark.parametrize("nasty", NASTY.values(), ids=NASTY)
def test_nothing_else_breaks_a_line_or_the_caller(nasty: Any, path: Path) -> None:
    ErrorLogger(path).log_request(nasty, True, None, nasty)
    assert len(records_in(path)) == 1


def test_an_error_whose_text_and_attributes_fail_is_logged_by_its_class(path: Path) -> None:
    record = logged(path, "chat", False, UnprintableError())
    assert record["error"]["class"] == "UnprintableError"


def test_what_json_can_carry_arrives_as_it_is(path: Path) -> None:
    context = {
        "text": "é\u2028\U0001f600\n\"'\\",
        "list": [1, 2.5, None, True],
        "nested": {"a": {}},
    }
    assert logged(path, "chat", True, None, context)["context"] == context


def test_any_mapping_will_do_as_a_context(path: Path) -> None:
    record = logged(path, "chat", True, None, MappingProxyType({"model": "small"}))
    assert "small" in "".join(strings_in(record["context"]))


# Many writers, one file.

WRITER = """\
import os, sys, threading
from lib.error_logger import ErrorLogger
path, gate, name = sys.argv[1:]
logger = ErrorLogger(path)
def write(thread):
    for number in range(40):
        logger.log_request("chat", True, None, {"who": [name, thread, number], "long": "x" * 6000})
threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
print("ready", flush=True)
while not os.path.exists(gate):
    pass
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX keeps appends whole")
def test_lines_of_many_threads_and_processes_are_whole_and_all_there(
    path: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    names = ["a", "b", "c"]
    children = [start("-c", WRITER, str(path), str(gate), name) for name in names]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    gate.touch()
    for child in children:
        assert finish(child) == (0, "", "")
    assert sorted(record["context"]["who"] for record in records_in(path)) == [
        [name, thread, number] for name in names for thread in range(4) for number in range(40)
    ]


def test_lines_of_many_threads_are_whole_and_all_there(path: Path) -> None:
    logger = ErrorLogger(path)

    def write() -> None:
        for number in range(50):
            logger.log_request("chat", True, None, {"number": number, "long": "x" * 6000})

    run_in_threads(8, write)
    numbers = sorted(record["context"]["number"] for record in records_in(path))
    assert numbers == sorted([*range(50)] * 8)


# Trouble with the file.


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_harms_nobody_and_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    logger = ErrorLogger("/dev/full")
    for _ in range(5):
        logger.log_request("chat", True)
    assert (logger.dropped_records, logger.metrics()["total_requests"]) == (5, 5)
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "/dev/full" in err
    assert "lost" in err


def test_every_record_that_many_threads_lose_is_counted_and_it_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = ErrorLogger(tmp_path)  # a folder

    def lose() -> None:
        for _ in range(15):
            logger.log_request("chat", True)

    run_in_threads(4, lose, interleaved=True)
    assert logger.dropped_records == 60
    assert capfd.readouterr().err.count("\n") == 1


CUT_OFF = """\
import os, resource, sys
from lib.error_logger import ErrorLogger
logger = ErrorLogger(sys.argv[1])
logger.log_request("before", True)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(sys.argv[1]) + 40, most))
logger.log_request("cut off", True)
logger.log_request("lost", True)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
logger.log_request("after", True)
logger.log_request("later", True)
print(logger.dropped_records)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there, no limit can cut off a write")
def test_a_line_that_was_cut_off_does_not_spoil_the_next_one(path: Path) -> None:
    outcome = run("-c", CUT_OFF, str(path))
    assert outcome.out == "2\n", outcome.err
    assert (outcome.err.count("\n"), "Traceback" in outcome.err) == (1, False)
    before, torn, after, later = path.read_bytes().splitlines()
    assert [parsed(line)["type"] for line in (before, after, later)] == ["before", "after", "later"]
    assert len(torn) == 40


def test_a_folder_that_is_lost_and_made_again_is_written_to_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "errors.log"
    path.parent.mkdir()
    logger = ErrorLogger(path)
    logger.log_request("first", True)
    for lost in (1, 2):
        shutil.rmtree(path.parent, ignore_errors=True)
        logger.log_request("lost", True)
        assert logger.dropped_records == lost
    path.parent.mkdir()
    logger.log_request("again", True)
    assert [record["type"] for record in records_in(path)] == ["again"]
    assert logger.metrics()["total_requests"] == 4
    assert capfd.readouterr().err.count("\n") == 1


def test_a_log_that_was_moved_away_is_begun_again(path: Path) -> None:
    """As a rotation of logs does it."""
    logger = ErrorLogger(path)
    logger.log_request("first", True)
    path.rename(moved := path.with_suffix(".1"))
    logger.log_request("second", True)
    assert [record["type"] for file in (moved, path) for record in records_in(file)] == [
        "first",
        "second",
    ]


@pytest.mark.parametrize("name", ["", "\0", "no/such/folder", "."])
def test_a_path_that_cannot_be_written_is_said_once_and_harms_nobody(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = ErrorLogger(name)
    logger.log_request("chat", True)
    logger.log_request("chat", True)
    assert logger.dropped_records == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_without_a_stderr_the_trouble_is_not_said_on_stdout_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python has none where a program was started without one; print(file=None) is stdout."""
    monkeypatch.setattr(sys, "stderr", None)
    logger = ErrorLogger(tmp_path)
    logger.log_request("chat", True)
    assert logger.dropped_records == 1
    assert capsys.readouterr().out == ""


def test_a_closed_stderr_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = (tmp_path / "console").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    logger = ErrorLogger(tmp_path)
    logger.log_request("chat", True)
    assert logger.dropped_records == 1


# Counting.


def test_metrics_count_by_outcome_and_error_type(path: Path) -> None:
    logger = ErrorLogger(path)
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


def test_without_requests_there_is_no_rate_to_divide(path: Path) -> None:
    metrics = ErrorLogger(path).metrics()
    assert (metrics["total_requests"], metrics["success_rate"]) == (0, 0.0)
    assert not path.exists()


def test_metrics_are_a_copy(path: Path) -> None:
    logger = ErrorLogger(path)
    logger.log_request("chat", False, ValueError())
    logger.metrics()["errors_by_type"]["ValueError"] = 99
    assert logger.metrics()["errors_by_type"] == {"ValueError": 1}


def test_no_update_is_lost_and_every_look_at_the_metrics_is_consistent() -> None:
    """Of four threads two log, two look."""
    logger, looks = ErrorLogger(os.devnull), list[Metrics]()

    def log() -> None:
        for error in [None, ValueError(), TimeoutError()] * 10:
            logger.log_request("chat", error is None, error)

    def look() -> None:
        looks.extend([logger.metrics() for _ in range(200)])

    roles = iter([log, look, log, look])
    run_in_threads(4, lambda: next(roles)(), interleaved=True)
    assert logger.metrics() == {
        "total_requests": 60,
        "successful": 20,
        "failed": 40,
        "errors_by_type": {"ValueError": 20, "TimeoutError": 20},
        "success_rate": 33.33,
    }
    for seen in looks:
        assert seen["successful"] + seen["failed"] == seen["total_requests"]
        assert sum(seen["errors_by_type"].values()) == seen["failed"]


def error_of_type(number: int) -> Exception:
    return Exception.__new__(type(f"Error{number}", (Exception,), {}))


def test_error_types_beyond_a_hundred_are_counted_together() -> None:
    logger = ErrorLogger(os.devnull)
    for number in range(MAX_ERROR_TYPES + 50):
        logger.log_request("chat", False, error_of_type(number))
    logger.log_request("chat", False, error_of_type(0))
    by_type = logger.metrics()["errors_by_type"]
    assert (len(by_type), by_type["other"], by_type["Error0"]) == (MAX_ERROR_TYPES + 1, 50, 2)
    assert sum(by_type.values()) == logger.metrics()["failed"]


def test_memory_stays_flat() -> None:
    logger = ErrorLogger(os.devnull, secrets=[SECRET])

    def log(count: int) -> None:
        for number in range(count):
            error = ValueError(f"error number {number}, Bearer {number}")
            logger.log_request(f"type {number}", False, error, {"number": number})

    log(500)
    tracemalloc.start()
    try:
        log(1000)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 50_000


# The alarm.


def outcomes(logger: ErrorLogger, pattern: str) -> None:
    """Log a request for each letter: f for a failure, s for a success."""
    for letter in pattern:
        logger.log_request("chat", letter == "s")


@pytest.mark.parametrize(
    ("pattern", "alerts"),
    [
        ("ffsf", [0.75]),
        ("sfff", [0.75]),
        ("ffff", [1.0]),
        ("fff", []),  # four requests are not there yet
        ("sfsf", []),  # the threshold is reached, not passed
        ("fffffffff", [1.0]),  # once a crossing
        ("fffsfff", [0.75]),  # it never came down
        ("ffffssff" + "ff", [1.0, 0.75]),  # down to a half, and up again
        ("ssssssssssfff", [0.75]),  # only the last four count
    ],
)
def test_the_alarm_is_raised_once_when_the_rate_passes_the_threshold(
    pattern: str, alerts: list[float]
) -> None:
    raised: list[float] = []
    logger = ErrorLogger(os.devnull, alert=raised.append, alert_threshold=0.5, alert_window=4)
    outcomes(logger, pattern)
    assert raised == alerts


def test_many_threads_that_fail_at_once_raise_one_alarm() -> None:
    raised: list[float] = []
    logger = ErrorLogger(os.devnull, alert=raised.append, alert_window=10)
    run_in_threads(8, lambda: outcomes(logger, "f" * 25))
    assert raised == [1.0]


def test_an_alarm_that_fails_harms_nobody(capfd: pytest.CaptureFixture[str], path: Path) -> None:
    def alert(rate: float) -> None:
        raise ConnectionError("the pager is down")

    logger = ErrorLogger(path, alert=alert, alert_window=1)
    outcomes(logger, "fs")
    assert [record["success"] for record in records_in(path)] == [False, True]
    assert "ConnectionError" in capfd.readouterr().err


def test_ctrl_c_in_an_alarm_passes_through_and_nothing_is_lost(path: Path) -> None:
    def alert(rate: float) -> None:
        raise KeyboardInterrupt

    logger = ErrorLogger(path, alert=alert, alert_window=1)
    with pytest.raises(KeyboardInterrupt):
        outcomes(logger, "f")
    outcomes(logger, "s")
    assert [record["success"] for record in records_in(path)] == [False, True]


def test_an_alarm_may_use_the_logger_itself(path: Path) -> None:
    def alert(rate: float) -> None:
        logger.log_request("alert", True, None, {"failed": logger.metrics()["failed"]})

    logger = ErrorLogger(path, alert=alert, alert_window=1)
    outcomes(logger, "f")
    assert [record["type"] for record in records_in(path)] == ["chat", "alert"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"alert_threshold": -0.1},
        {"alert_threshold": 1},
        {"alert_threshold": float("nan")},
        {"alert_threshold": "0.5"},
        {"alert_window": 0},
        {"alert_window": 2.5},
    ],
    ids=str,
)
def test_a_number_that_cannot_be_right_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        ErrorLogger(os.devnull, **wrong)


# Secrets.

TEXTS_WITH_A_SECRET = [
    f"Authorization: Bearer {SECRET}",
    f"authorization: bearer\n\t{SECRET}",
    f"no answer, Bearer {SECRET}",
    f"Authorization: Basic {SECRET}",
    f"https://user:{SECRET}@api.mistral.ai/v1",
    f"postgresql://{SECRET}@localhost",
    f"GET /v1/models?api_key={SECRET}&page=2",
    f"x-api-key: {SECRET}",
    f"MISTRAL_API_KEY={SECRET}",
    f"MISTRAL_API_KEY='{SECRET}'",
    f'password = "{SECRET}"',
    f"Client(api_key='{SECRET}', timeout=5)",
    f'Client(api_key="{SECRET}")',
    repr({"api_key": SECRET, "page": 2}),
    repr({"Authorization": f"Bearer {SECRET}"}),
    repr({b"authorization": f"Bearer {SECRET}".encode()}),
    repr({b"api_key": SECRET.encode()}),
    repr({"password": f"correct horse {SECRET}"}),
    json.dumps({"password": f"correct horse {SECRET}", "page": 2}),
    repr(f"it's {{'password': '{SECRET}'}}"),
    json.dumps({"api_key": SECRET}),
    json.dumps({"access_token": SECRET}, separators=(",", ":")),
    json.dumps({"request": json.dumps({"api_key": SECRET})}),
    json.dumps(json.dumps({"request": json.dumps({"client_secret": SECRET})})),
]


@pytest.mark.parametrize("text", TEXTS_WITH_A_SECRET)
def test_a_secret_in_a_text_is_blotted_out_wherever_the_text_goes(text: str, path: Path) -> None:
    logger = ErrorLogger(path)
    logger.log_request("chat", False, ValueError(text))
    logger.log_request("chat", False, with_attributes(request_id=text))
    logger.log_request("chat", True, None, {"text": text, text: 1, "list": [{"text": text}]})
    logger.log_request("chat", True, None, {"object": ValueError(text)})
    logger.log_request(text, True)
    for record in records_in(path):
        found = list(strings_in(record))
        assert not [string for string in found if SECRET in string]
        assert [string for string in found if "[redacted]" in string]


@pytest.mark.parametrize(
    "context",
    [
        {"api_key": SECRET},
        {"headers": {"X-Api-Key": SECRET}},
        {"headers": {"Authorization": f"Token {SECRET}"}},
        {"db": {"db_password": f'quote " backslash \\ and {SECRET}'}},
        {"token": SECRET},
        {"api_keys": [SECRET, SECRET]},
        {"client_secret": {"value": SECRET}},
        {"password": f"\n\u2028{SECRET}"},
    ],
    ids=str,
)
def test_a_field_that_is_named_like_a_secret_is_blotted_out(
    context: dict[str, Any], path: Path
) -> None:
    found = list(strings_in(logged(path, "chat", True, None, {**context, "page": "two"})))
    assert not [string for string in found if SECRET in string]
    assert "two" in found


def test_a_number_in_a_field_that_is_named_like_a_secret_is_blotted_out(path: Path) -> None:
    assert "4711" not in list(strings_in(logged(path, "chat", True, None, {"password": 4711})))


@pytest.mark.parametrize(
    "context",
    [
        {"prompt_tokens": 4, "completion_tokens": 36, "max_tokens": 100},
        {"model": "mistral-small-latest", "attempts": 3, "key": "value"},
        {"url": "https://api.mistral.ai/v1/chat/completions", "mail": "ada@example.org"},
        {"error": "AuthenticationError", "monkey": "banana"},
        {"text": "the author pressed a key, it was no secret"},
        {"has_api_key": True, "api_key": None, "password": ""},
    ],
    ids=str,
)
def test_what_is_no_secret_stays(context: dict[str, Any], path: Path) -> None:
    assert logged(path, "chat", True, None, context)["context"] == context


GIVEN_SECRETS = [
    SECRET,
    "with \"quotes\" and 'more'",
    "back\\slash\\",
    "clé-密码-\U0001f511",
    "clé with \"quotes\" and 'more'",
    "tab\tand\nline",
    "n0rthwind",
    "u00e9abcdef",
    "12345678",
]


@pytest.mark.parametrize("secret", GIVEN_SECRETS, ids=ascii)
@pytest.mark.parametrize(
    "text",
    [str, repr, ascii, json.dumps, lambda secret: json.dumps({"a": json.dumps([secret])})],
    ids=["plain", "repr", "ascii", "JSON", "JSON in JSON"],
)
def test_a_secret_that_was_given_is_blotted_out_in_every_spelling(
    secret: str, text: Any, path: Path
) -> None:
    sentence = f"refused: {text(secret)}, sorry"
    error, context = ValueError(sentence), {sentence: [sentence]}
    record = logged(path, "chat", False, error, context, secrets=[secret])
    (key,), ((value,),) = record["context"].keys(), record["context"].values()
    for written in (record["error"]["message"], key, value):
        assert re.fullmatch(r"refused: [\W a]*\[redacted\]\W*, sorry", written)


def test_of_secrets_that_begin_alike_none_leaves_its_end(path: Path) -> None:
    secrets = ["sk-51d0", "sk-51d0c0de", "sk-51"]
    error = ValueError("sk-51 sk-51d0c0de sk-51d0")
    record = logged(path, "chat", False, error, secrets=secrets)
    assert record["error"]["message"] == "[redacted] [redacted] [redacted]"


def test_an_empty_secret_is_none(path: Path) -> None:
    assert logged(path, "chat", True, secrets=[""])["type"] == "chat"


@pytest.mark.parametrize(
    ("secret", "context"),
    [
        ("12345678", {"account": 12345678}),
        ("n0rthwind", {"text": "over\n0rthwind"}),
        ("u00e9abcdef", {"text": "éabcdef"}),
        ("e9abcdef", {"text": "éabcdef"}),
        ('"', {"text": "a\\"}),
        ("\\", {"text": 'a"'}),
        ("true", {"success": True}),
        (": ", {"text": "a"}),
    ],
)
def test_a_secret_that_looks_like_the_lines_own_syntax_leaves_the_line_valid(
    secret: str, context: dict[str, Any], path: Path
) -> None:
    assert logged(path, "chat", True, None, context, secrets=[secret])["success"] is True


def test_every_line_stays_valid_and_free_of_secrets_whatever_is_logged(path: Path) -> None:
    """Records put together at random from what redaction and JSON could stumble over."""
    chance = random.Random(25)
    given = [SECRET, "q\"uo'te\\d", "clé", "n0rthwind"]
    pieces = [
        *given, *TEXTS_WITH_A_SECRET, "api_key", "password", "Authorization", '"token"', "Bearer ",
        "basic ", ": ", "=", '"', "'", "\\", '\\"', "\\\\", "{", "}", "[", "]", ",", "\n", "\t",
        " ", "://", "@", "/", "\u2028", "\ud800", "é", "n", "u00", "\x00", "0rthwind",
    ]  # fmt: skip

    def text() -> str:
        return "".join(chance.choices(pieces, k=chance.randrange(8)))

    def value(depth: int) -> Any:
        kind = chance.randrange(8 if depth < 3 else 4)
        if kind == 4:
            return [value(depth + 1) for _ in range(chance.randrange(3))]
        if kind > 4:
            return {text(): value(depth + 1) for _ in range(chance.randrange(3))}
        return [text(), text(), ValueError(text()), chance.choice([1, 2.5, None, True])][kind]

    logger = ErrorLogger(path, secrets=given)
    for _ in range(400):
        logger.log_request(text(), False, ValueError(text()), {text(): value(0)})
    records = records_in(path)
    assert len(records) == 400
    found = [string for record in records for string in strings_in(record)]
    assert not [string for string in found if any(secret in string for secret in given)]


@pytest.mark.parametrize(
    "piece",
    ["passwd", "api_key-", "secret: ", "secret\n", "bearer ", "bearer\n", "://a", "://",
     '"password": ', "'api_key': '", '\\"api_key\\"', "auth_token", "key", " ", "a", "\\", '"'],
    ids=ascii,
)  # fmt: skip
def test_a_hostile_line_takes_no_quadratic_time(piece: str, path: Path) -> None:
    """A tenth of a megabyte, which a quadratic pattern would chew on for a minute."""
    text = "bearer secret: ://" + piece * (100_000 // len(piece))
    began = time.monotonic()
    logged(path, "chat", False, ValueError(text), secrets=[SECRET])
    assert time.monotonic() - began < 10


# What strikes while CPython closes a generator is printed, not raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_point_leaves_no_lock_held(tmp_path: Path) -> None:
    logger, points = ErrorLogger(tmp_path / "errors.log"), 0

    def log_twice() -> None:
        logger.log_request("chat", True, None, {"key": "plain"})
        logger.log_request("chat", False, TimeoutError("Bearer abc"), {"prompt": "Hello"})

    for points in interrupt_everywhere(log_twice):  # noqa: B007
        assert not logger._counter._lock.locked()
        assert not logger._writer._lock.locked()
        logger.log_request("chat", True)
    assert points > 40
