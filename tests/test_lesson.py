"""Settings and surroundings of the lessons: which API is called, the .env file, the console."""

from __future__ import annotations

import io
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import responses

from conftest import RunScript
from examples.support import lesson
from examples.support.lesson import Lesson, run_lesson
from lib.client import MistralClient
from lib.errors import APIConnectionError
from lib.mock_server import MockServer
from support import CHAT_URL, MODELS_URL, ROOT, SETTINGS, completion, refusing_url, transcript

OUT = transcript("01_basic_errors")
HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def exit_code(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a function as a lesson, without arguments, and return its exit code."""

    def run(lesson: Lesson, faults: str = "") -> int:
        monkeypatch.setattr(sys, "argv", ["lesson"])
        with pytest.raises(SystemExit) as exit_info:
            run_lesson(lesson, faults=faults)
        return int(exit_info.value.code or 0)

    return run


@pytest.fixture
def live_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockServer]:
    """A server that stands for the real API, with a key for it."""
    monkeypatch.setenv("MISTRAL_API_KEY", "the-key")
    with MockServer() as server:
        monkeypatch.setenv("MISTRAL_BASE_URL", server.url)
        yield server


class TestLive:
    def test_with_a_key_the_real_api_is_called(
        self, live_server: MockServer, run_script: RunScript
    ) -> None:
        code, out, err = run_script("01_basic_errors")
        assert (code, out) == (0, OUT)
        assert [entry.path for entry in live_server.log] == [
            "/v1/models", "/v1/chat/completions", "/v1/chat/completions",
        ]  # fmt: skip
        assert err.startswith(f"Live: requests go to {live_server.url}.\n")
        assert "the-key" not in err

    def test_a_server_on_this_machine_needs_no_key(
        self, live_server: MockServer, monkeypatch: pytest.MonkeyPatch, run_script: RunScript
    ) -> None:
        monkeypatch.setenv("MISTRAL_API_KEY", "")
        assert run_script("01_basic_errors").out == OUT
        assert len(live_server.log) == 3

    def test_faults_and_trace_need_offline(
        self, live_server: MockServer, run_script: RunScript
    ) -> None:
        err = run_script("05_fallbacks", "--trace").err
        assert "This lesson relies on simulated faults, which only --offline shows.\n" in err
        assert "--trace shows the mock server's log: add --offline.\n" in err
        assert "The server saw" not in err

    @pytest.mark.parametrize(
        "error",
        [requests.ConnectionError("no route"), requests.ConnectTimeout("too slow")],
        ids=repr,
    )
    def test_an_unreachable_api_is_one_sentence_and_exit_1(
        self, error: Exception, api: responses.RequestsMock, run_script: RunScript
    ) -> None:
        api.get(MODELS_URL, body=error)
        code, out, err = run_script("01_basic_errors")
        assert (code, out) == (1, "")
        _, sentence = err.splitlines()
        what = r"(No response came|The call took too long) \(.*api\.mistral\.ai.*\)"
        assert re.fullmatch(rf"{what}: .*retry.*", sentence)

    def test_a_refused_connection_is_one_sentence_and_exit_1(
        self, monkeypatch: pytest.MonkeyPatch, run_script: RunScript
    ) -> None:
        with refusing_url() as url:
            monkeypatch.setenv("MISTRAL_BASE_URL", url)
            code, out, err = run_script("01_basic_errors")
        assert (code, out) == (1, "")
        assert err.splitlines()[1:] == [
            "No response came (127.0.0.1 refused the connection): "
            "check the network and MISTRAL_BASE_URL, then retry."
        ]

    @pytest.mark.parametrize("status", [200, 401, 404, 503])
    def test_an_api_without_a_list_of_models_can_be_reached(
        self, status: int, api: responses.RequestsMock, run_script: RunScript
    ) -> None:
        api.get(MODELS_URL, status=status, body="<html>")
        api.post(CHAT_URL, body=requests.ConnectionError("a moment's trouble"))
        api.post(CHAT_URL, json=completion("fine"))
        assert run_script("01_basic_errors").code == 0


class TestOffline:
    @pytest.mark.parametrize("arguments", [["--offline"], ["--faults", "401"]], ids=str)
    def test_the_key_is_not_used(
        self, arguments: list[str], live_server: MockServer, run_script: RunScript
    ) -> None:
        code, out, err = run_script("01_basic_errors", *arguments)
        assert (code, out.count("Authentication Error (401)")) == (0, arguments.count("401"))
        assert re.fullmatch(
            r"Offline: using a local mock server \(http://127\.0\.0\.1:\d+/v1\)\.\n", err
        )
        assert live_server.log == []

    def test_without_a_key_another_machine_is_not_called(
        self, monkeypatch: pytest.MonkeyPatch, run_script: RunScript
    ) -> None:
        for url in ("https://example.com/v1", "http://["):
            monkeypatch.setenv("MISTRAL_BASE_URL", url)
            assert run_script("01_basic_errors")[:2] == (0, OUT)

    def test_the_notice_says_how_to_go_live_and_can_be_hidden(
        self, monkeypatch: pytest.MonkeyPatch, run_script: RunScript
    ) -> None:
        err = run_script("01_basic_errors").err
        assert err.endswith(" Set MISTRAL_API_KEY to call the real API.\n")
        monkeypatch.setenv("MISTRAL_NO_NOTICE", "1")
        assert run_script("01_basic_errors") == (0, OUT, "")

    def test_empty_faults_replace_those_of_the_lesson(self, run_script: RunScript) -> None:
        out = run_script("05_fallbacks", "--faults", "").out
        assert "Response: What is the meaning of life? response" in out

    @pytest.mark.usefixtures("clock")  # so that no time passes
    def test_trace_ends_stderr_with_the_timeline(self, run_script: RunScript) -> None:
        _, out, err = run_script("01_basic_errors", "--trace", "--faults", "ok,drop")
        assert out.endswith("before the response was complete\n\n")
        assert err.splitlines()[1:] == [
            "The server saw 2 requests:",
            f"    0.0 s  |{'█':<30}| 200  mistral-small-latest",
            f"    0.0 s  |{'█':<30}| drop  invalid-model-name",
        ]

    def test_a_proxy_is_not_used(
        self, monkeypatch: pytest.MonkeyPatch, run_script: RunScript
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "")
        assert run_script("01_basic_errors")[:2] == (0, OUT)

    def test_a_slow_body_ends_at_the_total_timeout(
        self, exit_code: Callable[..., int], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.setenv("MISTRAL_TIMEOUT", "0.1")
        assert exit_code(lambda client: print(client.chat(HELLO)), "drip:0.05") == 1
        assert "within the total timeout of 0.2 s" in capsys.readouterr().err


class TestEnvFile:
    BOTH = "MISTRAL_API_KEY=the-key\nMISTRAL_BASE_URL=http://127.0.0.1:9/v1\n"

    @pytest.fixture
    def env_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """The path of an .env file that the lessons read, with no settings in the environment."""
        for name in SETTINGS:
            monkeypatch.delenv(name)
        monkeypatch.setattr(lesson, "ROOT", tmp_path)
        return tmp_path / ".env"

    @pytest.mark.parametrize(
        "text", [BOTH, "\ufeff" + BOTH.replace("\n", "\r\n")], ids=["Linux", "Windows"]
    )
    def test_settings_are_read(self, text: str, env_file: Path) -> None:
        env_file.write_bytes(text.encode())
        assert lesson.setting("MISTRAL_API_KEY") == "the-key"
        assert lesson.setting("MISTRAL_BASE_URL") == "http://127.0.0.1:9/v1"
        assert lesson.setting("MISTRAL_TIMEOUT", "60") == "60"

    def test_a_value_is_taken_as_it_is(self, env_file: Path) -> None:
        env_file.write_text("MISTRAL_API_KEY=a${HOME}b", "utf-8")
        assert lesson.setting("MISTRAL_API_KEY") == "a${HOME}b"

    def test_no_file_is_no_settings(self, env_file: Path) -> None:
        assert lesson.setting("MISTRAL_API_KEY", "none") == "none"

    @pytest.mark.parametrize("value", ["30", ""])
    def test_the_environment_takes_precedence(
        self, value: str, env_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env_file.write_bytes(b"\xff")  # it can't be read, and needn't
        monkeypatch.setenv("MISTRAL_TIMEOUT", value)
        assert lesson.setting("MISTRAL_TIMEOUT", "60") == (value or "60")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            pytest.param(BOTH.encode("utf-16"), "can't be read: save it as UTF-8", id="UTF-16"),
            pytest.param(b"MISTRAL_TIMEOUT=abc", "MISTRAL_TIMEOUT must be ", id="wrong setting"),
        ],
    )
    def test_a_mistake_is_one_sentence_and_exit_2(
        self, content: bytes, message: str, env_file: Path, run_script: RunScript
    ) -> None:
        env_file.write_bytes(content)
        code, out, err = run_script("01_basic_errors")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err

    def test_log_file(self, env_file: Path) -> None:
        assert lesson.log_file() == str(env_file.parent / "mistral_errors.log")
        env_file.write_text("MISTRAL_LOG_FILE=other.log", "utf-8")
        assert lesson.log_file() == "other.log"


def test_root_is_the_folder_of_the_readme() -> None:
    assert lesson.ROOT == ROOT


WRONG_ARGUMENTS = {
    ("--fault", "503"): "unrecognized arguments: --fault 503",
    ("503",): "unrecognized arguments: 503",
    ("--faults",): "argument --faults: expected one argument",
    ("--offline=yes",): "argument --offline: ignored explicit argument 'yes'",
    ("--faults", "503,rain"): "unknown fault 'rain': use ok, 503, 429:2, ",
    ("--faults", "dröp"): r"unknown fault 'dr\xf6p': did you mean drop?",
}
WRONG_SETTINGS = {
    "MISTRAL_TIMEOUT": {
        "MISTRAL_TIMEOUT must be a number of seconds > 0 and <= 86400, got ": [
            "abc", "0", "-1", "nan", "inf", "1e400", "1e10", "1,5",
        ],
    },
    "MISTRAL_API_KEY": {
        "The API key contains ": ["secret\nkey", "secret key", "secretключ", "secret“key”"],
    },
    "MISTRAL_BASE_URL": {
        "The base URL must look like https://api.mistral.ai/v1": [
            "somewhere", "ftp://api.mistral.ai/v1", "https://", "https://host:port/v1",
        ],
        "The base URL must start with https://: http would expose the key.": [
            "http://api.mistral.ai/v1", "http://127.0.0.1.example.com/v1",
        ],
    },
}  # fmt: skip


@pytest.mark.usefixtures("api")  # which sends no responses: nothing may be sent
class TestWrongInput:
    """Wrong input is one sentence and exit 2."""

    @pytest.mark.parametrize("arguments", WRONG_ARGUMENTS, ids=" ".join)
    def test_argument(self, arguments: tuple[str, ...], run_script: RunScript) -> None:
        code, out, err = run_script("01_basic_errors", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert WRONG_ARGUMENTS[arguments] in err

    @pytest.mark.parametrize("name", WRONG_SETTINGS)
    def test_setting(
        self, name: str, monkeypatch: pytest.MonkeyPatch, run_script: RunScript
    ) -> None:
        for message, values in WRONG_SETTINGS[name].items():
            for value in values:
                monkeypatch.setenv(name, value)
                code, out, err = run_script("01_basic_errors")
                assert (code, out, err.count("\n")) == (2, "", 1)
                assert message in err
                assert "secret" not in err

    def test_timeout_offline(self, monkeypatch: pytest.MonkeyPatch, run_script: RunScript) -> None:
        monkeypatch.setenv("MISTRAL_TIMEOUT", "0")
        code, out, err = run_script("01_basic_errors", "--offline")
        assert (code, out) == (2, "")
        assert err.startswith("MISTRAL_TIMEOUT must be ")


def test_help_says_what_the_lesson_is_about(run_script: RunScript) -> None:
    code, out, _ = run_script("01_basic_errors", "--help")
    assert code == 0
    assert "Lesson 1: Basic error handling. Catch each category of error" in out
    assert "503@20%" not in out  # only the syntax: the README has the examples
    assert "@20%" in out


class TestExit:
    @pytest.mark.parametrize(
        ("ending", "code"),
        [
            (None, 0),
            (KeyboardInterrupt(), 130),
            (APIConnectionError("the host was not found"), 1),
            (SystemExit(3), 3),
        ],
        ids=repr,
    )
    def test_no_thread_and_no_port_is_left(
        self,
        ending: BaseException | None,
        code: int,
        exit_code: Callable[..., int],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def lesson(client: MistralClient) -> None:
            client.models()  # opens a connection, which has a thread of the server's
            if ending:
                raise ending

        threads = set(threading.enumerate())
        assert exit_code(lesson) == code
        assert set(threading.enumerate()) <= threads
        (url,) = re.findall(r"http://\S+/v1", capsys.readouterr().err)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=5)


class TestConsole:
    @pytest.mark.parametrize(
        ("encoding", "shown"),
        [("ascii", "? ? ? Gr??e"), ("cp1252", "? ? ? Grüße"), ("utf-8", "✓ ✗ █ Grüße")],
    )
    def test_what_the_console_cannot_show_becomes_a_question_mark(
        self,
        encoding: str,
        shown: str,
        exit_code: Callable[..., int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        screen = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding))
        assert exit_code(lambda client: print("✓ ✗ █ Grüße")) == 0
        assert screen.getvalue().decode(encoding).strip() == shown

    def test_a_program_without_a_console_runs(
        self, exit_code: Callable[..., int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdout", None)  # as pythonw.exe has it
        assert exit_code(lambda client: print("Hello!")) == 0

    def test_without_a_stderr_no_notice_appears_on_stdout(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "stderr", None)
        lesson.print_err("a notice")
        assert capsys.readouterr().out == ""

    def test_a_line_is_shown_when_it_is_finished(
        self, exit_code: Callable[..., int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        screen = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, "utf-8"))
        seen = []

        def lesson(client: MistralClient) -> None:
            print("first")
            seen.append(screen.getvalue())

        assert exit_code(lesson) == 0
        assert seen[0].split() == [b"first"]
