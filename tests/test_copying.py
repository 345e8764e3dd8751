"""Each helper copied alone into an empty folder works, and so does the whole of lib renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support import ROOT, Child, Outcome

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


def children(folder: Path) -> dict[str, Child]:
    """Each helper's examples, and "lib", each alone in a folder.

    With -I and -S there is neither a path nor a package but what Python brings.
    """
    found = {}
    for name in HELPERS:
        alone = folder / f"copied {name}"
        alone.mkdir()
        shutil.copy(ROOT / "lib" / f"{name}.py", alone)
        found[alone.name] = Child(("-I", "-S", "-W", "error", "-c", RUN_DOCTESTS, name), alone)
    whole = folder / "copied lib"
    shutil.copytree(ROOT / "lib", whole / "robust", ignore=shutil.ignore_patterns("__pycache__"))
    found[whole.name] = Child(("-I", "-W", "error", "-c", USE_ALL_OF_IT), whole)
    return found


@pytest.mark.parametrize("name", HELPERS)
def test_a_helper_copied_alone_runs_its_examples(
    name: str, outcome_of: Callable[[str], Outcome]
) -> None:
    outcome = outcome_of(f"copied {name}")
    assert (outcome.code, outcome.out) == (0, ""), outcome
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "lib").glob("*.py"))])
def test_a_file_says_that_copying_it_needs_no_attribution(name: str) -> None:
    first_line, *_ = (ROOT / "lib" / f"{name}.py").read_text("utf-8").splitlines()
    assert first_line == "# SPDX-License-Identifier: MIT-0"


def test_the_whole_of_lib_works_under_another_name(outcome_of: Callable[[str], Outcome]) -> None:
    """Its imports are relative."""
    outcome = outcome_of("copied lib")
    assert (outcome.code, outcome.out.splitlines()) == (
        0,
        ["Hello! How can I assist you today?", "False"],
    ), outcome
