"""The exercises: which solutions the check accepts, which it rejects, and what it prints."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from examples.exercises import check
from examples.exercises.checker import rules
from examples.support.lesson import run_command
from support import ROOT, Outcome, finish, start

EXERCISES = ROOT / "examples" / "exercises"
SOLUTIONS = ROOT / "examples" / "solutions"
RIGHT = ROOT / "tests" / "right_solutions"
WRONG = ROOT / "tests" / "wrong_solutions"
COMMAND = str(EXERCISES / "check.py")
FILES = check.EXERCISES.values()


class Slip(NamedTuple):
    """A wrong solution: a right one with one mistake, and the rule that the mistake breaks."""

    number: int
    rule: str
    source: str


def read_slips(number: int) -> Iterator[Slip]:
    """Read tests/wrong_solutions/exN.diff: the rule, the right lines (-), the wrong lines (+)."""
    for block in (WRONG / f"ex{number}.diff").read_text("utf-8").split("\n\n"):
        rule, *lines = block.splitlines()
        path = SOLUTIONS / check.EXERCISES[number]
        if lines[0].startswith("# in "):
            path = RIGHT / lines.pop(0).removeprefix("# in ")
        right = ["", *(line[1:] for line in lines if line[0] == "-"), ""]
        wrong = ["", *(line[1:] for line in lines if line[0] == "+"), ""]
        yield Slip(
            number, rule.removeprefix("# "), changed(path, "\n".join(right), "\n".join(wrong))
        )


def changed(path: Path, right: str, wrong: str) -> str:
    source = path.read_text("utf-8")
    assert source.count(right) == 1, right
    return source.replace(right, wrong)


SLIPS = [slip for number in check.EXERCISES for slip in read_slips(number)]
ORDERS = {
    "retry, breaker, limiter": set[str](),
    "retry, limiter, breaker": {"an open circuit sends nothing and uses up no slot"},
    "breaker, retry, limiter": {"the breaker sees each attempt: when it opens, the retries end"},
    "breaker, limiter, retry": {
        "each attempt is paced",
        "the breaker sees each attempt: when it opens, the retries end",
    },
    "limiter, retry, breaker": {
        "each attempt is paced",
        "an open circuit sends nothing and uses up no slot",
    },
    "limiter, breaker, retry": {
        "each attempt is paced",
        "the breaker sees each attempt: when it opens, the retries end",
        "an open circuit sends nothing and uses up no slot",
    },
}


def broken_rules(number: int, solution: Any) -> set[str]:
    verdicts = check.check_rules(check.rules_of(number), solution)
    return {verdict.rule.description for verdict in verdicts if verdict.outcome != "ok"}


def load(folder: Path, source: str) -> Any:
    path = folder / "solution.py"
    path.write_text(source, "utf-8")
    return rules.load(path)


def problem_of(slip: Slip, folder: Path) -> str:
    [rule] = [rule for rule in check.rules_of(slip.number) if rule.description == slip.rule]
    [verdict] = check.check_rules([rule], load(folder, slip.source))
    return verdict.actual


class TestRightSolutions:
    @pytest.mark.parametrize(
        "path", [*SOLUTIONS.glob("ex*.py"), *RIGHT.glob("*.py")], ids=lambda path: str(path.stem)
    )
    def test_file_is_accepted(self, path: Path) -> None:
        assert broken_rules(int(path.name[2]), rules.load(path)) == set()

    @pytest.mark.parametrize(
        ("file", "other"),
        [("ex1_retry_pool.py", "RLock"), ("ex2_cost_control.py", "Condition")],
    )
    def test_other_kind_of_lock_is_accepted(self, file: str, other: str, tmp_path: Path) -> None:
        source = changed(SOLUTIONS / file, "threading.Lock(", f"threading.{other}(")
        assert broken_rules(int(file[2]), load(tmp_path, source)) == set()

    @pytest.mark.parametrize("order", ORDERS)
    def test_one_order_of_the_capstone_is_right(self, order: str) -> None:
        def resilient_chat(
            client: Any, retrier: Any, breaker: Any, limiter: Any, messages: Any
        ) -> Any:
            def paced(call: Callable[[], Any]) -> Any:
                limiter.acquire()
                return call()

            wrappers = {"retry": retrier.call, "breaker": breaker.call, "limiter": paced}
            call: Callable[[], Any] = partial(client.chat, messages)
            for part in reversed(order.split(", ")):
                call = partial(wrappers[part], call)
            return call()

        solution = SimpleNamespace(resilient_chat=resilient_chat, __file__=__file__)
        assert broken_rules(4, solution) == ORDERS[order]


class TestWrongSolutions:
    @pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: f"{slip.number}: {slip.rule}")
    def test_slip_breaks_its_rule(self, slip: Slip, tmp_path: Path) -> None:
        assert problem_of(slip, tmp_path)

    def test_verdict_does_not_depend_on_how_the_system_runs_threads(self, tmp_path: Path) -> None:
        interval = sys.getswitchinterval()
        slips = [slip for slip in SLIPS if "thread" in slip.rule][::5]
        found = []
        try:
            for seconds in (1e-6, 0.05):
                sys.setswitchinterval(seconds)
                found.append([problem_of(slip, tmp_path) for slip in slips])
        finally:
            sys.setswitchinterval(interval)
        assert found[0] == found[1]

    @pytest.mark.parametrize("number", check.EXERCISES)
    def test_every_rule_is_broken_by_a_slip_or_an_order(self, number: int) -> None:
        broken = {slip.rule for slip in SLIPS}.union(*ORDERS.values())
        assert {rule.description for rule in check.rules_of(number)} <= broken

    def test_rule_that_needs_a_broken_rule_is_not_tried(self, tmp_path: Path) -> None:
        source = changed(
            SOLUTIONS / "ex1_retry_pool.py", "self._retrier.call(self._create)", "self._create()"
        )
        verdicts = check.check_rules(check.rules_of(1), load(tmp_path, source))
        not_ok = {verdict.number: verdict for verdict in verdicts if verdict.outcome != "ok"}
        assert [verdict.outcome for verdict in not_ok.values()] == ["not yet"] + 3 * ["not tried"]
        assert {verdict.actual for verdict in not_ok.values()} >= {f"needs rule {min(not_ok)}"}


Report = Callable[[int, str], str]


class TestReport:
    @pytest.fixture
    def report(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Report:
        """What the check prints for a file with this source; its exit code is 1."""

        def report(number: int, source: str) -> str:
            path = tmp_path / "solution.py"
            path.write_text(source, "utf-8")
            assert check.check_exercise(number, path) == 1
            return capsys.readouterr().out

        return report

    @pytest.mark.parametrize("file", FILES)
    def test_untouched_exercise_is_not_started(self, file: str, report: Report) -> None:
        skip_if_started(file)
        out = report(int(file[2]), (EXERCISES / file).read_text("utf-8"))
        assert "is not started." in out
        assert "Hint 1 of 3: " in out
        assert "✗" not in out

    def test_problem_has_what_was_called_actual_and_expected(self, report: Report) -> None:
        assert (
            "  ✗ not yet     4. each attempt is paced\n"
            "        called:    resilient_chat(...) with the faults 503,503,ok\n"
            "        actual:    slots taken: 0; requests: 3\n"
            "        expected:  3 slots of the limiter are taken, one for each of the 3 requests\n"
            "  ✓ ok          5. the breaker sees"
        ) in report(4, without_limiter())

    def test_method_that_is_missing_is_named(self, report: Report) -> None:
        line = "        connection = self.get_connection(timeout)\n"
        missing = "        raise NotImplementedError\n"
        out = report(1, changed(SOLUTIONS / "ex1_retry_pool.py", line, missing))
        assert "actual:    connection is not written yet (line " in out
        assert "20 of 21 rules hold." in out

    @pytest.mark.parametrize(
        ("number", "source", "sentence"),
        [
            (1, "import sys\n\ndef get(:\n", r"Python can't read your file \(.+\) at line 3: def"),
            (3, "import sys\nsys.exit(3)\n", r"your code raised SystemExit \(3\) at line 2: sys.e"),
            (2, "print('hello')\n", "actual:    your file has no Price"),
            (4, "def resilient_chat(it, *rest):\n    return it.ask()\n",
             r"your code raised AttributeError \('MistralClient' object"),
        ],
    )  # fmt: skip
    def test_error_in_the_file_is_a_sentence(
        self, number: int, source: str, sentence: str, report: Report
    ) -> None:
        assert re.search(sentence, report(number, source))

    @pytest.mark.parametrize(
        ("source", "not_tried"),
        [
            ("running = True\nwhile running:\n    pass\n", 0),
            ("running = True\ndef resilient_chat(*parts):\n    while running:\n        pass\n", 6),
        ],
    )
    def test_endless_loop_is_cut_off(
        self, source: str, not_tried: int, report: Report, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check, "SECONDS_PER_RULE", 0.5)
        out = report(4, source)
        sys.modules[rules.MODULE_NAME].running = False  # type: ignore[attr-defined]
        assert "it did not return within 0.5 s: is there an endless loop?" in out
        assert out.count("- not tried") == not_tried

    def test_overview_has_a_line_for_each_exercise(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = {
            "ex1_retry_pool.py": 'def get():\n    "Doc."\n    raise NotImplementedError\n',
            "ex2_cost_control.py": "def broken(:\n",
            "ex3_health_monitor.py": "print('hello')\n",
            "ex4_capstone.py": without_limiter(),
        }
        for file, source in files.items():
            (tmp_path / file).write_text(source, "utf-8")
        monkeypatch.setattr(check, "EXERCISES", dict(enumerate(files, 1)))
        monkeypatch.setattr(check, "HERE", tmp_path)
        assert check.show_overview() == 0
        out = capsys.readouterr().out
        assert "1  ex1_retry_pool.py       not started\n" in out
        assert "2  ex2_cost_control.py     Python can't read your file" in out
        assert "3  ex3_health_monitor.py   0 of 10 rules\n" in out
        assert "4  ex4_capstone.py         6 of 7 rules\n" in out

    def test_overview_says_done(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(check, "EXERCISES", {4: "ex4_capstone.py"})
        monkeypatch.setattr(check, "HERE", SOLUTIONS)
        assert check.show_overview() == 0
        assert "4  ex4_capstone.py         done\n" in capsys.readouterr().out


def without_limiter() -> str:
    return changed(SOLUTIONS / "ex4_capstone.py", "        limiter.acquire()\n", "")


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """Start all child processes at once; wait for one by its name."""
    ctrl_c = tmp_path_factory.mktemp("check") / "ctrl_c.py"
    ctrl_c.write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True:\n    pass\n"
    )
    solution = str(SOLUTIONS / "ex4_capstone.py")
    children = {
        "Ctrl-C": start(COMMAND, "1", str(ctrl_c)),
        "closed pipe": start(COMMAND, "4", solution),
        "ASCII console": start(COMMAND, "4", solution, PYTHONIOENCODING="ascii"),
    }
    assert children["closed pipe"].stdout
    children["closed pipe"].stdout.close()
    children["closed pipe"].stdout = None
    return lambda name: finish(children[name])


class TestCommand:
    @pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process there")
    def test_ctrl_c_ends_it_although_a_call_still_runs(
        self, child: Callable[[str], Outcome]
    ) -> None:
        assert child("Ctrl-C") == (130, "", "")

    def test_closed_pipe_ends_it(self, child: Callable[[str], Outcome]) -> None:
        code, _, err = child("closed pipe")
        assert (code, err) == (141, "")

    def test_console_without_ticks_gets_question_marks(
        self, child: Callable[[str], Outcome]
    ) -> None:
        code, out, err = child("ASCII console")
        assert (code, err) == (0, "")
        assert "  ? ok          4. each attempt is paced\n" in out

    @pytest.mark.parametrize(("number", "file"), check.EXERCISES.items())
    def test_exercise_that_is_run_says_how_to_check_it(
        self, number: int, file: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runpy.run_path(str(EXERCISES / file), run_name="__main__")
        command = f"make check N={number} (or: python examples/exercises/check.py {number})"
        assert capsys.readouterr().out == f"Check it with: {command}\n"

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["9"], "argument number: invalid choice: 9"),
            (["one"], "argument number: invalid int value: 'one'"),
            (["1", "no_such_file.py"], "There is no readable file no_such_file.py."),
            (["1", "--hint", "4"], "argument --hint: invalid choice: 4"),
        ],
    )
    def test_wrong_usage_is_one_sentence_and_exit_2(
        self,
        arguments: list[str],
        sentence: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys, "argv", [COMMAND, *arguments])
        with pytest.raises(SystemExit) as exit_info:
            run_command(check.main)
        assert exit_info.value.code == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert sentence in err

    @pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
    @pytest.mark.parametrize(("number", "arguments"), [("", ""), ("N=3", " 3")])
    def test_make_check_shows_no_error_of_make(
        self, number: str, arguments: str, tmp_path: Path
    ) -> None:
        stub = tmp_path / "python"
        stub.write_text('#!/bin/sh\necho "$*"; exit 1\n')
        stub.chmod(0o755)
        made = subprocess.run(
            ["make", "--no-print-directory", "check", f"BIN={tmp_path}", "READY=", *number.split()],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (made.returncode, made.stderr) == (0, "")
        assert made.stdout.rstrip() == f"examples/exercises/check.py{arguments}"


def skip_if_started(file: str) -> None:
    """Let people run the tests while they do the exercises; in the repository, none is started."""
    if not check.not_started(EXERCISES / file) and not os.environ.get("CI"):
        pytest.skip(f"{file} is started")


class TestExerciseFiles:
    @pytest.mark.parametrize("file", FILES)
    def test_exercise_has_one_region_to_write_in_and_three_hints(self, file: str) -> None:
        skip_if_started(file)
        source = (EXERCISES / file).read_text("utf-8")
        before, region, after = re.split("# TODO: yours from here\n|# to here\n", source)
        assert "NotImplementedError" not in before + after
        assert "NotImplementedError" in region
        assert len(set(rules.load(EXERCISES / file).HINTS)) == 3

    @pytest.mark.parametrize("file", FILES)
    def test_solution_has_the_interface_of_its_exercise(self, file: str) -> None:
        skip_if_started(file)
        assert interface_of(EXERCISES / file).items() <= interface_of(SOLUTIONS / file).items()

    @pytest.mark.parametrize("folder", [EXERCISES, SOLUTIONS])
    def test_price_table_is_the_list_of_its_date(self, folder: Path) -> None:
        path = folder / "ex2_cost_control.py"
        assert "list prices of 2026-08-21" in path.read_text("utf-8")
        prices = rules.load(path).PRICES
        assert {name: (price.prompt, price.completion) for name, price in prices.items()} == {
            "mistral-small-latest": (Decimal("0.15"), Decimal("0.60")),
            "mistral-medium-latest": (Decimal("1.50"), Decimal("7.50")),
            "mistral-large-latest": (Decimal("0.50"), Decimal("1.50")),
            "ministral-8b-latest": (Decimal("0.15"), Decimal("0.15")),
        }


def interface_of(path: Path) -> dict[str, tuple[str, str | None]]:
    """Public classes and functions: their fields or arguments, and their docstrings."""
    found: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
            found[node.name] = ("; ".join(fields), ast.get_docstring(node))
        elif isinstance(node, ast.FunctionDef) and not re.match("_[a-z]", node.name):
            types = f"{ast.unparse(node.args)} -> {node.returns and ast.unparse(node.returns)}"
            found[node.name] = (types, ast.get_docstring(node))
    return found
