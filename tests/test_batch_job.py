"""examples/batch_job.py: nothing is lost and nothing is asked twice, whenever it stops."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import RunScript
from lib.mock_server import MockServer
from support import ROOT, Outcome, start

SCRIPT = str(ROOT / "examples" / "batch_job.py")
CONCURRENCY = 8


class Job:
    """A batch job of real files and a real server."""

    def __init__(
        self, folder: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MISTRAL_NO_NOTICE", "1")
        self.prompts, self.answers = folder / "prompts.jsonl", folder / "answers.jsonl"
        self.files = [str(self.prompts), str(self.answers)]
        self._run_script, self._monkeypatch = run_script, monkeypatch

    def write(self, prompts: int) -> None:
        lines = [json.dumps({"id": number, "prompt": f"P{number}"}) for number in range(prompts)]
        self.prompts.write_text("\n".join(lines), "utf-8")

    def run(self, server: MockServer) -> Outcome:
        self._monkeypatch.setenv("MISTRAL_BASE_URL", server.url)
        return self._run_script("batch_job", *self.files)

    def results(self) -> list[dict[str, Any]]:
        lines = self.answers.read_text("utf-8").splitlines() if self.answers.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def job(tmp_path: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, run_script, monkeypatch)


def asked(server: MockServer) -> list[str]:
    """Return the prompts that the server got, without the request for the models."""
    bodies = [request.body for request in server.log if request.body]
    return [body["messages"][0]["content"] for body in bodies]


class TestStopAndResume:
    def test_a_killed_job_asks_again_only_what_was_in_flight(self, job: Job) -> None:
        job.write(prompts=24)
        with MockServer("slow:0.1*") as server:
            with start(SCRIPT, *job.files, MISTRAL_BASE_URL=server.url) as child:
                while child.poll() is None and len(job.results()) < 5:
                    time.sleep(0.02)
                child.kill()
            assert len(job.results()) < 24
            assert job.run(server).code == 0
            assert sorted(result["id"] for result in job.results()) == list(range(24))
            assert len(asked(server)) <= 24 + CONCURRENCY
        assert job.results()[0]["answer"].endswith("response")

    def test_a_line_that_a_kill_cut_short_is_asked_again(self, job: Job) -> None:
        job.write(prompts=3)
        job.answers.write_text('{"id": 0, "answer": "kept"}\n{"id": 1, "ans', "utf-8")
        with MockServer() as server:
            assert job.run(server).code == 0
            assert sorted(asked(server)) == ["P1", "P2"]
        assert sorted(result["id"] for result in job.results()) == [0, 1, 2]
        assert job.results()[0] == {"id": 0, "answer": "kept"}

    def test_a_finished_job_asks_nothing(self, job: Job) -> None:
        job.write(prompts=3)
        with MockServer() as server:
            job.run(server)
            assert "0 of 3 prompts to ask\n  3 are done" in job.run(server).out
            assert len(asked(server)) == 3


class TestErrors:
    @pytest.mark.parametrize("fault", ["401", "402", "403", "404", "noquota"])
    def test_what_every_call_would_get_stops_the_job_at_once(self, job: Job, fault: str) -> None:
        job.write(prompts=100)
        with MockServer(f"ok*11,{fault}*") as server:  # the first request asks for the models
            outcome = job.run(server)
            assert len(asked(server)) <= 10 + 2 * CONCURRENCY
        assert (outcome.code, outcome.err.count("Traceback")) == (1, 0)
        assert len(job.results()) == 10
        assert all("answer" in result for result in job.results())

    def test_a_prompt_that_fails_for_good_is_not_asked_again(self, job: Job) -> None:
        job.write(prompts=3)
        with MockServer("ok,400,length") as server:
            assert job.run(server).code == 0
            assert job.run(server).code == 0
            assert len(asked(server)) == 3
        errors = " ".join(result.get("error", "answered") for result in job.results())
        assert "cut off" in errors
        assert "(400, " in errors
        assert "answered" in errors

    def test_a_transient_error_is_retried_and_asked_again_by_the_next_run(self, job: Job) -> None:
        job.write(prompts=1)
        with MockServer("ok,empty") as server:
            outcome = job.run(server)
            assert outcome.code == 1
            assert outcome.err.endswith("1 of the prompts failed: run it again.\n")
            assert job.run(server).code == 0
            assert asked(server) == ["P0", "P0"]
        first, last = job.results()
        assert (first["answer"], first["retryable"]) == (None, True)
        assert last["answer"].endswith("response")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": 1}', 'line 2: expected JSON with "id" and "prompt"'),
        ("[1]", 'line 2: expected JSON with "id" and "prompt"'),
        ("", 'line 2: expected JSON with "id" and "prompt"'),
        ('{"id": [1], "prompt": "a"}', "line 2: the id must be a text or a number"),
        ('{"id": 0, "prompt": "again"}', "the id 0 is there twice"),
    ],
)
def test_a_wrong_input_file_is_one_sentence(
    job: Job, run_script: RunScript, line: str, reason: str
) -> None:
    job.write(prompts=1)
    job.prompts.write_text(f"{job.prompts.read_text('utf-8')}\n{line}\n", "utf-8")
    outcome = run_script("batch_job", *job.files, "--offline")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert reason in outcome.err


def test_a_missing_file_and_a_missing_name_are_one_sentence(
    tmp_path: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISTRAL_NO_NOTICE", "1")
    missing = str(tmp_path / "prompts.jsonl")
    for arguments, code in (([missing], 2), ([missing, str(tmp_path / "out")], 1)):
        outcome = run_script("batch_job", *arguments, "--offline")
        assert (outcome.code, outcome.err.count("\n")) == (code, 1), outcome.err


def test_a_line_separator_within_a_prompt_is_no_end_of_a_line(job: Job) -> None:
    job.prompts.write_text('{"id": 1, "prompt": "one\u2028two"}\n', "utf-8")
    with MockServer() as server:
        assert job.run(server).code == 0
        assert asked(server) == ["one\u2028two"]


@pytest.mark.parametrize("other", ['{"id": 1, "prompt": "a"}\n{"id": 2, "pro', "hello\n"])
def test_a_file_that_holds_no_answers_is_left_alone(
    job: Job, run_script: RunScript, other: str
) -> None:
    job.write(prompts=1)
    job.answers.write_text(other, "utf-8")
    outcome = run_script("batch_job", *job.files, "--offline")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert 'line 1: expected JSON with "id" and "answer"' in outcome.err
    assert job.answers.read_text("utf-8") == other


def test_the_prompts_are_not_overwritten(job: Job, run_script: RunScript) -> None:
    job.write(prompts=1)
    before = job.prompts.read_text("utf-8")
    outcome = run_script("batch_job", str(job.prompts), str(job.prompts), "--offline")
    assert (outcome.code, outcome.err) == (2, "The answers need a file of their own.\n")
    assert job.prompts.read_text("utf-8") == before


def test_a_line_that_is_no_cut_answer_is_not_dropped(job: Job, run_script: RunScript) -> None:
    job.write(prompts=1)
    job.answers.write_text("hello", "utf-8")
    outcome = run_script("batch_job", *job.files, "--offline")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "does not end with an answer: name another file" in outcome.err
    assert job.answers.read_text("utf-8") == "hello"
