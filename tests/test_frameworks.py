"""The page about other clients: a row for each rule, and the versions that are pinned."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from frameworks import report
from frameworks.clients import CLIENTS, Client
from lib.resilience_check import RULES
from support import ROOT

FOLDER = Path(report.__file__).parent
PAGE = (ROOT / "lib" / "frameworks.md").read_text("utf-8")
RESULTS = report.load()


def column(table: str, number: int) -> list[str]:
    return [line.split(" | ")[number].strip("| ") for line in table.splitlines()[2:]]


def pins(environment: str) -> dict[str, str]:
    """Return the versions that are installed in an environment, by package."""
    if environment == "javascript":
        package = json.loads((FOLDER / "package.json").read_text("utf-8"))
        return dict(package["dependencies"])
    lines = (FOLDER / f"requirements-{environment}.txt").read_text("utf-8").split()
    return dict(re.sub(r"\[.*\]", "", line).split("==") for line in lines)


class TestFrameworksPage:
    @pytest.mark.parametrize("name", report.PAGES)
    def test_table_shows_the_results(self, name: str) -> None:
        _, table, _ = report.split(report.PAGES[name].read_text("utf-8"), name)
        assert table == report.tables(RESULTS)[name]

    @pytest.mark.parametrize("name", ["clients", "frameworks"])
    def test_table_has_a_row_for_each_rule(self, name: str) -> None:
        _, table, _ = report.split(PAGE, name)
        assert column(table, 0) == [rule.name for rule in RULES]

    def test_versions_have_a_row_for_each_client(self) -> None:
        _, table, _ = report.split(PAGE, "versions")
        assert column(table, 0) == [client.name for client in CLIENTS]

    def test_legend_explains_each_cell(self) -> None:
        cells = {
            re.sub(r"[\d.]+", "N", report.cell(*verdict))
            for result in RESULTS.values()
            for verdict in result["verdicts"].values()
        }
        legend = set(re.findall(r"^\| ([✓✗–][^|]*) \|", PAGE, re.MULTILINE))
        assert cells <= legend

    def test_findings_count_the_verdicts(self) -> None:
        others = [result for name, result in RESULTS.items() if not name.startswith("ours")]
        findings = PAGE.partition("<!--")[0]
        counts = re.findall(r"\*\*([^*]+)\*\* (fails|holds) for (?:all )?(\d+)", findings)
        assert len(counts) >= 4
        for rule, verb, count in counts:
            verdicts = [other["verdicts"][rule][0] for other in others]
            assert verdicts.count({"fails": "fail", "holds": "pass"}[verb]) == int(count), rule
        assert f"on {len(others)} others" in findings


class TestPinnedVersions:
    @pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
    def test_versions_on_the_page_are_the_pinned_ones(self, client: Client) -> None:
        pinned = pins(client.environment) if client.environment else {}
        for package in pinned.keys() & client.packages:
            assert f"{package} {pinned[package]}" in RESULTS[client.name]["versions"]
        assert not client.environment or set(client.packages) <= pinned.keys()
