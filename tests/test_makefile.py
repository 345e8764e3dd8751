"""The Makefile, with a stub for Python: what it runs, in which order, and when it installs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support import ROOT, SCRIPTS

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="the stub is a shell script"),
    pytest.mark.skipif(not shutil.which("make"), reason="there is no make"),
]

# Notes its arguments; fails where a test says so.
STUB = """#!/bin/sh
echo "$*" >> calls.txt
case "$*" in ${FAIL_ON:-nothing}) exit 3 ;; esac
"""
OLD = 1_000_000_000  # seconds since the epoch


class Project:
    """A folder with the Makefile, empty scripts and an installed virtual environment."""

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
        os.utime(self.installed, (OLD + 1, OLD + 1))

    def make(
        self, *arguments: str, python: str = "false", fail_on: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run make; ``python`` creates the virtual environment, which by default fails."""
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
        """Return the arguments of every call of the stub, in order."""
        path = self.folder / "calls.txt"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "a folder with spaces")


class TestCheck:
    def test_wrong_usage_fails(self, project: Project) -> None:
        """An exercise that is not solved yet does not fail: see test_exercises.py."""
        project.python.write_text("#!/bin/sh\nexit 2\n")
        assert project.make("check", "N=9").returncode == 2


class TestRunAll:
    def test_six_lessons_in_order(self, project: Project) -> None:
        done = project.make("run-all")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert project.calls == [f"examples/{script.name}" for script in SCRIPTS]

    def test_it_stops_at_the_first_script_that_fails_and_names_it(self, project: Project) -> None:
        done = project.make("run-all", fail_on="*03_rate*")
        assert done.returncode != 0
        assert "make run-all: examples/03_rate_limits.py failed\n" in done.stderr
        assert project.calls == [f"examples/{script.name}" for script in SCRIPTS[:3]]

    def test_a_closed_pipe_ends_it_quietly(self, project: Project) -> None:
        """As in `make run-all | head -1`."""
        project.python.write_text('#!/bin/sh\necho "$*" >> calls.txt\nexit 141\n')
        done = project.make("run-all")
        assert (done.returncode, done.stderr, len(project.calls)) == (0, "", 1)

    def test_the_notice_comes_once(self, project: Project) -> None:
        project.python.write_text('#!/bin/sh\necho "${MISTRAL_NO_NOTICE:-notice}" >> calls.txt\n')
        assert project.make("run-all").returncode == 0
        assert project.calls == ["notice", *["1"] * 5]


class TestRunOne:
    def test_lesson_is_found_by_its_number_or_name(self, project: Project) -> None:
        expected = []
        for target, script in {
            **{script.name[:2]: script.stem for script in SCRIPTS},
            "2": "02_backoff",
            "streaming": "streaming",
            "token-limits": "token_limits",
            "asyncio-client": "asyncio_client",
        }.items():
            assert project.make(f"run-{target}").returncode == 0
            expected.append(f"examples/{script}.py")
        assert project.calls == expected

    def test_faults_and_arguments_are_passed_on(self, project: Project) -> None:
        assert project.make("run-2", "FAULTS=503*", "ARGS=--trace").returncode == 0
        assert project.make("run-2", "ARGS=--faults 503,503 --trace").returncode == 0
        assert project.calls == [
            "examples/02_backoff.py --faults 503* --trace",
            "examples/02_backoff.py --faults 503,503 --trace",
        ]

    @pytest.mark.parametrize("typo", ["FAULT=503", "ARG=--trace"])
    def test_a_typo_in_a_variable_is_said(self, project: Project, typo: str) -> None:
        done = project.make("run-02", typo)
        assert done.returncode != 0
        assert "write FAULTS=503 and ARGS=--trace" in done.stderr
        assert project.calls == []

    def test_your_own_program_is_checked(self, project: Project) -> None:
        done = project.make("check-program", "CMD=python 'my app.py'", "ARGS=--patience 9")
        assert done.returncode == 0
        assert project.calls == ["-m lib.resilience_check --patience 9 -- python my app.py"]

    def test_a_program_must_be_named(self, project: Project) -> None:
        done = project.make("check-program")
        assert done.returncode != 0
        assert "Name your program: make check-program CMD='python app.py'" in done.stderr
        assert project.calls == []

    def test_failing_script_fails_its_command(self, project: Project) -> None:
        assert project.make("run-04", fail_on="*04_*").returncode != 0

    def test_unknown_lesson_is_one_sentence(self, project: Project) -> None:
        for name in ("07", "7", "stream"):
            done = project.make(f"run-{name}")
            assert done.returncode != 0
            assert f"There is no lesson {name}: run-01 to run-06, run-streaming, " in done.stderr
        assert project.calls == []


def test_tests_scenarios_and_exercises_get_their_arguments(project: Project) -> None:
    for arguments in (
        ["test", "ARGS=-k retry"],
        ["run-failures", "ARGS=02"],
        ["check", "N=1"],
        ["reset", "N=1"],
    ):
        assert project.make(*arguments).returncode == 0
    assert [call.strip() for call in project.calls] == [
        "-m pytest -k retry", "examples/failure_scenarios.py 02", "examples/exercises/check.py 1",
        "examples/exercises/reset.py 1",
    ]  # fmt: skip


def test_help_lists_every_target_and_installs_nothing(project: Project) -> None:
    project.installed.unlink()
    done = project.make()
    assert done.stdout == project.make("help").stdout
    assert (done.returncode, done.stderr, project.calls) == (0, "", [])
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE)) - {"help"}
    assert {"run-all", "run-failures", "test", "clean"} <= targets
    listed = set(re.findall(r"^make ([a-z0-9-]+) ", done.stdout, re.MULTILINE))
    assert listed == {*targets, "run-02"}


class TestInstall:
    PYTHON = ".venv/bin/python"

    def test_on_first_use_and_when_the_requirements_change(self, project: Project) -> None:
        project.installed.unlink()
        assert project.make("run-01", python=self.PYTHON).returncode == 0
        first_use = project.calls
        version_check, venv, pip, script = first_use
        assert "3, 10" in version_check
        assert venv == "-m venv .venv"
        assert re.fullmatch("-m pip install .* -r requirements.txt", pip)
        assert script == "examples/01_basic_errors.py"
        assert project.make("run-01", python=self.PYTHON).returncode == 0
        assert project.calls == [*first_use, script]
        os.utime(project.installed, (OLD - 1, OLD - 1))
        assert project.make("run-01", python=self.PYTHON).returncode == 0
        assert project.calls == [*first_use, script, *first_use]

    @pytest.mark.parametrize("step", ["-c*", "-m venv*", "-m pip*"])
    def test_one_that_failed_starts_again(self, step: str, project: Project) -> None:
        project.installed.unlink()
        assert project.make("run-01", python=self.PYTHON, fail_on=step).returncode != 0
        assert not project.installed.exists()
        assert not any(call.startswith("examples/") for call in project.calls)
        assert project.make("run-01", python=self.PYTHON).returncode == 0
        assert project.calls[-1] == "examples/01_basic_errors.py"

    def test_a_python_that_is_too_old_is_one_sentence(self) -> None:
        makefile = (ROOT / "Makefile").read_text("utf-8")
        (check,) = re.findall(r"\$\(PYTHON\) -c '(.+)'", makefile)
        with pytest.raises(SystemExit) as exit_info:
            exec(check.replace("sys.version_info", "(3, 9, 18)"))
        assert str(exit_info.value).startswith("Python 3.10 or newer is needed")
        exec(check)


def test_clean_removes_what_was_made(project: Project) -> None:
    for name in ("lib/__pycache__", "tests/__pycache__", ".pytest_cache", ".venv-frameworks"):
        (project.folder / name).mkdir()
    assert project.make("clean").returncode == 0
    left = {str(path.relative_to(project.folder)) for path in project.folder.rglob("*")}
    scripts = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert left == {"Makefile", "requirements.txt", "examples", "lib", "tests", *scripts}
