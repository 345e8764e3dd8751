"""Every storm is run as a user would run it, and prints its transcript."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from examples.storm import STORMS, Storm
from support import EXPECTED, ROOT, start, without_time

SIDE_BY_SIDE = 8


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit code, stdout and stderr of each storm, by its name."""
    folder = tmp_path_factory.mktemp("storms")

    def run(storm: Storm) -> tuple[int, str, str]:
        script = ROOT / "examples" / f"{storm.script}.py"
        log = folder / f"{storm.name}.log"
        child = start(str(script), "--faults", storm.faults, MISTRAL_LOG_FILE=str(log))
        out, err = child.communicate(timeout=60)
        return child.returncode, out, err

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return dict(zip([storm.name for storm in STORMS], pool.map(run, STORMS), strict=True))


@pytest.mark.parametrize("name", [storm.name for storm in STORMS])
def test_storm_prints_its_transcript(name: str, outcomes: dict[str, tuple[int, str, str]]) -> None:
    code, out, err = outcomes[name]
    expected = (EXPECTED / "storm" / f"{name}.txt").read_text("utf-8")
    assert (code, without_time(out)) == (0, expected), err
    assert "Traceback" not in err


def test_every_transcript_belongs_to_a_storm_and_none_is_listed_twice() -> None:
    names = [storm.name for storm in STORMS]
    files = [path.stem for path in sorted(Path(EXPECTED, "storm").iterdir())]
    assert sorted(names) == files


def test_each_of_the_first_five_examples_has_two_to_four_storms() -> None:
    for number in ("01", "02", "03", "04", "05"):
        assert 2 <= sum(storm.script.startswith(number) for storm in STORMS) <= 4
