"""Each script as a user runs it: a child process, the mock server, a foreign folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import SCRIPTS, Child, Outcome, transcript, without_time

NAMES = [*(path.stem for path in SCRIPTS), "streaming"]


def children(folder: Path) -> dict[str, Child]:
    log = {"MISTRAL_LOG_FILE": str(folder / "errors.log")}
    examples = SCRIPTS[0].parent
    # Under -P, from a foreign folder, nothing but their own line can show them the way to lib.
    safe_path = ("-P",) if sys.version_info >= (3, 11) else ()
    return {name: Child((*safe_path, str(examples / f"{name}.py")), folder, log) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_script_prints_its_transcript(name: str, outcome_of: Callable[[str], Outcome]) -> None:
    code, out, err = outcome_of(name)
    assert (code, without_time(out)) == (0, transcript(name)), err
    assert "Traceback" not in err


def test_there_are_six_scripts() -> None:
    assert [path.name[:3] for path in SCRIPTS] == [f"0{number}_" for number in range(1, 7)]
