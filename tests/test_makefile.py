"""The Makefile, with stubs for Python: what it runs, in which order, and when it installs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support import ROOT, SCRIPTS

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="the stubs are shell scripts"),
    pytest.mark.skipif(not shutil.which("make"), reason="there is no make; the suite needs none"),
]

# Says what it is called with; fails where the test says so.
STUB = """#!/bin/sh
echo "$*" >> calls.txt
case "$*" in ${FAIL_ON:-nothing}) exit 3 ;; esac
"""
OLD, NEW = 1_000_000_000, 1_000_000_001  # seconds since the epoch


class Project:
    """A folder with the Makefile, empty scripts and a virtual environment that is ready."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("examples", "lib", "tests", ".venv/bin"):
            (folder / name).mkdir(parents=True)
        for name in ("Makefile", "requirements.txt"):
            shutil.copy(ROOT / name, folder)
        for script in (ROOT / "examples").glob("*.py"):
            (folder / "examples" / script.name).touch()
        self.installed = folder / ".venv" / "installed"
        self.python = folder / ".venv" / "bin" / "python"
        self.python.write_text(STUB)
        self.python.chmod(0o755)
        self.installed.touch()
        os.utime(folder / "requirements.txt", (OLD, OLD))
        os.utime(self.installed, (NEW, NEW))

    def make(
        self, *arguments: str, python: str = "false", fail_on: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """``python`` makes the virtual environment; by default that is an error."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS")
        }
        return subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env={**environment, "PYTHON": python, "FAIL_ON": fail_on},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        """The arguments of every call of a stub, in order."""
        path = self.folder / "calls.txt"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "a folder with spaces")


def test_run_all_runs_the_six_in_order_and_installs_nothing_once_it_is_installed(
    project: Project,
) -> None:
    done = project.make("run-all")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert project.calls == [f"examples/{script.name}" for script in SCRIPTS]


def test_run_all_stops_at_the_first_script_that_fails_and_names_it(project: Project) -> None:
    done = project.make("run-all", fail_on="*03_rate*")
    assert done.returncode != 0
    assert "make run-all: examples/03_rate_limits.py failed\n" in done.stderr
    assert project.calls == [f"examples/{script.name}" for script in SCRIPTS[:3]]


@pytest.mark.parametrize("number", ["01", "02", "03", "04", "05", "06"])
def test_one_of_them_can_be_run_with_arguments(number: str, project: Project) -> None:
    done = project.make(f"run-{number}", "ARGS=--faults 503,503 --trace")
    assert done.returncode == 0, done.stderr
    (call,) = project.calls
    assert re.fullmatch(rf"examples/{number}_\w+\.py --faults 503,503 --trace", call)


def test_a_failing_script_fails_its_command(project: Project) -> None:
    assert project.make("run-04", fail_on="*04_*").returncode != 0


@pytest.mark.parametrize("name", ["07", "7", "stream"])
def test_a_lesson_that_is_not_there_is_a_sentence(name: str, project: Project) -> None:
    done = project.make(f"run-{name}")
    assert done.returncode != 0
    assert f"There is no lesson {name}: run-01 to run-06, run-streaming, " in done.stderr
    assert project.calls == []


@pytest.mark.parametrize(
    ("target", "script"),
    [
        ("run-2", "examples/02_backoff.py"),
        ("run-02", "examples/02_backoff.py"),
        ("run-streaming", "examples/streaming.py"),
        ("run-token-limits", "examples/token_limits.py"),
    ],
)
def test_a_lesson_is_found_by_its_number_or_name(
    target: str, script: str, project: Project
) -> None:
    project.make(target)
    project.make(target, "FAULTS=503*", "ARGS=--trace")
    assert project.calls == [script, f"{script} --faults 503* --trace"]


def test_the_tests_and_the_scenarios_are_run_with_their_arguments(project: Project) -> None:
    assert project.make("test", "ARGS=-k retry").returncode == 0
    assert project.make("run-failures", "ARGS=02").returncode == 0
    assert project.calls == ["-m pytest -k retry", "examples/failure_scenarios.py 02"]


@pytest.mark.parametrize("arguments", [("help",), ()], ids=["make help", "make"])
def test_help_lists_every_target_and_installs_nothing(
    arguments: tuple[str, ...], project: Project
) -> None:
    project.installed.unlink()
    done = project.make(*arguments)
    assert (done.returncode, done.stderr, project.calls) == (0, "", [])
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE)) - {"help"}
    assert {"run-all", "run-failures", "test", "clean"} <= targets
    listed = set(re.findall(r"^make ([a-z0-9-]+) ", done.stdout, re.MULTILINE))
    assert listed == {*targets, "run-02"}


@pytest.mark.parametrize("reason", ["first use", "new requirements"])
def test_it_installs_on_first_use_and_when_the_requirements_change(
    reason: str, project: Project
) -> None:
    if reason == "first use":
        project.installed.unlink()
    else:
        os.utime(project.folder / "requirements.txt", (NEW + 1, NEW + 1))
    for _ in range(2):
        done = project.make("run-01", python=str(project.python.relative_to(project.folder)))
        assert done.returncode == 0, done.stderr
    version_check, venv, pip, *scripts = project.calls
    assert "3, 10" in version_check
    assert venv == "-m venv .venv"
    assert pip.startswith("-m pip install ")
    assert pip.endswith(" -r requirements.txt")
    assert scripts == ["examples/01_basic_errors.py"] * 2


@pytest.mark.parametrize("step", ["-c*", "-m venv*", "-m pip*"])
def test_an_installation_that_failed_is_begun_again(step: str, project: Project) -> None:
    project.installed.unlink()
    python = str(project.python.relative_to(project.folder))
    done = project.make("run-01", python=python, fail_on=step)
    assert done.returncode != 0
    assert not project.installed.exists()
    assert not any(call.startswith("examples/") for call in project.calls)
    assert project.make("run-01", python=python).returncode == 0
    assert project.calls[-1] == "examples/01_basic_errors.py"


def test_a_python_that_is_too_old_is_a_sentence(project: Project) -> None:
    """The check itself, run by this Python, which says that it is 3.9."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (check,) = re.findall(r"\$\(PYTHON\) -c '(.+)'", makefile)
    with pytest.raises(SystemExit) as exit_info:
        exec(check.replace("sys.version_info", "(3, 9, 18)"))
    assert str(exit_info.value).startswith("Python 3.10 or newer is needed")
    exec(check)


def test_clean_leaves_what_is_not_made(project: Project) -> None:
    for name in ("lib/__pycache__", "tests/__pycache__", ".pytest_cache"):
        (project.folder / name).mkdir()
    assert project.make("clean").returncode == 0
    left = {str(path.relative_to(project.folder)) for path in project.folder.rglob("*")}
    scripts = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert left == {"Makefile", "requirements.txt", "examples", "lib", "tests", *scripts}
