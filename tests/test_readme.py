"""The pages are true: tables, transcripts, snippets, links, commands, settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import responses

from conftest import RunScript
from examples.support import lesson, timeline
from lib.errors import ERROR_TABLE, ErrorInfo
from lib.mock_server.faults import REPETITIONS, VOCABULARY
from lib.resilience_check import RULES, check_command
from support import CHAT_URL, EXPECTED, MODELS_URL, ROOT, SCRIPTS, SETTINGS, completion, run

PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in (
        "README.md",
        "lib/README.md",
        "lib/recipes.md",
        "lib/many-processes.md",
        "lib/comparison.md",
        "lib/frameworks.md",
        "lib/mock_server/README.md",
        "examples/README.md",
        "examples/teaching.md",
        "examples/troubleshooting.md",
        "examples/differences.md",
        "examples/exercises/README.md",
        "examples/simulations/README.md",
    )
}
README = PAGES["README.md"]


def fenced(page: str, language: str) -> list[str]:
    """Return the code blocks of a language; those in a list without its indent."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]


def table_row(row: ErrorInfo) -> str:
    retry = "yes" if row.retryable else "no"
    cells = [str(row.status or ""), f"`{row.error.__name__}`", row.meaning, retry, row.what_to_do]
    return "| " + " | ".join(cells) + " |"


def test_error_table_is_the_one_in_the_code() -> None:
    header = "| status | error | meaning | retry? | what to do |\n|---|---|---|---|---|\n"
    table = PAGES["examples/troubleshooting.md"].partition(header)[2].partition("\n\n")[0]
    assert [re.sub(r"\| +\|", "|  |", line) for line in table.splitlines()] == [
        table_row(row) for row in ERROR_TABLE
    ]


def test_every_console_block_is_part_of_a_transcript_or_the_timeline() -> None:
    shown = [path.read_text("utf-8") for path in EXPECTED.rglob("*.txt")]
    shown.append(timeline.__doc__ or "")  # test_timeline.py draws it
    blocks = fenced(README, "text")
    assert blocks
    for block in blocks:
        assert any(block in text for text in shown)


def test_every_link_leads_to_a_file_or_a_heading() -> None:
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, heading = target.partition("#")
            if target.startswith("https://"):
                continue
            linked = (ROOT / page).parent / path if path else ROOT / page
            assert linked.exists(), f"{page}: {target}"
            if heading:
                found = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in found]
                assert heading in anchors, f"{page}: {target}"


def test_every_make_target_and_script_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = {
        *re.findall(r"^([a-z-]+):", makefile, re.MULTILINE),
        *(f"run-0{number}" for number in range(1, 7)),
        *(f"run-{path.stem.replace('_', '-')}" for path in (ROOT / "examples").glob("*.py")),
    }
    for page, text in PAGES.items():
        assert set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, re.MULTILINE)) <= targets, page
        for script in re.findall(r"python (examples/[\w/]+\.py)", text):
            assert (ROOT / script).is_file(), f"{page}: {script}"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "lib/README.md",
        "lib/recipes.md",
        "lib/mock_server/README.md",
        "examples/troubleshooting.md",
    ],
)
@pytest.mark.usefixtures("clock")
def test_every_python_snippet_runs(
    page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a mocked API, in one folder and in the order of the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISTRAL_API_KEY", "test-key")
    (tmp_path / "mistral_errors.log").write_text('{"error": {"class": "APITimeoutError"}}\n')
    snippets = fenced(PAGES[page], "python")
    assert snippets
    with responses.RequestsMock(assert_all_requests_are_fired=False) as api:
        api.add_passthru("http://127.0.0.1")  # the page's own mock server
        api.post(CHAT_URL, json=completion("Paris"))
        api.get(MODELS_URL, json={"object": "list", "data": [{"id": "m"}]})
        api.get("https://example.org/", body="an example page")
        for snippet in snippets:
            exec(compile(snippet, page, "exec"), {"__name__": "snippet"})
            assert capsys.readouterr().out.strip(), snippet


def test_pytest_recipe_runs(tmp_path: Path) -> None:
    recipe = PAGES["lib/recipes.md"].partition("## Test your own code")[2]
    conftest, test = (block for block in fenced(recipe, "py") if "import pytest" in block)
    (tmp_path / "conftest.py").write_text(conftest, "utf-8")
    (tmp_path / "test_mine.py").write_text(test, "utf-8")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("-m", "pytest", "-q", "--strict-markers", cwd=tmp_path, PYTHONPATH=path)
    assert (done.code, done.err) == (0, ""), done.out
    assert "1 passed" in done.out


def test_verdicts_of_the_recipe_are_those_of_the_check(tmp_path: Path) -> None:
    recipe = PAGES["lib/recipes.md"].partition("## Check your own program")[2]
    program = tmp_path / "ask.py"
    program.write_text(fenced(recipe, "py")[0], "utf-8")
    shown = [re.split("  +", line) for line in fenced(recipe, "text")[0].splitlines()]
    rules = [rule for rule in RULES if rule.name in [name for name, _, _ in shown]]
    verdicts = check_command([sys.executable, str(program)], rules=rules)
    assert [[each.rule, each.verdict] for each in verdicts] == [row[:2] for row in shown]
    for each, row in zip(verdicts, shown, strict=True):
        assert each.happened.startswith(row[2])
    assert f"each of {len(RULES)} rules" in recipe


def test_readme_has_at_most_200_lines() -> None:
    assert len(README.splitlines()) <= 200


def test_settings_are_those_of_the_code_and_of_env_example() -> None:
    named = set(re.findall(r"^\| `(MISTRAL_\w+)`", README, re.MULTILINE))
    example = (ROOT / ".env.example").read_text("utf-8")
    code = (ROOT / "examples" / "support" / "lesson.py").read_text("utf-8")
    assert named == set(SETTINGS)
    assert named == set(re.findall(r"^#?(MISTRAL_\w+)=", example, re.MULTILINE))
    assert named == set(re.findall(r'setting\("(MISTRAL_\w+)"', code))
    assert "\nMISTRAL_API_KEY=\n" in example  # a copy of it has no key yet
    assert f"| {lesson.LIVE_TIMEOUT:g}, offline {lesson.OFFLINE_TIMEOUT:g} |" in README


@pytest.mark.usefixtures("clock")
def test_live_lessons_send_twelve_chat_requests_of_a_few_tokens(
    monkeypatch: pytest.MonkeyPatch, run_script: RunScript, tmp_path: Path
) -> None:
    assert "The six lessons together send\ntwelve chat requests" in README
    monkeypatch.setenv("MISTRAL_API_KEY", "test-key")
    monkeypatch.setenv("MISTRAL_LOG_FILE", str(tmp_path / "errors.log"))
    with responses.RequestsMock() as api:
        api.get(MODELS_URL)
        chat = api.post(CHAT_URL, json=completion("Hello!"))
        for path in SCRIPTS:
            assert run_script(path.stem).code == 0
        bodies = [json.loads(call.request.body or "") for call in chat.calls]
        assert len(bodies) == 12
        assert max(body["max_tokens"] for body in bodies) <= 100


def test_fault_words_are_those_of_the_code() -> None:
    header = "| word | what happens to the request |\n|---|---|\n"
    table = PAGES["lib/mock_server/README.md"].partition(header)[2].partition("\n\n")[0]
    words = [(word.example, word.meaning) for word in VOCABULARY]
    assert table.splitlines() == [
        f"| `{example}` | {meaning} |" for example, meaning in [*words, *REPETITIONS]
    ]


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_commands_without_make_are_those_of_make() -> None:
    dry_run = subprocess.run(
        ["make", "-n", "-B", "test", "run-01"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for step in ("-m venv .venv", "-m pip install", "-r requirements.txt", "-m pytest"):
        assert step in dry_run
        assert step in README
