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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from check_clients import MUTANTS, RightClient, released
from lib.answer_check import check_answer
from lib.circuit_breaker import CircuitBreaker
from lib.client import MistralClient
from lib.error_logger import ErrorLogger
from lib.errors import AuthenticationError
from lib.resilience_check import RULES, CheckError, Verdict, check, check_command, runs
from lib.resilience_check import __main__ as command_line
from lib.resilience_check.rules import Rule
from lib.resilience_check.runs import ANSWER
from lib.resilient_client import ResilientMistralClient
from lib.retry import Retrier
from support import ROOT, Outcome, finish, start

SOAK = bool(os.environ.get("SOAK_CALLS"))
RULE = {rule.name: rule for rule in RULES}
STREAMS = {rule.name for rule in RULES if rule.needs_stream}
HELLO = [{"role": "user", "content": "Hello!"}]

Ask = Callable[[str, str], str]
Jobs = dict[tuple[str, str], "Future[list[Verdict]]"]


def ask_ours(base_url: str, key: str, *, stream: bool, scale: float) -> str:
    """Ask with the settings that lib/README.md advises for a web handler, if the scale is 1."""

    def whole_stream(client: MistralClient) -> str:
        pieces = client.stream(HELLO)
        text = "".join(pieces)
        check_answer(SimpleNamespace(content=text, finish_reason=pieces.finish_reason))
        return text

    timeout = (2.0, 10 * scale)
    with MistralClient(key, base_url=base_url, timeout=timeout, total_timeout=10 * scale) as client:
        resilient = ResilientMistralClient(
            client,
            retrier=Retrier(max_attempts=2, total_timeout=15 * scale),
            breaker=CircuitBreaker("api", failure_threshold=5, recovery_timeout=10),
            logger=ErrorLogger(os.devnull),
        )
        if stream:
            return resilient.request(whole_stream)
        return check_answer(resilient.chat(HELLO)).content


PATIENCE = 30.0 if SOAK else 5.0  # seconds; 30 is the default
OURS = {
    "ours": partial(ask_ours, stream=False, scale=PATIENCE / 30),
    "ours, streamed": partial(ask_ours, stream=True, scale=PATIENCE / 30),
}
RIGHT: dict[str, Ask] = {
    "plain": RightClient(),
    "streamed": RightClient(stream=True),
    **OURS,
}


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    """Check all clients at the same time: nearly all of it is waiting."""
    clients: dict[str, Ask] = {**RIGHT, **MUTANTS}
    all_rules: list[Sequence[Rule]] = [
        RULES[:7],
        RULES[7:11],
        RULES[11:],
    ]  # those in the middle share their runs

    def verdicts(name: str, rules: Sequence[Rule]) -> list[Verdict]:
        return check(clients[name], rules=rules, patience=PATIENCE if name in OURS else 5.0)

    work = [(name, rules) for name in (clients if SOAK else RIGHT) for rules in all_rules]
    if not SOAK:
        work += [(name, (RULE[name],)) for name in MUTANTS]
    with ThreadPoolExecutor(10 if SOAK else 24) as pool:
        futures = [(name, rules, pool.submit(verdicts, name, rules)) for name, rules in work]
        yield {(name, rule.name): future for name, rules, future in futures for rule in rules}
        released.set()


def verdict(jobs: Jobs, client: str, rule: str) -> Verdict:
    return next(each for each in jobs[client, rule].result() if each.rule == rule)


class TestResilienceRules:
    @pytest.mark.parametrize("rule", RULE)
    def test_mutant_breaks_the_rule(self, rule: str, jobs: Jobs) -> None:
        assert verdict(jobs, rule, rule).verdict == "fail"

    @pytest.mark.parametrize("client", RIGHT)
    def test_right_client_keeps_every_rule(self, client: str, jobs: Jobs) -> None:
        verdicts = [verdict(jobs, client, rule) for rule in RULE]
        assert [each for each in verdicts if each.verdict == "fail"] == []
        not_tried = {each.rule for each in verdicts if each.verdict == "not tried"}
        expected = set() if "streamed" in client else STREAMS
        # With two attempts there is one wait; a short total timeout leaves no time for 429:2.
        assert not_tried - {"waits grow", "Retry-After is kept"} == expected

    @pytest.mark.skipif(not SOAK, reason="make soak runs it")
    @pytest.mark.parametrize("mutant", MUTANTS)
    def test_mutant_breaks_no_other_rule(self, mutant: str, jobs: Jobs) -> None:
        verdicts = [verdict(jobs, mutant, rule) for rule in RULE if rule != mutant]
        assert [each for each in verdicts if each.verdict == "fail"] == []

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


FAST = [
    RULE[name]
    for name in (
        "a 503 is retried",
        "a wrong key is sent once",
        "a broken stream is an error",
        "the key stays secret",
    )
]


class TestCommand:
    """A program in any language: it gets its settings from the environment."""

    def test_program_is_judged_by_what_it_prints(self) -> None:
        verdicts = check_command([sys.executable, "-c", client_program()], rules=FAST)
        assert [(each.rule, each.verdict, each.requests) for each in verdicts] == [
            ("a 503 is retried", "pass", 2),
            ("a wrong key is sent once", "pass", 1),
            ("a broken stream is an error", "not tried", 0),
            ("the key stays secret", "fail", 1),
        ]
        assert verdicts[0].happened.startswith("answered (2 requests, ")
        assert verdicts[2].happened == "does not stream"
        assert verdicts[3].happened.startswith("printed the key in 1 of 3 runs (1 request, ")
        assert verdicts[3].happened.endswith("exit code 1: it failed with Bearer [the key]")

    def test_dialect(self) -> None:
        program = [sys.executable, "-c", client_program(model="gpt-4o")]
        (verdict,) = check_command(program, rules=FAST[:1], dialect="openai")
        assert verdict.verdict == "pass"
        with pytest.raises(CheckError, match=r"got a 404 .* use --dialect openai"):
            check_command(program, rules=FAST[:1])

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            ("print('Hello!')", "sent no request .* OPENAI_BASE_URL .* It ended without an error"),
            ("import sys; sys.exit('no key')", "sent no request .* exit code 1: no key"),
            (
                "import sys; sys.exit('KeyError: x\\nv20')",
                "sent no request .* exit code 1: KeyError: x",
            ),
            (client_program().replace("print", "str"), f'did not print .* "{ANSWER}"'),
            (client_program() + "import time; time.sleep(60)", "It was still running"),
            ("while True: print('x' * 1000)", "sent no request .* It was still running"),
        ],
    )
    def test_program_that_gets_no_answer(
        self, program: str, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runs, "STARTUP", 0.7)
        with pytest.raises(CheckError, match=reason):
            check_command([sys.executable, "-c", program], patience=0.7)

    def test_command_that_is_not_found(self) -> None:
        with pytest.raises(CheckError, match=r"Can't run no-such-program: .+\."):
            check_command(["no-such-program"])

    @pytest.mark.skipif(os.name != "posix", reason="a group of processes is POSIX's")
    def test_whole_process_group_is_ended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runs, "STARTUP", 0.7)
        pids = tmp_path / "pids"
        program = f"sleep 60 & echo $! >{pids}; wait"
        with pytest.raises(CheckError, match="It was still running"):
            check_command(["sh", "-c", program])
        assert_is_gone(int(pids.read_text()))

    @pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT for one process")
    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
    def test_interruption_ends_the_program(self, sent: signal.Signals, tmp_path: Path) -> None:
        pid = tmp_path / "pid"
        program = ("sh", "-c", f"echo $$ >{pid}.new; mv {pid}.new {pid}; sleep 60")
        with start("-m", "lib.resilience_check", "--", *program) as checking:
            while not pid.exists():
                assert checking.poll() is None
                time.sleep(0.01)
            checking.send_signal(sent)
            assert finish(checking) == (130, "", "")
        assert_is_gone(int(pid.read_text()))


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
    def run(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., Outcome]:
        def run(*arguments: str) -> Outcome:
            monkeypatch.setattr(sys, "argv", ["resilience_check", *arguments])
            monkeypatch.setattr(command_line, "RULES", FAST)
            try:
                code = command_line.main()
            except SystemExit as error:
                code = int(error.code or 0)
            return Outcome(code, *capsys.readouterr())

        return run

    def test_table(self, run: Callable[..., Outcome]) -> None:
        code, out, err = run("--", sys.executable, "-c", client_program())
        assert (code, err) == (1, "")
        verdicts = [re.split("  +", line)[:2] for line in out.splitlines() if line[0] != " "]
        assert verdicts == [
            ["a 503 is retried", "pass"],
            ["a wrong key is sent once", "pass"],
            ["a broken stream is an error", "not tried"],
            ["the key stays secret", "fail"],
        ]
        secret = RULE["the key stays secret"]
        assert f"why it matters: {secret.why}\n    read on: {secret.read}\n" in out

    def test_a_message_that_the_console_cannot_show(
        self, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
        red = client_program().replace("it failed with ", "\\33[31mÉchec: ")
        run("--", sys.executable, "-X", "utf8", "-c", red)
        sys.stdout.flush()
        assert b"exit code 1: [31m?chec: " in shown.getvalue()

    def test_json(self, run: Callable[..., Outcome]) -> None:
        code, out, _ = run("--json", "--", sys.executable, "-c", client_program())
        rows = json.loads(out)["rules"]
        assert code == 1
        assert [row["verdict"] for row in rows] == ["pass", "pass", "not tried", "fail"]
        for row in rows:
            assert list(row) == ["rule", "verdict", "requests", "happened", "why"]

    def test_no_rule_fails(self, run: Callable[..., Outcome]) -> None:
        program = client_program().replace("request.get_header", "len")
        assert run("--", sys.executable, "-c", program).code == 0

    def test_nothing_could_be_tried(self, run: Callable[..., Outcome]) -> None:
        code, out, err = run("--json", "--", sys.executable, "-c", "")
        assert code == 2
        assert "sent no request" in err
        assert {row["verdict"] for row in json.loads(out)["rules"]} == {"not tried"}
        assert all("sent no request" in row["happened"] for row in json.loads(out)["rules"])

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
        self, arguments: tuple[str, ...], message: str, run: Callable[..., Outcome]
    ) -> None:
        code, _, err = run(*arguments)
        assert code == 2
        assert message in err.splitlines()[-1]


class TestFunction:
    """``check(ask)``, for tests."""

    def test_a_program_that_asks_for_json_gets_json(self) -> None:
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

        def ask(base_url: str, key: str) -> str:
            with MistralClient(key, base_url=base_url, timeout=5) as client:
                return str(json.loads(client.chat(HELLO, response_format=wanted).content)["text"])

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
