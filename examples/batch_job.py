"""Batch job: ask many prompts, a few at a time, and lose nothing when it stops.

    python examples/batch_job.py                                # the demonstration
    python examples/batch_job.py prompts.jsonl answers.jsonl    # lines like {"id": 1, "prompt": ""}

Each result is written as soon as it arrives. Kill the job and start it again: it asks only what is
not done yet. It stops at once if every further call would fail too. The demonstration runs twice,
because the large model's quota is used up. The retry budget fits the calls that fail together.
"""

import asyncio
import json
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.json_lines import read_done, read_prompts
from examples.support.lesson import parse_arguments, print_err, run_lesson
from lib.answer_check import check_answer
from lib.client import MistralClient
from lib.errors import MistralError, explain
from lib.pipeline import Pipeline
from lib.rate_limiter import RateLimiter
from lib.retry import Retrier, RetryBudget, is_retryable
from lib.token_limiter import TokenLimiter, estimate_tokens

FILES = ("prompts.jsonl", "answers.jsonl")
LARGE, SMALL = "mistral-large-latest", "mistral-small-latest"
CONCURRENCY, MAX_TOKENS = 8, 200

pipeline = Pipeline(
    retrier=Retrier(max_attempts=4, budget=RetryBudget(max_tokens=3 * CONCURRENCY)),
    limiter=RateLimiter(max_requests_per_minute=6000),
    token_limiter=TokenLimiter(max_tokens_per_minute=500_000),
)


def main(client: MistralClient) -> None:
    print("=== Batch job ===\n")
    if files := parse_arguments(FILES).files:
        prompts, answers = read_prompts(*map(Path, files)), Path(files[1])
        if failed := asyncio.run(run(client, SMALL, prompts, answers)):
            print_err(f"{failed} of the prompts failed: run it again.")
            sys.exit(1)
        return
    with tempfile.TemporaryDirectory() as folder:
        for model in (LARGE, SMALL):
            try:
                questions = {number: f"Question {number}" for number in range(1, 9)}
                asyncio.run(run(client, model, questions, Path(folder, "answers.jsonl")))
            except MistralError as error:
                print(f"  Stopped: {explain(error)}")
    print()


async def run(client: MistralClient, model: str, prompts: dict[Any, str], answers: Path) -> int:
    done = read_done(answers)
    todo = deque(key for key in prompts if key not in done)
    print(f"{model}: {len(todo)} of {len(prompts)} prompts to ask")

    async def work(output: TextIO) -> None:
        while todo:
            result: dict[str, Any] = {"id": todo.popleft(), "answer": None}
            try:
                result["answer"] = await ask(client, model, prompts[result["id"]])
            except Exception as error:
                if is_fatal(error):
                    todo.clear()  # start nothing more; the calls in flight still end
                    raise
                result |= {"error": explain(error), "retryable": is_retryable(error)}
            output.write(json.dumps(result) + "\n")
            output.flush()
            if sys.stderr.isatty():
                print(f"\r{len(todo)} left ", end="", file=sys.stderr, flush=True)

    with answers.open("a", encoding="utf-8") as output:
        workers = [work(output) for _ in range(CONCURRENCY)]
        ends = await asyncio.gather(*workers, return_exceptions=True)
    failed = len(prompts) - len(prompts.keys() & read_done(answers))
    print(f"  {len(prompts) - failed} are done")
    for error in filter(None, ends):
        raise error
    return failed


def is_fatal(error: Exception) -> bool:
    """Return True if every further call would fail too: no key, money, model or quota, or a bug."""
    status, retryable = getattr(error, "status_code", 0), getattr(error, "retryable", None)
    return status in (401, 402, 403, 404) or (status == 429 and not retryable) or retryable is None


async def ask(client: MistralClient, model: str, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    # With an async SDK: lambda attempt: sdk.chat.completions.create(model=model, messages=messages)
    completion = await pipeline.call_async(
        lambda attempt: asyncio.to_thread(
            client.chat, messages, model=model, max_tokens=MAX_TOKENS
        ),
        tokens=estimate_tokens(messages, MAX_TOKENS),
    )
    return check_answer(completion).content


if __name__ == "__main__":
    run_lesson(main, faults={LARGE: "ok*5,noquota*"}, files=FILES)
