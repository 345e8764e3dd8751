"""The exercises: which solutions the check accepts, which it rejects, and what it prints."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from check_solutions import (
    ORDERS,
    OTHER_SOLUTIONS,
    RIGHT,
    SLIPS,
    SOLUTIONS,
    STUBBORN,
    broken_rules,
    changed,
    load,
    problem_of,
)
from conftest import Commands
from examples.exercises import check, reset
from examples.exercises.checker import hints, judge, rules
from examples.support.lesson import UsageError, run_command
from support import ROOT, finish, run, start

EXERCISES = ROOT / "examples" / "exercises"
COMMAND = str(EXERCISES / "check.py")
FILES = check.EXERCISES.values()
COMMANDS = {
    "check_solutions": partial(
        run, str(ROOT / "tests" / "check_solutions.py"), PYTHONPATH=str(ROOT)
    )
}


@functools.cache
def solution_of(number: int) -> str:
    return (SOLUTIONS / check.EXERCISES[number]).read_text("utf-8")


@pytest.fixture(scope="module")
def verdicts(commands: Commands) -> dict[str, Any]:
    """What check_solutions.py has found."""
    _, out, err = commands("check_solutions")
    assert out, err
    found: dict[str, Any] = json.loads(out)
    return found


class TestRightSolutions:
    @pytest.mark.parametrize("name", [path.stem for path in RIGHT])
    def test_solution_is_accepted(self, name: str, verdicts: dict[str, Any]) -> None:
        assert verdicts["right"][name] == []

    @pytest.mark.parametrize("order", ORDERS)
    def test_one_order_of_the_capstone_is_right(self, order: str, verdicts: dict[str, Any]) -> None:
        assert set(verdicts["orders"][order]) == ORDERS[order]


class TestWrongSolutions:
    @pytest.mark.parametrize(
        "index", range(len(SLIPS)), ids=[f"{slip.number}: {slip.rule}" for slip in SLIPS]
    )
    def test_slip_breaks_its_rule(self, index: int, verdicts: dict[str, Any]) -> None:
        assert verdicts["wrong"][index]

    def test_verdict_does_not_depend_on_how_the_system_runs_threads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdicts: dict[str, Any]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for slip, problem in zip(SLIPS, verdicts["wrong"], strict=True):
                if "thread" in slip.rule:
                    assert problem_of(slip) == problem
        finally:
            sys.setswitchinterval(interval)

    @pytest.mark.parametrize("number", check.EXERCISES)
    def test_every_rule_is_broken_by_a_slip_or_an_order(self, number: int) -> None:
        broken = {slip.rule for slip in SLIPS}.union(*ORDERS.values())
        assert {rule.description for rule in judge.rules_of(number)} <= broken

    @pytest.mark.skipif("SOAK_CALLS" not in os.environ, reason="takes a minute: make soak")
    @pytest.mark.parametrize("number", check.EXERCISES)
    def test_every_rule_has_a_slip_that_breaks_no_other(
        self, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        slips = [slip for slip in SLIPS if slip.number == number]
        broken = [set(broken_rules(number, load(slip.source))) for slip in slips]
        broken += ORDERS.values()
        alone = {rule for rules in broken if len(rules) == 1 for rule in rules}
        assert {rule.description for rule in judge.rules_of(number)} <= alone

    def test_rule_that_needs_a_broken_rule_is_not_tried(self) -> None:
        def made(description: str, problem: str | None, *needs: rules.Rule) -> rules.Rule:
            make = rules.rule(description, called="", expected="", needs=needs)
            return make(lambda solution: problem)

        right, wrong = made("right", None), made("wrong", "it is wrong")
        after_wrong = made("after wrong", None, right, wrong)
        last = made("last", None, after_wrong)
        found = judge.check_rules([right, wrong, after_wrong, last], None)
        assert [(verdict.outcome, verdict.actual) for verdict in found] == [
            ("ok", ""),
            ("not yet", "it is wrong"),
            ("not tried", "needs rule 2"),
            ("not tried", "needs rule 2"),
        ]


def without_limiter() -> str:
    return changed(solution_of(4), "        limiter.acquire()\n", "")


def with_first_line(line: str) -> str:
    return changed(
        solution_of(5),
        "        return await self._retrier.",
        f"        {line}\n        return await self._retrier.",
    )


Report = Callable[..., str]


class TestReport:
    @pytest.fixture
    def report(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> Report:
        """What the check prints for a file with this source."""
        monkeypatch.setattr(check, "verdicts", judge.judge)

        def report(number: int, source: str, *, code: int = 1) -> str:
            path = tmp_path / "solution.py"
            path.write_text(source, "utf-8")
            assert check.check_exercise(number, path) == code
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
        out = report(4, without_limiter())
        assert (
            "  ✗ not yet      4. each attempt is paced\n"
            "        called:    resilient_chat(...) with the faults 503,503,ok\n"
            "        actual:    slots taken: 0; requests: 3\n"
            "        expected:  3 slots of the limiter are taken, one before each of the 3"
            " requests\n"
            "  ✓ ok           5. an attempt waits"
        ) in out
        assert "11 of 12 rules hold." in out
        assert "The stretch part" not in out

    def test_stretch_part_is_shown_when_the_first_part_holds(self, report: Report) -> None:
        out = report(
            4, solution_of(4).replace("limiter.acquire(timeout=time_left())", "limiter.acquire()")
        )
        assert "  ✓ ok          All 12 rules of the first part hold.\n\nThe stretch part:\n" in out
        assert "3 of 4 rules hold." in out
        assert "Hint 1 of 3: A timeout is a duration" in out

    def test_stretch_part_may_be_left_out(self, report: Report) -> None:
        source = (OTHER_SOLUTIONS / "ex4_decorators.py").read_text("utf-8")
        assert "The stretch part is not started" in report(4, source, code=0)

    @pytest.mark.parametrize(
        ("number", "source", "sentence"),
        [
            (1, "import sys\n\ndef get(:\n", r"Python can't read your file \(.+\) at line 3: def"),
            (3, "import sys\nsys.exit(3)\n", r"your code raised SystemExit \(3\) at line 2: sys.e"),
            (2, "print('hello')\n", r"✗ not written 1\. .+ actual:    your file has no Price"),
            (4, "def resilient_chat(*all):\n    all\n    print()\n    raise NotImplementedError\n",
             r"✗ not written 1\. .+ resilient_chat is not written yet \(line 4\)"),
            (4, "def resilient_chat(it, *rest):\n    return it.ask()\n",
             r"your code raised AttributeError \('Client' object"),
            (5, with_first_line("__import__('time').sleep(1)"),
             r"time.sleep\(1\) stops every call of the program: await asyncio.sleep"),
            (5, with_first_line("await __import__('asyncio').Event().wait()"),
             "a call never ends"),
        ],
    )  # fmt: skip
    def test_error_in_the_file_is_a_sentence(
        self, number: int, source: str, sentence: str, report: Report
    ) -> None:
        out = " ".join(report(number, source).split())
        assert re.search(sentence, out.replace("actual: ", "actual:    "))

    @pytest.mark.parametrize(
        ("number", "source", "progress"),
        [
            (1, 'def get():\n    "Doc."\n    raise NotImplementedError\n', "not started"),
            (2, "def broken(:\n", "Python can't read your file"),
            (3, "print('hello')\n", "0 of 9 rules"),
            (4, (OTHER_SOLUTIONS / "ex4_decorators.py").read_text("utf-8"),
             "first part done, stretch part: 0 of 4 rules"),
            (4, solution_of(4), "done"),
        ],
    )  # fmt: skip
    def test_overview_has_a_line_for_each_exercise(
        self,
        number: int,
        source: str,
        progress: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "mine.py").write_text(source, "utf-8")
        monkeypatch.setattr(check, "EXERCISES", {number: "mine.py"})
        monkeypatch.setattr(check, "HERE", tmp_path)
        monkeypatch.setattr(check, "verdicts", judge.judge)
        assert check.show_overview() == 0
        [line] = re.findall(f"  {number}  mine.py +(.+)\n\n", capsys.readouterr().out)
        assert line.startswith(progress)


@pytest.fixture
def found(verdicts: dict[str, Any]) -> dict[str, list[judge.Verdict]]:
    """The verdicts on each stubborn file: one on its loading, and one on each rule."""
    return {
        name: [judge.Verdict(*verdict) for verdict in found]
        for name, found in verdicts["stubborn"].items()
    }


class TestStubbornFiles:
    """Each file is checked in a process of its own, which ends in time, whatever the file does."""

    @pytest.mark.parametrize(
        ("name", "position", "actual"),
        [
            ("loop", 1, "it did not return within 1.5 s: it was at line {}: `{}`"),
            (
                "loop in C",
                1,
                "it did not return within 1.5 s: it was at line 2: `sum(range(10**12))`",
            ),
            ("no watchdog", 0, "it did not return within 2 s"),
            ("exit", 1, "your code ended the process"),
            ("changed rules", 1, "your code has changed examples.exercises.checker.rules_1."),
            ("changed helper", 1, "your code has changed lib.retry.Retrier.call, which"),
            ("flood", 0, "your code raised TooMuchPrintedError"),
            ("other trace", 0, "your code raised RuntimeError (the check needs sys.settrace"),
            ("other process", 0, "your code ended the process"),
        ],
    )
    def test_verdict_says_what_happened(
        self, name: str, position: int, actual: str, found: dict[str, list[judge.Verdict]]
    ) -> None:
        verdict = found[name][position]
        assert verdict.outcome == "not yet"
        lines = STUBBORN[name].splitlines()
        either = [actual.format(number, line.strip()) for number, line in enumerate(lines, 1)]
        assert any(verdict.actual.startswith(possible) for possible in either), verdict.actual

    def test_verdict_that_a_file_writes_does_not_count(
        self, found: dict[str, list[judge.Verdict]]
    ) -> None:
        assert "ok" not in {verdict.outcome for verdict in found["own verdicts"][1:]}

    @pytest.mark.parametrize("name", ["loop", "exit"])
    def test_rules_after_it_are_not_tried(
        self, name: str, found: dict[str, list[judge.Verdict]]
    ) -> None:
        assert len(found[name]) == 1 + len(judge.rules_of(1))
        assert {verdict.outcome for verdict in found[name][2:]} == {"not tried"}


class TestCommand:
    @pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process there")
    def test_ctrl_c_ends_it_and_the_call_that_runs(self, tmp_path: Path) -> None:
        started = tmp_path / "started"
        path = tmp_path / "endless.py"
        path.write_text(
            f"import os\nopen({str(started)!r}, 'w').write(str(os.getpid()) + '.')\n"
            "while True:\n    pass\n"
        )
        process = start(COMMAND, "1", str(path))
        give_up_at = time.monotonic() + 60
        while not (started.exists() and started.read_text().endswith(".")):
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
        assert (code, err) == (130, "")
        with pytest.raises(ProcessLookupError):
            os.kill(int(started.read_text()[:-1]), 0)

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


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
class TestReset:
    @pytest.fixture
    def exercise(self, tmp_path: Path) -> Path:
        """An exercise in a repository of its own."""
        path = tmp_path / "ex1_retry_pool.py"
        path.write_text("the original\n")
        identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"]
        for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "Exercise"]):
            subprocess.run(["git", *command], cwd=tmp_path, check=True)
        return path

    def test_attempt_is_kept_beside_the_original(
        self, exercise: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in (1, 2):
            exercise.write_text(f"my attempt {number}\n")
            assert reset.reset(exercise) == 0
            kept = exercise.with_name(f"ex1_retry_pool_attempt_{number}.py")
            assert kept.read_text() == f"my attempt {number}\n"
            assert exercise.read_text() == "the original\n"
            assert f"Your attempt is in {kept.name}, in the same folder." in capsys.readouterr().out

    def test_exercise_that_was_deleted_comes_back(self, exercise: Path) -> None:
        exercise.unlink()
        assert reset.reset(exercise) == 0
        assert [path.name for path in exercise.parent.glob("*.py")] == [exercise.name]

    def test_exercise_without_an_attempt_stays(self, exercise: Path) -> None:
        assert reset.reset(exercise) == 0
        assert [path.name for path in exercise.parent.glob("*.py")] == [exercise.name]

    def test_folder_without_a_repository_is_one_sentence(self, tmp_path: Path) -> None:
        path = tmp_path / "ex1_retry_pool.py"
        path.write_text("my attempt\n")
        with pytest.raises(UsageError, match=r"Git does not know ex1_retry_pool.py"):
            reset.reset(path)
        assert path.read_text() == "my attempt\n"


def skip_if_started(file: str) -> None:
    """Let people run the tests while they do the exercises; in the repository, none is started."""
    if not check.not_started(EXERCISES / file) and not os.environ.get("CI"):
        pytest.skip(f"{file} is started")


class TestExerciseFiles:
    @pytest.mark.parametrize("file", FILES)
    def test_exercise_has_one_region_to_write_in_and_three_hints_a_part(self, file: str) -> None:
        skip_if_started(file)
        source = (EXERCISES / file).read_text("utf-8")
        before, region, after = re.split("# TODO: yours from here\n|# to here\n", source)
        assert "NotImplementedError" not in before + after
        assert "NotImplementedError" in region
        assert len({*hints.FIRST_PART[int(file[2])], *hints.STRETCH_PART[int(file[2])]}) == 6

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
