"""Each script as a user runs it: a child process, the mock server, a foreign folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import SCRIPTS, start, transcript, without_time


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit code, stdout and stderr of all scripts, run side by side."""
    folder = tmp_path_factory.mktemp("elsewhere")
    children = {
        path.stem: start(str(path), cwd=folder, MISTRAL_LOG_FILE=str(folder / "errors.log"))
        for path in SCRIPTS
    }
    finished = {name: (child.communicate(timeout=60), child) for name, child in children.items()}
    return {name: (child.returncode, *texts) for name, (texts, child) in finished.items()}


@pytest.mark.parametrize("name", [path.stem for path in SCRIPTS])
def test_script_prints_its_transcript(name: str, outcomes: dict[str, tuple[int, str, str]]) -> None:
    code, out, err = outcomes[name]
    assert (code, without_time(out)) == (0, transcript(name)), err
    assert "Traceback" not in err


def test_there_are_six_scripts_and_each_has_a_transcript() -> None:
    assert len(SCRIPTS) == 6
    assert all(transcript(path.stem) for path in SCRIPTS)
    assert all(Path(path).is_file() for path in SCRIPTS)
