"""Each helper copied alone into an empty folder works, and so does the whole of lib renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial

import pytest

from support import ROOT, Outcome, run, side_by_side

HELPERS = ["retry", "rate_limiter", "circuit_breaker", "fallback", "error_logger"]

RUN_DOCTESTS = """\
import doctest, importlib, sys
sys.path.insert(0, ".")
module = importlib.import_module(sys.argv[1])
failed, attempted = doctest.testmod(module)
sys.exit("no examples" if not attempted else failed)
"""

USE_ALL_OF_IT = """\
import importlib, pathlib, sys
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


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """What became of each helper's examples, and of "lib", by name; run side by side.

    With -I and -S there is neither a path nor a package but what Python brings.
    """

    def run_examples(name: str) -> Outcome:
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(ROOT / "lib" / f"{name}.py", folder)
        return run("-I", "-S", "-W", "error", "-c", RUN_DOCTESTS, name, cwd=folder)

    def use_all_of_it() -> Outcome:
        folder = tmp_path_factory.mktemp("lib")
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "lib", folder / "robust", ignore=ignore)
        return run("-I", "-W", "error", "-c", USE_ALL_OF_IT, cwd=folder)

    examples = {name: partial(run_examples, name) for name in HELPERS}
    return side_by_side({"lib": use_all_of_it, **examples})


@pytest.mark.parametrize("name", HELPERS)
def test_a_helper_copied_alone_runs_its_examples(
    name: str, outcome_of: Callable[[str], Outcome]
) -> None:
    outcome = outcome_of(name)
    assert (outcome.code, outcome.out) == (0, ""), outcome
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("name", HELPERS)
def test_a_helper_says_that_copying_it_needs_no_attribution(name: str) -> None:
    first_line, *_ = (ROOT / "lib" / f"{name}.py").read_text("utf-8").splitlines()
    assert first_line == "# SPDX-License-Identifier: MIT-0"


def test_the_whole_of_lib_works_under_another_name(outcome_of: Callable[[str], Outcome]) -> None:
    """Its imports are relative."""
    outcome = outcome_of("lib")
    assert (outcome.code, outcome.out.splitlines()) == (
        0,
        ["Hello! How can I assist you today?", "False"],
    ), outcome
