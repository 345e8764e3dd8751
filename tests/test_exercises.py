"""The exercises: which solutions the check accepts, which it rejects, and what it prints."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from examples.exercises import check, reset
from examples.exercises.checker import child, hints, judge, rules
from examples.support.lesson import UsageError, run_command
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
    """Read tests/wrong_solutions/exN.diff: the rule, then right lines (-) and wrong ones (+)."""
    for block in (WRONG / f"ex{number}.diff").read_text("utf-8").split("\n\n"):
        rule, *lines = block.strip("\n").split("\n")
        path = SOLUTIONS / check.EXERCISES[number]
        if lines[0].startswith("# in "):
            path = RIGHT / lines.pop(0).removeprefix("# in ")
        source = path.read_text("utf-8")
        for right, wrong in re.findall(r"((?:-.*\n)+)((?:[+].*\n)*)", "\n".join([*lines, ""])):
            source = changed(
                source, re.sub("^-", "", right, flags=re.M), re.sub("^[+]", "", wrong, flags=re.M)
            )
        yield Slip(number, rule.removeprefix("# "), source)


def changed(source: str, right: str, wrong: str) -> str:
    """Replace the first place where a line begins so."""
    assert f"\n{right}" in source, right
    return source.replace(f"\n{right}", f"\n{wrong}", 1)


def solution_of(number: int) -> str:
    return (SOLUTIONS / check.EXERCISES[number]).read_text("utf-8")


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
    """Return the rules that do not hold; a stretch part that is not written is left out."""
    exercise = judge.rules_of(number)
    verdicts = zip(exercise, judge.check_rules(exercise, solution), strict=True)
    return {rule.description for rule, verdict in verdicts if verdict.outcome == "not yet"}


def load(folder: Path, source: str) -> Any:
    path = folder / "solution.py"
    path.write_text(source, "utf-8")
    return rules.load(path)


def problem_of(slip: Slip, folder: Path) -> str:
    [rule] = [rule for rule in judge.rules_of(slip.number) if rule.description == slip.rule]
    [verdict] = judge.check_rules([rule], load(folder, slip.source))
    return verdict.actual


class TestRightSolutions:
    @pytest.mark.parametrize(
        "path", [*SOLUTIONS.glob("ex*.py"), *RIGHT.glob("*.py")], ids=lambda path: str(path.stem)
    )
    def test_file_is_accepted(self, path: Path) -> None:
        assert broken_rules(int(path.name[2]), rules.load(path)) == set()

    @pytest.mark.parametrize("order", ORDERS)
    def test_one_order_of_the_capstone_is_right(self, order: str, tmp_path: Path) -> None:
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

        solution = load(tmp_path, "")
        solution.resilient_chat = resilient_chat
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
        assert {rule.description for rule in judge.rules_of(number)} <= broken

    @pytest.mark.skipif("SOAK_CALLS" not in os.environ, reason="takes a minute: make soak")
    @pytest.mark.parametrize("number", check.EXERCISES)
    def test_every_rule_has_a_slip_that_breaks_no_other(self, number: int, tmp_path: Path) -> None:
        broken = [
            broken_rules(number, load(tmp_path, slip.source))
            for slip in SLIPS
            if slip.number == number
        ]
        broken += ORDERS.values()
        alone = {rule for rules in broken if len(rules) == 1 for rule in rules}
        assert {rule.description for rule in judge.rules_of(number)} <= alone

    def test_rule_that_needs_a_broken_rule_is_not_tried(self, tmp_path: Path) -> None:
        source = changed(
            solution_of(1),
            "        return self._retrier.call(self._create)",
            "        return self._create()",
        )
        verdicts = list(judge.check_rules(judge.rules_of(1), load(tmp_path, source)))
        not_ok = [verdict for verdict in verdicts if verdict.outcome != "ok"]
        assert [verdict.outcome for verdict in not_ok] == ["not yet"] + 4 * ["not tried"]
        assert {verdict.actual for verdict in not_ok[1:]} == {
            f"needs rule {verdicts.index(not_ok[0]) + 1}"
        }


def with_first_line(line: str) -> str:
    return changed(
        solution_of(5),
        "        return await self._retrier.",
        f"        {line}\n        return await self._retrier.",
    )


Report = Callable[[int, str], str]


class TestReport:
    @pytest.fixture
    def report(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> Report:
        """What the check prints for a file with this source; its exit code is 1."""
        monkeypatch.setattr(check, "verdicts", judge.judge)

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
            "  ✗ not yet      4. each attempt is paced\n"
            "        called:    resilient_chat(...) with the faults 503,503,ok\n"
            "        actual:    slots taken: 0; requests: 3\n"
            "        expected:  3 slots of the limiter are taken, one before each of the 3"
            " requests\n"
            "  ✓ ok           5. an attempt waits"
        ) in report(4, without_limiter())

    def test_stretch_part_is_shown_when_the_first_part_holds(self, report: Report) -> None:
        first = report(4, without_limiter())
        assert "The stretch part" not in first
        assert "11 of 12 rules hold." in first
        out = report(
            4, solution_of(4).replace("limiter.acquire(timeout=time_left())", "limiter.acquire()")
        )
        assert "  ✓ ok          All 12 rules of the first part hold.\n\nThe stretch part:\n" in out
        assert "3 of 4 rules hold." in out
        assert "Hint 1 of 3: A timeout is a duration" in out

    def test_stretch_part_may_be_left_out(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(check, "verdicts", judge.judge)
        assert check.check_exercise(4, RIGHT / "ex4_decorators.py") == 0
        assert "The stretch part is not started" in capsys.readouterr().out

    def test_method_that_is_missing_is_named(self, report: Report) -> None:
        line = "        connection = self.get_connection(timeout)\n"
        missing = "        raise NotImplementedError\n"
        out = report(1, changed(solution_of(1), line, missing))
        assert "✗ not written 10. the with block returns its connection" in out
        assert "actual:    connection is not written yet (line " in out
        assert "11 of 12 rules hold." in out

    @pytest.mark.parametrize(
        ("number", "source", "sentence"),
        [
            (1, "import sys\n\ndef get(:\n", r"Python can't read your file \(.+\) at line 3: def"),
            (3, "import sys\nsys.exit(3)\n", r"your code raised SystemExit \(3\) at line 2: sys.e"),
            (2, "print('hello')\n", "actual:    your file has no Price"),
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
        monkeypatch.setattr(check, "verdicts", judge.judge)
        assert check.show_overview() == 0
        out = capsys.readouterr().out
        assert "1  ex1_retry_pool.py       not started\n" in out
        assert "2  ex2_cost_control.py     Python can't read your file" in out
        assert "3  ex3_health_monitor.py   0 of 9 rules\n" in out
        assert "4  ex4_capstone.py         11 of 12 rules\n" in out

    @pytest.mark.parametrize(
        ("folder", "file", "progress"),
        [
            (SOLUTIONS, "ex4_capstone.py", "done"),
            (RIGHT, "ex4_decorators.py", "first part done, stretch part: 0 of 4 rules"),
        ],
    )
    def test_overview_says_which_parts_are_done(
        self,
        folder: Path,
        file: str,
        progress: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(check, "EXERCISES", {4: file})
        monkeypatch.setattr(check, "HERE", folder)
        monkeypatch.setattr(check, "verdicts", judge.judge)
        assert check.show_overview() == 0
        assert f"{progress}\n" in capsys.readouterr().out


def without_limiter() -> str:
    return changed(solution_of(4), "        limiter.acquire()\n", "")


STUBBORN = {
    "loop": "def resilient_chat(*parts):\n    while True:\n        pass\n",
    "loop in C": "def resilient_chat(*parts):\n    sum(range(10**12))\n",
    "no watchdog": "import faulthandler\nimport os\nfaulthandler.cancel_dump_traceback_later()\n"
                   "os.read(os.pipe()[0], 1)\n",
    "exit": "import os\ndef resilient_chat(*parts):\n    os._exit(0)\n",
    "changed rules": "import examples.exercises.checker.rules_4 as rules\n"
                     "for name in list(vars(rules)):\n    if name[0] != '_':\n"
                     "        delattr(rules, name)\n",
    "changed helper": "from lib.retry import Retrier\nRetrier.call = lambda *parts: 'Hello!'\n",
    "other trace": "import sys\nsys.settrace(None)\n",
    "own verdicts": "import os\nfor file in range(3, 10):\n    try:\n"
                    "        os.write(file, 100 * b'[\"ok\"]\\n')\n    except OSError:\n"
                    "        pass\n",
    "flood": "import sys\nwhile True:\n    sys.stdout.write('hello ' * 1000)\n",
    "other process": "import os\nimport subprocess\nimport sys\n"
                     "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
                     "os._exit(0)\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[judge.Verdict]]:
    """The verdicts of exercise 4 on each stubborn file; a rule has a second or two."""
    folder = tmp_path_factory.mktemp("stubborn")

    def verdicts(name: str) -> list[judge.Verdict]:
        path = folder / f"{name.replace(' ', '_')}.py"
        path.write_text(STUBBORN[name], "utf-8")
        seconds = 1.0 if name.startswith("loop") else 2.0  # those use the processor all the time
        return list(child.verdicts(4, path, seconds_per_rule=seconds))

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(STUBBORN, pool.map(verdicts, STUBBORN), strict=True))


class TestStubbornFiles:
    """Each file is checked in a process of its own, which ends in time, whatever the file does."""

    @pytest.mark.parametrize(
        ("name", "position", "actual"),
        [
            ("loop", 1, "it did not return within 1 s: it was at line {}: `{}`"),
            (
                "loop in C",
                1,
                "it did not return within 1 s: it was at line 2: `sum(range(10**12))`",
            ),
            ("no watchdog", 0, "it did not return within 2 s"),
            ("exit", 1, "your code ended the process"),
            ("changed rules", 1, "your code has changed examples.exercises.checker.rules_4."),
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
        assert len(found[name]) == 1 + len(judge.rules_of(4))
        assert {verdict.outcome for verdict in found[name][2:]} == {"not tried"}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """Start all child processes at once; wait for one by its name."""
    solution = str(SOLUTIONS / "ex4_capstone.py")
    children = {
        "closed pipe": start(COMMAND, "4", solution),
        "ASCII console": start(COMMAND, "4", solution, PYTHONIOENCODING="ascii"),
    }
    assert children["closed pipe"].stdout
    children["closed pipe"].stdout.close()
    children["closed pipe"].stdout = None
    return lambda name: finish(children[name])


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

    def test_closed_pipe_ends_it(self, command: Callable[[str], Outcome]) -> None:
        code, _, err = command("closed pipe")
        assert (code, err) == (141, "")

    def test_console_without_ticks_gets_question_marks(
        self, command: Callable[[str], Outcome]
    ) -> None:
        code, out, err = command("ASCII console")
        assert (code, err) == (0, "")
        assert "  ? ok          13. chat_within does what" in out

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
