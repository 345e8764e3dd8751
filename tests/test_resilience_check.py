"""The resilience check: each rule fails the client that breaks it, and no rule a right client."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from check_clients import MUTANTS, RIGHT, SOAK, RightClient
from conftest import Commands, RunMain
from lib.client import MistralClient
from lib.errors import AuthenticationError
from lib.resilience_check import RULES, CheckError, check, check_command, runs
from lib.resilience_check import __main__ as command_line
from lib.resilience_check.rules import Rule
from lib.resilience_check.runs import ANSWER
from support import ROOT, Outcome, finish, run, start

RULE = {rule.name: rule for rule in RULES}
STREAMS = {rule.name for rule in RULES if rule.needs_stream}
HELLO = [{"role": "user", "content": "Hello!"}]
Verdicts = dict[str, dict[str, list[str]]]  # {client: {rule: [verdict, what happened]}}
COMMANDS = {
    "check_clients": partial(
        run, "-m", "check_clients", PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    )
}


def client_program(*, stream: bool = False, model: str = "mistral-small-latest") -> str:
    """Return a program that asks once, with the standard library only, and retries once."""
    body = {"model": model, "messages": HELLO, "stream": stream}
    return f"""
import json, os, sys, urllib.error, urllib.request
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps({body!r}).encode(),
    {{"Authorization": "Bearer " + os.environ["MISTRAL_API_KEY"]}},
)
try:
    response = urllib.request.urlopen(request, timeout=5)
except urllib.error.HTTPError as error:
    if error.code != 503:
        sys.exit("it failed with " + request.get_header("Authorization"))
    response = urllib.request.urlopen(request, timeout=5)
print(json.load(response)["choices"][0]["message"]["content"])
"""


OPENAI = ("--dialect", "openai")
SECRET = RULE["the key stays secret"]
FAST = [
    RULE["a 503 is retried"],
    RULE["a wrong key is sent once"],
    RULE["a broken stream is an error"],
    SECRET,
]


class TestCommand:
    """A program in any language: it gets its settings from the environment."""

    def test_program_that_gets_no_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def reason(program: str) -> str:
            with pytest.raises(CheckError) as caught:
                check_command([sys.executable, "-c", program], patience=0.5)
            return str(caught.value)

        monkeypatch.setenv("OF_THE_USER", "mine")
        expected = {
            "": "sent no request .* OPENAI_BASE_URL .* It ended without an error",
            "import sys; sys.exit('KeyError: x\\nv20')": "exit code 1: KeyError: x",
            "import os, sys; sys.exit(os.environ['OF_THE_USER'])": "exit code 1: mine",
            client_program().replace("print", "str"): f'did not print .* "{ANSWER}"',
            client_program() + "import time; time.sleep(60)": "It was still running",
        }
        with ThreadPoolExecutor() as pool:
            for wanted, message in zip(expected.values(), pool.map(reason, expected), strict=True):
                assert re.search(wanted, message)
        monkeypatch.setattr(runs, "STARTUP", 0.3)
        endless = reason("while True: print('x' * 1000)")
        assert re.search("sent no request .* It was still running", endless)

    @pytest.mark.skipif(os.name != "posix", reason="a group of processes is POSIX's")
    def test_interruption_ends_the_program_and_all_that_it_started(self, tmp_path: Path) -> None:
        pids = tmp_path / "pids"
        program = ("sh", "-c", f"sleep 60 & echo $$ $! >{pids}.new; mv {pids}.new {pids}; wait")
        with start("-m", "lib.resilience_check", "--", *program) as checking:
            while not pids.exists():
                assert checking.poll() is None
                time.sleep(0.01)
            checking.send_signal(signal.SIGTERM)
            assert finish(checking) == (130, "", "")
        for pid in pids.read_text().split():
            assert_is_gone(int(pid))


def assert_is_gone(pid: int) -> None:
    """Wait until a process has ended; one that nobody has waited for counts as ended."""
    deadline = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            os.kill(pid, 0)
            assert time.monotonic() < deadline, "it is still running"
            time.sleep(0.01)


class TestCommandLine:
    """``python -m lib.resilience_check -- COMMAND``."""

    @pytest.fixture
    def check_program(
        self, monkeypatch: pytest.MonkeyPatch, run_main: RunMain
    ) -> Callable[..., Outcome]:
        def check_program(*options: str, rules: Sequence[Rule] = FAST, program: str) -> Outcome:
            monkeypatch.setattr(command_line, "RULES", rules)
            command = (sys.executable, "-X", "utf8", "-c", program)
            return run_main(command_line.main, *options, "--", *command)

        return check_program

    def test_json(self, check_program: Callable[..., Outcome]) -> None:
        code, out, err = check_program("--json", program=client_program())
        rows = json.loads(out)["rules"]
        assert (code, err) == (1, "")
        assert [list(row.values())[:3] for row in rows] == [
            ["a 503 is retried", "pass", 2],
            ["a wrong key is sent once", "pass", 1],
            ["a broken stream is an error", "not tried", 0],
            ["the key stays secret", "fail", 1],
        ]
        assert {tuple(row) for row in rows} == {
            ("rule", "verdict", "requests", "happened", "why"),
        }
        retried, _, streamed, secret = (row["happened"] for row in rows)
        assert retried.startswith("answered (2 requests, ")
        assert streamed == "does not stream"
        assert secret.startswith("printed the key in 1 of 3 runs (1 request, ")
        assert secret.endswith("exit code 1: it failed with Bearer [the key]")

    def test_table_on_a_console_that_cannot_show_the_message(
        self, check_program: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
        red = client_program().replace("it failed with ", "\\33[31mÉchec: ")
        assert check_program(rules=FAST[2:], program=red).code == 1
        sys.stdout.flush()
        streamed, secret, why, read = shown.getvalue().decode().splitlines()
        assert re.fullmatch("a broken stream is an error +not tried +does not stream", streamed)
        assert re.match("the key stays secret +fail +printed the key in 1 of 2 runs", secret)
        assert secret.endswith(": exit code 1: [31m?chec: Bearer [the key]")
        assert why == f"    why it matters: {SECRET.why}"
        assert read == f"    read on: {SECRET.read}"

    def test_dialect(self, check_program: Callable[..., Outcome]) -> None:
        program = client_program(model="gpt-4o")
        assert check_program(*OPENAI, rules=FAST[:1], program=program).code == 0
        code, out, err = check_program("--json", program=program)
        assert code == 2
        assert re.search(r"got a 404 .* use --dialect openai", err)
        rows = json.loads(out)["rules"]
        assert [row["verdict"] for row in rows] == ["not tried"] * len(FAST)
        assert {row["happened"] for row in rows} == {err.strip()}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "name your program after --, for example: -- python my_app.py"),
            (("--json", "--"), "name your program after --"),
            (("python", "app.py"), "unrecognized arguments: python app.py"),
            (("--patience", "0", "--", "x"), "--patience must be a number of seconds > 0, got 0.0"),
            (("--patience", "nan", "--", "x"), "--patience must be a number of seconds > 0"),
            (("--dialect", "x", "--", "x"), "--dialect"),
            (("--", "no-such-program"), "Can't run no-such-program: "),
        ],
    )
    def test_wrong_usage_is_one_sentence_and_exit_2(
        self, arguments: tuple[str, ...], message: str, run_main: RunMain
    ) -> None:
        code, _, err = run_main(command_line.main, *arguments)
        assert code == 2
        assert message in err.splitlines()[-1]


class TestFunction:
    """``check(ask)``, for tests."""

    @pytest.mark.parametrize(
        ("properties", "expected"),
        [
            ({"text": {"type": "string"}}, {"text": ANSWER}),
            ({"score": {"type": "integer"}}, {"score": 1}),
            (None, {}),
        ],
    )
    def test_a_program_that_asks_for_json_gets_json(
        self, properties: Any, expected: dict[str, Any]
    ) -> None:
        schema = {"name": "x", "schema": {"type": "object", "properties": properties}}
        wanted = {"type": "json_schema", "json_schema": schema}
        if properties is None:
            wanted = {"type": "json_object"}

        def ask(base_url: str, key: str) -> str:
            with MistralClient(key, base_url=base_url, timeout=5) as client:
                content = client.chat(HELLO, response_format=wanted).content
            assert json.loads(content) == expected
            return ANSWER

        assert [each.verdict for each in check(ask, rules=FAST[:2])] == ["fail", "pass"]

    def test_an_exception_is_a_failure_and_its_traceback_is_searched_for_the_key(self) -> None:
        def ask(base_url: str, key: str) -> str:
            with MistralClient(key, base_url=base_url, timeout=5) as client:
                try:
                    return client.chat(HELLO).content
                except AuthenticationError as error:
                    raise RuntimeError("it failed") from ValueError(f"{error} with {key}")

        (verdict,) = check(ask, rules=[RULE["the key stays secret"]])
        assert verdict.happened.endswith("RuntimeError: it failed")
        assert verdict.verdict == "fail"

    def test_patience_must_be_a_number(self) -> None:
        for patience in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="patience must be a number of seconds > 0, got"):
                check(RightClient(), patience=patience)


class TestResilienceRules:
    """The verdicts of check_clients.py on a right client, on its mutants, and on ours."""

    @pytest.fixture
    def verdicts(self, commands: Commands) -> Verdicts:
        code, out, err = commands("check_clients")
        assert code == 0, err
        verdicts: Verdicts = json.loads(out)
        return verdicts

    @pytest.mark.parametrize("rule", RULE)
    def test_mutant_breaks_the_rule(self, rule: str, verdicts: Verdicts) -> None:
        assert verdicts[rule][rule][0] == "fail"

    @pytest.mark.parametrize("client", RIGHT)
    def test_right_client_keeps_every_rule(self, client: str, verdicts: Verdicts) -> None:
        found = verdicts[client]
        streams = "streamed" in client
        assert found.keys() >= (STREAMS if streams else RULE.keys() - STREAMS)
        assert [each for each in found.items() if each[1][0] == "fail"] == []
        not_tried = {rule for rule, (verdict, _) in found.items() if verdict == "not tried"}
        # With two attempts there is one wait; a short total timeout leaves no time for 429:2.
        unjudged = {"waits grow", "Retry-After is kept"} if "ours" in client else set()
        assert not_tried <= (unjudged if streams else unjudged | STREAMS)

    @pytest.mark.skipif(not SOAK, reason="make soak runs it")
    @pytest.mark.parametrize("mutant", MUTANTS)
    def test_mutant_breaks_no_other_rule(self, mutant: str, verdicts: Verdicts) -> None:
        failed = [rule for rule, (verdict, _) in verdicts[mutant].items() if verdict == "fail"]
        assert failed == [mutant]

    @pytest.mark.skipif(not SOAK, reason="make soak runs it")
    def test_lesson_2_breaks_the_rules_that_the_workshop_names(self) -> None:
        verdicts = check_command([sys.executable, str(ROOT / "examples" / "02_backoff.py")])
        assert [each.rule for each in verdicts if each.verdict == "fail"] == [
            "retries are spread", "silence ends", "a drip ends", "a cut-off answer is noticed",
        ]  # fmt: skip

    def test_read_on_leads_to_a_heading(self) -> None:
        for rule in RULES:
            page, _, heading = rule.read.partition("#")
            headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
            assert heading in anchors, rule.read
