"""Every lesson ends in time whatever the server does: no read timeout ends a drip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support import ROOT, Child, Outcome

LESSONS = sorted(
    path.stem
    for path in (ROOT / "examples").glob("*.py")
    if "run_lesson(main" in path.read_text("utf-8") and path.stem != "lesson"
)
FAULTS = ("drip:0.2*", "timeout*")


def children(folder: Path) -> dict[str, Child]:
    environment = {"MISTRAL_TIMEOUT": "0.2", "MISTRAL_LOG_FILE": str(folder / "drip.log")}
    return {
        f"{lesson} {faults}": Child(
            (str(ROOT / "examples" / f"{lesson}.py"), "--faults", faults), ROOT, environment
        )
        for lesson in LESSONS
        for faults in FAULTS
    }


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_ends_by_its_total_timeout(
    lesson: str, faults: str, outcome_of: Callable[[str], Outcome]
) -> None:
    """A child is killed after a minute; a drip alone would take a minute per response."""
    outcome = outcome_of(f"{lesson} {faults}")
    assert outcome.code == 0, outcome.err
