"""Each helper works copied alone into an empty folder, and lib works under another name."""

from __future__ import annotations

import re
from functools import partial

import pytest

from conftest import Commands
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


PRINT_THE_USAGE_UNDER_ANOTHER_NAME = """
import runpy, shutil, sys
shutil.copytree(sys.argv[1], "robust", ignore=shutil.ignore_patterns("__pycache__"))
sys.path.insert(0, ".")
runpy.run_module(sys.argv[2], run_name="__main__", alter_sys=True)
"""

PAGE = (LIB / "README.md").read_text("utf-8")
TREE = re.findall(r"\w+\.py", PAGE.partition("yourapp/\n")[2].partition("```")[0])
SHARED = {
    name: re.findall(r"`(\w+\.py)`", row)
    for name, row in re.findall(
        r"^\| \[(shared_\w+\.py)\](.*)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
}

# -I and -S: no path and no package but the standard library.
python = partial(run, "-I", "-W", "error", "-c")
only_python = partial(run, "-I", "-S", "-W", "error", "-c")
COMMANDS = {
    "helpers alone": partial(only_python, RUN_DOCTESTS_OF_EACH_ALONE, str(LIB), *HELPERS),
    "token limiter": partial(only_python, RUN_DOCTESTS_OF_TWO_IN_A_PACKAGE, str(LIB)),
    "page": partial(python, COPY_WHAT_THE_PAGE_LISTS, str(LIB), *TREE),
    **{
        name: partial(only_python, COPY_WHAT_THE_PAGE_LISTS, str(LIB), name, *files)
        for name, files in SHARED.items()
    },
    "another name": partial(python, USE_LIB_UNDER_ANOTHER_NAME, str(LIB)),
    "robust.mock_server": partial(
        python, PRINT_THE_USAGE_UNDER_ANOTHER_NAME, str(LIB), "robust.mock_server", "--help"
    ),
    "robust.resilience_check": partial(
        python, PRINT_THE_USAGE_UNDER_ANOTHER_NAME, str(LIB), "robust.resilience_check", "--help"
    ),
    "total timeout": partial(python, USE_TOTAL_TIMEOUT_ALONE, str(LIB)),
}


def test_helper_copied_alone_runs_its_doctests(commands: Commands) -> None:
    code, out, err = commands("helpers alone")
    assert (code, out) == (0, "".join(f"{name} ok\n" for name in HELPERS)), err


def test_token_limiter_needs_the_rate_limiter_beside_it(commands: Commands) -> None:
    code, out, err = commands("token limiter")
    assert (code, out) == (0, "TestResults(failed=0, attempted=6)\n"), err


def test_the_list_of_what_to_copy_is_complete(commands: Commands) -> None:
    assert {"__init__.py", "client.py", "resilient_client.py"} <= set(TREE)
    assert commands("page") == (0, "", "")


@pytest.mark.parametrize("name", ["shared_rate_limiter.py", "shared_token_limiter.py"])
def test_shared_limiter_needs_the_files_in_its_row_of_the_table(
    name: str, commands: Commands
) -> None:
    assert commands(name) == (0, "", "")


def test_lib_works_under_another_name(commands: Commands) -> None:
    code, out, err = commands("another name")
    assert (code, out) == (0, "Hello! How can I assist you today?\nFalse\n"), err


@pytest.mark.parametrize("name", ["robust.mock_server", "robust.resilience_check"])
def test_usage_line_names_the_package_that_was_copied(name: str, commands: Commands) -> None:
    outcome = commands(name)
    assert outcome.out.startswith(f"usage: python -m {name} "), outcome


def test_total_timeout_copied_alone(commands: Commands) -> None:
    message = "no complete response within the total timeout of 0.05 s\n"
    assert commands("total timeout") == (0, message, "")


@pytest.mark.parametrize(
    ("first", "files"),
    [
        ("_hook", ("retry", "circuit_breaker")),
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
