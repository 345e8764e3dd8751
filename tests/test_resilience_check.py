"""The resilience check: each rule fails the client that breaks it, and no rule a right client."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from check_clients import MUTANTS, RightClient, released
from lib.resilience_check import RULES, Verdict, check
from lib.resilience_check.rules import Rule

PATIENCE = 4.0  # seconds
RULE = {rule.name: rule for rule in RULES}
RIGHT = {"plain": RightClient(), "stream": RightClient(stream=True)}
SOAK = bool(os.environ.get("SOAK_CALLS"))

Jobs = dict[tuple[str, str], "Future[Verdict]"]


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    """Check all clients at the same time: nearly all of it is waiting."""

    def verdict(client: RightClient, rule: Rule) -> Verdict:
        return check(client, rules=[rule], patience=PATIENCE)[0]

    clients = {**RIGHT, **MUTANTS}
    pairs = [(name, rule) for name in RIGHT for rule in RULE]
    pairs += itertools.product(MUTANTS, RULE) if SOAK else [(name, name) for name in MUTANTS]
    with ThreadPoolExecutor(10 if SOAK else 24) as pool:
        yield {
            (name, rule): pool.submit(verdict, clients[name], RULE[rule]) for name, rule in pairs
        }
        released.set()


class TestRules:
    @pytest.mark.parametrize("rule", RULE)
    def test_mutant_breaks_the_rule(self, rule: str, jobs: Jobs) -> None:
        verdict = jobs[rule, rule].result()
        assert verdict.verdict == "fail", verdict

    @pytest.mark.parametrize("client", RIGHT)
    def test_right_client_keeps_every_rule(self, client: str, jobs: Jobs) -> None:
        verdicts = [jobs[client, rule].result() for rule in RULE]
        assert [verdict for verdict in verdicts if verdict.verdict == "fail"] == []
        not_tried = {verdict.rule for verdict in verdicts if verdict.verdict == "not tried"}
        streams = {rule.name for rule in RULES if rule.needs_stream}
        assert not_tried == (streams if client == "plain" else set())

    @pytest.mark.skipif(not SOAK, reason="make soak runs it")
    @pytest.mark.parametrize("mutant", MUTANTS)
    def test_mutant_breaks_no_other_rule(self, mutant: str, jobs: Jobs) -> None:
        verdicts = [jobs[mutant, rule].result() for rule in RULE if rule != mutant]
        assert [verdict for verdict in verdicts if verdict.verdict == "fail"] == []
