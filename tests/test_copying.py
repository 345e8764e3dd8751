"""Each helper works copied alone into an empty folder, and lib works under another name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from support import ROOT, run

LIB = ROOT / "lib"
HELPERS = (
    "retry", "rate_limiter", "circuit_breaker", "fallback", "error_logger", "event_stream",
    "sdk_errors",
)  # fmt: skip

RUN_DOCTESTS_OF_EACH_ALONE = """
import doctest, importlib, shutil, sys, tempfile
for name in sys.argv[2:]:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(f"{sys.argv[1]}/{name}.py", folder)
        sys.path.insert(0, folder)
        failed, attempted = doctest.testmod(importlib.import_module(name))
        print(name, "ok" if attempted and not failed else "failed")
        sys.path.remove(folder)
        del sys.modules[name]
"""

COPY_WHAT_THE_PAGE_LISTS = """
import importlib, pathlib, shutil, sys
package = pathlib.Path("yourapp/llm")
package.mkdir(parents=True)
for name in sys.argv[2:]:
    shutil.copy(f"{sys.argv[1]}/{name}", package)
sys.path.insert(0, ".")
for name in sys.argv[2:]:
    importlib.import_module("yourapp.llm." + name.removesuffix(".py"))
"""

RUN_DOCTESTS_OF_TWO_IN_A_PACKAGE = """
import doctest, importlib, pathlib, shutil, sys
pathlib.Path("limiters").mkdir()
for name in ("rate_limiter", "token_limiter"):
    shutil.copy(f"{sys.argv[1]}/{name}.py", "limiters")
sys.path.insert(0, ".")
print(doctest.testmod(importlib.import_module("limiters.token_limiter")))
"""

USE_LIB_UNDER_ANOTHER_NAME = """
import importlib, pathlib, shutil, sys
shutil.copytree(sys.argv[1], "robust", ignore=shutil.ignore_patterns("__pycache__"))
sys.path.insert(0, ".")
for path in pathlib.Path("robust").glob("*.py"):
    importlib.import_module(f"robust.{path.stem}")
from robust.client import MistralClient
from robust.mock_server import MockServer
from robust.resilient_client import ResilientMistralClient, Retrier
with MockServer("503") as server, MistralClient("key", base_url=server.url) as client:
    resilient = ResilientMistralClient(client, retrier=Retrier(base_delay=0.01))
    print(resilient.chat([{"role": "user", "content": "Hello!"}]).content)
print("lib" in sys.modules)
"""

USE_TOTAL_TIMEOUT_ALONE = """
import shutil, socket, sys
shutil.copy(f"{sys.argv[1]}/total_timeout.py", ".")
sys.path.insert(0, ".")
import requests
from total_timeout import TotalTimeoutAdapter, total_timeout
with requests.Session() as session, socket.create_server(("127.0.0.1", 0)) as silent:
    session.mount("http://", TotalTimeoutAdapter())
    try:
        with total_timeout(0.05):
            session.get(f"http://127.0.0.1:{silent.getsockname()[1]}/")
    except requests.Timeout as error:
        print(error)
"""


def test_helper_copied_alone_runs_its_doctests() -> None:
    # -I and -S: no path and no package but the standard library.
    only_python = ("-I", "-S", "-W", "error")
    outcome = run(*only_python, "-c", RUN_DOCTESTS_OF_EACH_ALONE, str(LIB), *HELPERS)
    assert outcome[:2] == (0, "".join(f"{name} ok\n" for name in HELPERS)), outcome.err


def test_token_limiter_needs_the_rate_limiter_beside_it(tmp_path: Path) -> None:
    only_python = ("-I", "-S", "-W", "error")
    outcome = run(*only_python, "-c", RUN_DOCTESTS_OF_TWO_IN_A_PACKAGE, str(LIB), cwd=tmp_path)
    assert outcome[:2] == (0, "TestResults(failed=0, attempted=6)\n"), outcome.err


def test_the_list_of_what_to_copy_is_complete(tmp_path: Path) -> None:
    page = (LIB / "README.md").read_text("utf-8")
    tree = page.partition("yourapp/\n")[2].partition("```")[0]
    files = re.findall(r"\w+\.py", tree)
    assert {"__init__.py", "client.py", "resilient_client.py"} <= set(files)
    command = ("-I", "-W", "error", "-c", COPY_WHAT_THE_PAGE_LISTS, str(LIB), *files)
    assert run(*command, cwd=tmp_path) == (0, "", "")


@pytest.mark.parametrize("name", ["shared_rate_limiter.py", "shared_token_limiter.py"])
def test_shared_limiter_needs_the_files_in_its_row_of_the_table(name: str, tmp_path: Path) -> None:
    (row,) = re.findall(rf"^\| \[{name}\].*", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    files = re.findall(r"`(\w+\.py)`", row)
    only_python = ("-I", "-S", "-W", "error")
    outcome = run(
        *only_python, "-c", COPY_WHAT_THE_PAGE_LISTS, str(LIB), name, *files, cwd=tmp_path
    )
    assert outcome == (0, "", "")


def test_lib_works_under_another_name(tmp_path: Path) -> None:
    command = ("-I", "-W", "error", "-c", USE_LIB_UNDER_ANOTHER_NAME, str(LIB))
    outcome = run(*command, cwd=tmp_path)
    assert outcome[:2] == (0, "Hello! How can I assist you today?\nFalse\n"), outcome.err


def test_usage_line_names_the_package_that_was_copied(tmp_path: Path) -> None:
    shutil.copytree(LIB, tmp_path / "robust", ignore=shutil.ignore_patterns("__pycache__"))
    for command in ("robust.mock_server", "robust.resilience_check"):
        outcome = run("-m", command, "--help", cwd=tmp_path)
        assert outcome.out.startswith(f"usage: python -m {command} "), outcome


def test_total_timeout_copied_alone(tmp_path: Path) -> None:
    command = ("-I", "-W", "error", "-c", USE_TOTAL_TIMEOUT_ALONE, str(LIB))
    outcome = run(*command, cwd=tmp_path)
    assert outcome == (0, "no complete response within the total timeout of 0.05 s\n", "")


@pytest.mark.parametrize(
    ("first", "files"),
    [
        ("_not_awaited", ("retry", "circuit_breaker")),
        ("_predicate", ("retry", "circuit_breaker", "fallback")),
    ],
)
def test_what_each_file_brings_along_is_the_same_in_all(first: str, files: tuple[str, ...]) -> None:
    """They are copied alone, so each ends with the same checks of what it is given."""
    sources = [(LIB / f"{name}.py").read_text("utf-8") for name in files]
    assert len({source.partition(f"\ndef {first}(")[2] for source in sources}) == 1


def test_every_file_of_lib_has_the_licence_line() -> None:
    for path in LIB.rglob("*.py"):
        first_line = path.read_text("utf-8").partition("\n")[0]
        assert first_line == "# SPDX-License-Identifier: MIT-0", path
