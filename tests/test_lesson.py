"""Settings and surroundings of the scripts: which API answers, the .env file, the console."""

from __future__ import annotations

import io
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import requests
import responses

from conftest import FakeClock
from examples import lesson
from examples.lesson import run_lesson
from lib.client import MistralClient
from lib.errors import APIConnectionError
from lib.mock_server import MockServer
from support import (
    CHAT_URL,
    ROOT,
    SETTINGS,
    Outcome,
    error_body,
    run,
    run_in_process,
    run_parallel,
    transcript,
)

FIRST = str(ROOT / "examples" / "01_basic_errors.py")
UNSET = dict.fromkeys(SETTINGS)
ANSWERS = transcript("01_basic_errors")
NO_ANSWERS = [
    pytest.param(requests.ConnectionError("no route to host"), id="no connection"),
    pytest.param(requests.ConnectTimeout("connecting took too long"), id="a wall of silence"),
]


class Run(NamedTuple):
    """How a script ended, its folder, and how many requests reached the API with a key."""

    outcome: Outcome
    folder: Path
    live_requests: int


def copied_project(folder: Path, env_file: bytes | None) -> Path:
    """The project as somebody has it who has written that .env."""
    for name in ("examples", "lib"):
        shutil.copytree(ROOT / name, folder / name)
    if env_file is not None:
        (folder / ".env").write_bytes(env_file)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Every child process of this file, side by side; MockServer stands for the real API."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def with_key(*arguments: str) -> Run:
        with MockServer() as api:
            settings = {"MISTRAL_API_KEY": "the-key", "MISTRAL_BASE_URL": api.url}
            outcome = run(FIRST, *arguments, cwd=elsewhere, **settings)
        return Run(outcome, ROOT, len(api.log))

    def with_env_file(
        env_file: str | bytes | None, script: str = "01_basic_errors", **environment: str
    ) -> Run:
        """In the text of the .env, ``<url>`` is the API's and ``<folder>`` the project's."""
        folder = tmp_path_factory.mktemp("copy")
        with MockServer() as api:
            if isinstance(env_file, str):
                text = env_file.replace("<url>", api.url).replace("<folder>", str(folder))
                env_file = text.encode()
            copied_project(folder, env_file)
            path = str(folder / "examples" / f"{script}.py")
            outcome = run(path, cwd=elsewhere, **{**UNSET, **environment})
        return Run(outcome, folder, len(api.log))

    def with_env_folder() -> Run:
        folder = copied_project(tmp_path_factory.mktemp("copy"), None)
        (folder / ".env").mkdir()
        path = str(folder / "examples" / "01_basic_errors.py")
        return Run(run(path, cwd=elsewhere, **UNSET), folder, 0)

    both = "MISTRAL_API_KEY=the-key\nMISTRAL_BASE_URL=<url>\n"
    return run_parallel(
        {
            "key": with_key,
            "key, --offline": lambda: with_key("--offline"),
            "key, --faults": lambda: with_key("--faults", "401"),
            "key, --trace": lambda: with_key("--trace"),
            "--trace": lambda: Run(run(FIRST, "--trace", "--faults", "ok,drop"), ROOT, 0),
            ".env": lambda: with_env_file(both),
            ".env from Windows": lambda: with_env_file("\ufeff" + both.replace("\n", "\r\n")),
            ".env, environment empty": lambda: with_env_file(both, MISTRAL_API_KEY=""),
            ".env, environment wins": lambda: with_env_file(
                both + "MISTRAL_TIMEOUT=abc\n", MISTRAL_TIMEOUT="30"
            ),
            ".env, timeout": lambda: with_env_file("MISTRAL_TIMEOUT=abc\n"),
            ".env, log": lambda: with_env_file(
                "MISTRAL_LOG_FILE=<folder>/their.log", "06_error_logger"
            ),
            "no .env, log": lambda: with_env_file(None, "06_error_logger"),
            ".env in UTF-16": lambda: with_env_file(both.encode("utf-16")),
            ".env is a folder": with_env_folder,
        }
    )


@pytest.mark.parametrize("name", ["key", ".env", ".env from Windows", ".env, environment wins"])
def test_with_a_key_the_api_answers_and_stderr_says_so(
    name: str, runs: Callable[[str], Run]
) -> None:
    outcome, _, live_requests = runs(name)
    assert (outcome.code, outcome.out) == (0, ANSWERS), outcome.err
    assert live_requests == 2
    assert re.match(r"Live: requests go to http://127\.0\.0\.1:\d+/v1, ", outcome.err)
    assert "the-key" not in outcome.err


@pytest.mark.parametrize("name", ["key, --offline", "key, --faults"])
def test_offline_the_key_is_not_used_whatever_it_is(name: str, runs: Callable[[str], Run]) -> None:
    outcome, _, live_requests = runs(name)
    assert outcome.code == 0, outcome.err
    assert live_requests == 0
    assert outcome.err.startswith("Offline: using a local mock server (http://127.0.0.1:")
    assert outcome.out.startswith("=== Example 1: Basic Error Handling ===\n\n")


def test_faults_are_the_mock_servers_even_with_a_key(runs: Callable[[str], Run]) -> None:
    assert "Authentication Error (401)" in runs("key, --faults").outcome.out


def test_trace_ends_stderr_with_what_the_server_saw(runs: Callable[[str], Run]) -> None:
    outcome = runs("--trace").outcome
    assert outcome.out.endswith("before the response was complete\n\n")  # nothing of it on stdout
    assert outcome.err.splitlines()[-3:] == [
        "The server saw 2 requests:",
        f"    0.0 s  |{'█':<30}| 200",
        f"    0.0 s  |{'█':<30}| drop",
    ]


def test_trace_says_that_it_needs_offline_where_the_api_answers(runs: Callable[[str], Run]) -> None:
    outcome = runs("key, --trace").outcome
    assert (outcome.code, outcome.out) == (0, ANSWERS)
    assert "--trace shows the mock server's log: add --offline.\n" in outcome.err
    assert "The server saw" not in outcome.err


@pytest.mark.parametrize(
    ("name", "reason"),
    [(".env in UTF-16", "it is not UTF-8 text"), (".env is a folder", "")],
)
def test_an_unreadable_env_file_is_one_sentence(
    name: str, reason: str, runs: Callable[[str], Run]
) -> None:
    outcome, folder, live_requests = runs(name)
    assert (outcome.code, outcome.out, live_requests) == (2, "", 0)
    assert len(outcome.err.splitlines()) == 1
    assert f"{folder / '.env'} can't be read ({reason}" in outcome.err


def test_a_wrong_setting_in_the_env_file_is_one_sentence(runs: Callable[[str], Run]) -> None:
    outcome = runs(".env, timeout").outcome
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("MISTRAL_TIMEOUT must be ")
    assert len(outcome.err.splitlines()) == 1


def test_the_log_is_where_the_env_file_says(runs: Callable[[str], Run]) -> None:
    outcome, folder, _ = runs(".env, log")
    assert outcome.code == 0, outcome.err
    assert [log.name for log in folder.glob("*.log")] == ["their.log"]
    assert len((folder / "their.log").read_text("ascii").splitlines()) == 4


def test_the_log_is_beside_the_readme_if_nothing_else_is_said(runs: Callable[[str], Run]) -> None:
    """Not wherever the script happens to be run from."""
    outcome, folder, _ = runs("no .env, log")
    assert outcome.code == 0, outcome.err
    assert len((folder / "mistral_errors.log").read_text("ascii").splitlines()) == 4


@pytest.fixture
def refusal(
    api: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a script with the arguments and settings: the sentence with which it refuses them.

    No answer is at hand, so that what isn't refused can't reach the real API either.
    """

    def sentence(*arguments: str, **settings: str) -> str:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        assert run_in_process("01_basic_errors", monkeypatch, *arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        return err

    return sentence


@pytest.mark.parametrize("key", ["", "the-key"], ids=["offline", "live"])
@pytest.mark.parametrize("timeout", ["abc", "0", "-1", "nan", "inf", "1e400", "1e10", "1,5"])
def test_a_timeout_that_cannot_work_is_refused_by_name(
    timeout: str, key: str, refusal: Callable[..., str]
) -> None:
    assert "MISTRAL_TIMEOUT" in refusal(MISTRAL_API_KEY=key, MISTRAL_TIMEOUT=timeout)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("secret\nkey", id="a line break"),
        pytest.param("secret key", id="a space"),
        pytest.param("secretключ", id="non-Latin letters"),
        pytest.param("secret“key”", id="typographic quotes"),
    ],
)
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(
    key: str, refusal: Callable[..., str]
) -> None:
    sentence = refusal(MISTRAL_API_KEY=key)
    assert "The API key contains" in sentence
    assert "secret" not in sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["503"], "unrecognized arguments: 503"),
        (["--faults"], "argument --faults: expected one argument"),
        (["--offline=yes"], "argument --offline: ignored explicit argument 'yes'"),
        (["--faults", "503*,ok"], "'503*' never ends, so nothing may follow it"),
        (["--faults", "503,,ok"], "unknown fault '': use ok, "),
        (["--faults", "dröp"], r"unknown fault 'dr\xf6p': did you mean drop?"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(
    arguments: list[str], words: str, refusal: Callable[..., str]
) -> None:
    assert words in refusal(*arguments)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("somewhere", id="no URL at all"),
        pytest.param("ftp://api.mistral.ai/v1", id="another scheme"),
        pytest.param("https://", id="no host"),
        pytest.param("https://host:port/v1", id="no port number"),
        pytest.param("http://api.mistral.ai/v1", id="plain http to another machine"),
        pytest.param("http://127.0.0.1.example.com/v1", id="a host that begins like this machine"),
    ],
)
def test_a_base_url_that_cannot_be_right_is_refused(url: str, refusal: Callable[..., str]) -> None:
    assert refusal(MISTRAL_BASE_URL=url).startswith("The base URL must ")


@pytest.mark.parametrize("no_answer", NO_ANSWERS)
@pytest.mark.parametrize(
    ("script", "requests_sent"),
    [
        ("01_basic_errors", 2),
        ("02_backoff", 3),
        ("03_rate_limits", 3),
        ("04_circuit_breaker", 3),
        ("05_fallbacks", 2),
    ],
)
def test_an_api_that_cannot_be_reached_is_a_sentence_at_the_end_and_exit_1(
    script: str,
    requests_sent: int,
    no_answer: Exception,
    api: responses.RequestsMock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(requests_sent):
        api.post(CHAT_URL, body=no_answer)

    assert run_in_process(script, monkeypatch) == 1

    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"No response came.* \(.*api\.mistral\.ai.*\): .+\.", last)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"body": requests.ReadTimeout()}, id="a slow answer"),
        pytest.param({"status": 429, "json": error_body("Too fast")}, id="a refusal"),
    ],
)
def test_an_api_that_was_reached_is_no_failure_of_the_script(
    answer: dict[str, Any], api: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.post(CHAT_URL, body=requests.ConnectionError("a moment's trouble"))
    api.post(CHAT_URL, **answer)
    assert run_in_process("01_basic_errors", monkeypatch) == 0


def test_an_empty_fault_script_injects_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Example 5's own fault script is not empty: two 503s."""
    assert run_in_process("05_fallbacks", monkeypatch, "--faults", "") == 0
    assert "Response: What is the meaning of life? response" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "+ Gr??e ?"), ("cp1252", "+ Grüße ?"), ("utf-8", "✓ Grüße 語")],
)
def test_what_the_console_cannot_show_becomes_plain(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding))
    monkeypatch.setattr(sys, "argv", ["lesson"])
    with pytest.raises(SystemExit) as exit_info:
        run_lesson(lambda client: print("✓ Grüße 語"))
    assert exit_info.value.code == 0
    assert screen.getvalue().decode(encoding).strip() == shown


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        pytest.param(None, 0, id="well"),
        pytest.param(KeyboardInterrupt(), 130, id="by Ctrl-C"),
        pytest.param(APIConnectionError("the host was not found"), 1, id="by an error of the API"),
        pytest.param(SystemExit(3), 3, id="by its own exit"),
    ],
)
def test_however_a_lesson_ends_no_thread_and_no_port_is_left(
    ending: BaseException | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lesson(client: MistralClient) -> None:
        client.models()  # a connection is open, with a thread of the server's
        if ending:
            raise ending

    threads = threading.active_count()
    monkeypatch.setattr(sys, "argv", ["lesson"])
    with pytest.raises(SystemExit) as exit_info:
        run_lesson(lesson)

    assert exit_info.value.code == code
    assert threading.active_count() == threads
    (url,) = re.findall(r"http://\S+", capsys.readouterr().err.splitlines()[0])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=5)


def test_the_example_of_settings_names_each_of_them_and_sets_no_key() -> None:
    text = (ROOT / ".env.example").read_text("utf-8")
    assert {line.strip("#").partition("=")[0] for line in text.splitlines() if "=" in line} == set(
        SETTINGS
    )
    assert "\nMISTRAL_API_KEY=\n" in text


def test_a_missing_file_of_the_lessons_own_is_not_blamed_on_stdout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["lesson"])
    with pytest.raises(FileNotFoundError):
        run_lesson(lambda client: print(Path("no-such-file.json").read_text()))


def test_where_the_environment_has_a_setting_the_file_is_not_even_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").mkdir()
    monkeypatch.setattr(lesson, "ROOT", tmp_path)
    lesson._env_file.cache_clear()
    monkeypatch.setenv("MISTRAL_TIMEOUT", "30")
    assert lesson.setting("MISTRAL_TIMEOUT") == "30"
