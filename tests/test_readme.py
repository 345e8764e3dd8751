"""What the READMEs say is true: tables, transcripts, snippets, links, commands."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import responses

from conftest import FakeClock
from lib.errors import ERROR_TABLE, ErrorInfo
from support import CHAT_URL, EXPECTED, ROOT, SCRIPTS, completion, run_in_process

PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in (
        "README.md",
        "lib/README.md",
        "examples/README.md",
        "examples/troubleshooting.md",
        "examples/differences.md",
    )
}
README = PAGES["README.md"]


def fenced(page: str, language: str) -> list[str]:
    """The blocks of a language, without the indent of a list that they stand in."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]


def table_row(row: ErrorInfo) -> str:
    retry = "yes" if row.retryable else "no"
    cells = [str(row.status or ""), f"`{row.error.__name__}`", row.meaning, retry, row.what_to_do]
    return "| " + " | ".join(cells) + " |"


def test_the_error_table_is_the_one_in_the_code() -> None:
    header = "| status | error | meaning | retry? | what to do |\n|---|---|---|---|---|\n"
    table = PAGES["examples/troubleshooting.md"].partition(header)[2].partition("\n\n")[0]
    assert [re.sub(r"\| +\|", "|  |", line) for line in table.splitlines()] == [
        table_row(row) for row in ERROR_TABLE
    ]


def test_every_console_line_shown_is_one_that_a_test_asserts() -> None:
    transcripts = [path.read_text("utf-8") for path in EXPECTED.rglob("*.txt")]
    blocks = fenced(README, "text")
    assert blocks
    for block in blocks[:-1]:  # the last one is the timeline: see test_timeline.py
        assert any(block in transcript for transcript in transcripts), block


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_or_a_heading(page: str) -> None:
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, heading = target.partition("#")
        if target.startswith("https://"):
            continue
        linked = folder / path if path else ROOT / page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
            assert heading in anchors, target


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_and_script_named_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = [
        *re.findall(r"^([a-z-]+):", makefile, re.MULTILINE),
        *(f"run-0{n}" for n in range(1, 7)),
        *(f"run-{path.stem.replace('_', '-')}" for path in (ROOT / "examples").glob("*.py")),
    ]
    for target in re.findall(r"(?:`|^)make ([a-z][\w-]*)", PAGES[page], re.MULTILINE):
        assert target in targets
    for script in re.findall(r"python (examples/[\w/]+\.py)", PAGES[page]):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", ["README.md", "lib/README.md", "examples/troubleshooting.md"])
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
        api.post("https://api.mistral.ai/v1/chat/completions", json=completion("Paris"))
        api.get("https://api.mistral.ai/v1/models", json={"object": "list", "data": [{"id": "m"}]})
        api.get("https://example.org/", body="an example page")
        for snippet in snippets:
            exec(compile(snippet, page, "exec"), {"__name__": "snippet"})
            assert capsys.readouterr().out.strip(), snippet


def test_the_readme_has_at_most_200_lines() -> None:
    assert len(README.splitlines()) <= 200


def test_every_setting_in_the_readme_is_in_env_example_and_in_the_code_and_only_there() -> None:
    named = set(re.findall(r"^\| `(MISTRAL_\w+)`", README, re.MULTILINE))
    example = (ROOT / ".env.example").read_text("utf-8")
    assert named == set(re.findall(r"^#?(MISTRAL_\w+)=", example, re.MULTILINE))
    code = (ROOT / "examples" / "lesson.py").read_text("utf-8")
    assert named == set(re.findall(r'setting\("(MISTRAL_\w+)"', code))


def test_live_the_examples_send_as_many_requests_as_the_page_says(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock, tmp_path: Path
) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", "test-key")
    monkeypatch.setenv("MISTRAL_LOG_FILE", str(tmp_path / "errors.log"))
    with responses.RequestsMock() as api:
        api.post(CHAT_URL, json=completion("Hello!"))
        for path in SCRIPTS:
            assert run_in_process(path.stem, monkeypatch) == 0
        assert len(api.calls) == 12
    assert "The six lessons together send\ntwelve requests" in README


def test_every_fault_word_of_the_mock_server_is_in_the_readme() -> None:
    from lib.mock_server import faults

    words = re.findall(r"^    ([a-z0-9:.*@%]+)  ", faults.__doc__ or "", re.MULTILINE)
    assert len(words) >= 10
    assert all(f"| `{word}`" in README for word in words), words


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here to compare with")
def test_the_plain_commands_are_those_that_make_runs() -> None:
    """Who has no make types the same: venv, pip install, the script, pytest."""
    dry_run = subprocess.run(
        ["make", "-n", "-B", "test", "run-01"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for step in ("-m venv .venv", "-m pip install", "-r requirements.txt", "-m pytest"):
        assert step in dry_run
        assert step in README
