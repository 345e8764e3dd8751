"""The simulations: virtual time, tables, pictures, and what the pages say about them.

`make test` runs a part of them, with the helpers of lib, because all of them take a quarter of a
minute. Continuous integration and `make soak` draw all.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import re
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conftest import RunScript
from examples.simulations import fleet, retry_storm
from examples.simulations.chart import PLOT_HEIGHT, WIDTH
from examples.simulations.report import DEFAULT_SEED, Report, show
from examples.simulations.virtual_time import simulate
from examples.support.lesson import UsageError
from support import EXPECTED, ROOT, run, run_in_threads

FOLDER = ROOT / "examples" / "simulations"
SVG = "{http://www.w3.org/2000/svg}"
PICTURES = ("jitter", "retry_storm", "fleet", "rate_limit")
TABLES = (EXPECTED / "simulations.txt").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
PAGE = (FOLDER / "README.md").read_text("utf-8")

# Writes and milliseconds for 10, 50, 100 and 190 clients: the averages of 10 to 2000 runs of
# Brooker's simulator, github.com/aws-samples/aws-arch-backoff-simulator at 66cb169.
BROOKER = {
    "no backoff": ([50.7, 688.6, 2420.8, 8006.6], [380, 1135, 2035, 3534]),
    "backoff without jitter": ([50.7, 623.1, 1855.1, 5142.4], [3422, 36288, 63759, 100336]),
    "backoff with full jitter": ([39.0, 332.6, 794.4, 1769.6], [466, 2873, 4788, 7462]),
}


def committed(name: str) -> bytes:
    """Return a picture as it is in the repository; git may have changed its line ends."""
    return (FOLDER / f"{name}.svg").read_bytes().replace(b"\r\n", b"\n")


def one_line(text: str) -> str:
    return " ".join(text.split())


def rows(title: str) -> dict[str, list[str]]:
    """Return the numbers in each row of a table, without their units."""
    lines = TABLES.partition(f"{title}: ")[2].split("\n\n")[1].splitlines()[2:]
    names = [re.split("  +", line)[0] for line in lines]
    return {
        name: re.findall(r"[\d.,]+", line.removeprefix(name))
        for name, line in zip(names, lines, strict=True)
    }


class TestVirtualTime:
    def test_an_hour_passes_at_once_and_ends_when_the_simulation_ends(self) -> None:
        async def main() -> list[float]:
            seen = [time.monotonic()]
            for seconds in (3600, 0.5):
                await asyncio.sleep(seconds)
                seen.append(time.monotonic())
            return seen

        started_at = time.monotonic()
        assert simulate(main, seed=0) == [0, 3600, 3600.5]
        assert 0 <= time.monotonic() - started_at < 60

    def test_random_numbers_repeat_with_the_seed_and_are_as_before_afterwards(self) -> None:
        async def main() -> float:
            return random.random()

        state = random.getstate()
        first = simulate(main, seed=1)
        assert simulate(main, seed=1) == first != simulate(main, seed=2)
        assert random.getstate() == state

    def test_an_error_comes_through_and_ends_the_virtual_time_and_all_tasks(self) -> None:
        ended = []

        async def wait() -> None:
            try:
                await asyncio.sleep(1e6)
            finally:
                ended.append(time.monotonic())

        async def main() -> None:
            task = asyncio.create_task(wait())
            await asyncio.sleep(5)
            assert not task.done()
            raise KeyError

        monotonic = time.monotonic
        with pytest.raises(KeyError):
            simulate(main, seed=0)
        assert ended == [5]
        assert time.monotonic is monotonic

    def test_other_threads_keep_the_real_time(self) -> None:
        seen = []

        async def main() -> None:
            await asyncio.sleep(1e6)
            thread = threading.Thread(target=lambda: seen.append(time.monotonic()))
            thread.start()
            thread.join()

        before = time.monotonic()
        simulate(main, seed=0)
        assert before <= seen[0] <= time.monotonic()

    def test_simulations_in_several_threads_take_turns(self) -> None:
        async def main() -> list[float]:
            numbers = []
            for _ in range(500):
                await asyncio.sleep(random.random())
                numbers.append(time.monotonic())
            return numbers

        expected = simulate(main, seed=0)
        monotonic = time.monotonic
        assert run_in_threads(4, lambda: simulate(main, seed=0)) == [expected] * 4
        assert time.monotonic is monotonic

    def test_tasks_that_wait_for_each_other_are_an_error_and_no_endless_wait(self) -> None:
        async def main() -> None:
            await asyncio.get_running_loop().create_future()

        with pytest.raises(RuntimeError, match="a call never ends"):
            simulate(main, seed=0)


class TestCommand:
    def test_one_simulation_runs_alone_from_any_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_script: RunScript
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, out, err = run_script("rate_limit", "--output", ".", folder=FOLDER)
        assert (code, err) == (0, "The pictures are in ..\n")
        assert out in TABLES + "\n"
        assert (tmp_path / "rate_limit.svg").read_bytes() == committed("rate_limit")

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
            (["--output", "nowhere"], "there is no folder nowhere"),
            (["jitter"], "unrecognized arguments: jitter"),
        ],
    )
    def test_a_wrong_argument_is_one_sentence_and_exit_2(
        self,
        arguments: list[str],
        sentence: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["simulations", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            show({})
        assert exit_info.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err == f"simulations: {sentence}; see --help\n"

    def test_a_picture_that_cannot_be_written_is_one_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "blocked.svg").mkdir()
        monkeypatch.setattr(sys, "argv", ["simulations", "--output", str(tmp_path)])
        with pytest.raises(UsageError, match=r"blocked\.svg can't be written \(.+\)\.$"):
            show({"blocked": lambda seed: Report("table", "picture")})

    def test_seed_is_given_to_each_simulation(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["simulations", "--seed", "3", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", arguments)
        show({name: lambda seed: Report(f"seed {seed}", "") for name in ("one", "other")})
        assert capsys.readouterr().out == "seed 3\nseed 3\n"


class TestDrawing:
    """What the helpers of lib do today is what the tables and pictures show."""

    @pytest.mark.skipif("SOAK_CALLS" not in os.environ, reason="takes 20 seconds: make soak")
    def test_command_draws_all_tables_and_pictures(self, tmp_path: Path) -> None:
        code, out, _ = run(str(FOLDER), "--output", ".", cwd=tmp_path, timeout=240)
        assert (code, out) == (0, TABLES)
        for name in PICTURES:
            assert (tmp_path / f"{name}.svg").read_bytes() == committed(name)

    @pytest.mark.parametrize("policy", ["3 attempts, circuit breaker", "3 attempts, retry budget"])
    def test_retry_storm(self, policy: str) -> None:
        """The first run of each policy is the one that is drawn."""
        run = functools.partial(retry_storm.run, retry_storm.POLICIES[policy], DEFAULT_SEED)
        table = retry_storm.table({policy: [simulate(run, seed=DEFAULT_SEED)]})
        row = table.splitlines()[-1]
        assert row.rpartition("    ")[0] in TABLES

    def test_fleet(self) -> None:
        flaky = functools.partial(fleet.run, fleet.FlakyService, fleet.Rule, fleet.steady, 30)
        succeeded = simulate(flaky, seed=DEFAULT_SEED).success_rate()
        assert f"{succeeded:.1%}" == rows("Fleet")["successes give back"][4] + "%"


class TestResults:
    def test_jitter_agrees_with_brookers_simulator_within_5_percent(self) -> None:
        assert rows("Jitter").keys() == BROOKER.keys()
        for policy, (writes, milliseconds) in BROOKER.items():
            numbers = [float(number.replace(",", "")) for number in rows("Jitter")[policy]]
            assert numbers[:4] == pytest.approx(writes, rel=0.05), policy
            assert numbers[4:] == pytest.approx([n / 1000 for n in milliseconds], rel=0.05), policy

    def test_only_attempts_without_a_budget_or_a_breaker_keep_the_service_down(self) -> None:
        succeeded_in_the_end = {name: row[2] for name, row in rows("Retry storm").items()}
        assert succeeded_in_the_end == {
            "no retries": "100",
            "3 attempts": "0",
            "3 attempts, circuit breaker": "100",
            "3 attempts, retry budget": "100",
            "3 attempts, bulkhead": "100",
        }

    def test_only_a_rule_that_gives_tokens_back_is_right_for_fleets_and_for_random_failures(
        self,
    ) -> None:
        right = {
            name: [float(row[2]) >= 95, float(row[3]) <= 1.3, float(row[4]) >= 98]
            for name, row in rows("Fleet").items()
        }
        assert right == {
            "time earns tokens": [False, False, False],
            "gRPC's rule": [True, True, False],
            "successes give back": [True, True, True],
        }


@pytest.mark.parametrize("name", PICTURES)
class TestPictures:
    def test_the_picture_is_small_and_says_what_it_shows(self, name: str) -> None:
        assert len(committed(name)) < 30_000
        root = ElementTree.fromstring(committed(name))
        title, description = root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")
        assert title
        assert description
        assert "prefers-color-scheme:dark" in root.findtext(f"{SVG}style", "")

    def test_every_line_lies_within_its_plot(self, name: str) -> None:
        lines = ElementTree.fromstring(committed(name)).findall(f".//{SVG}polyline")
        assert len(lines) >= 6
        for line in lines:
            points = [
                tuple(map(float, point.split(","))) for point in line.get("points", "").split()
            ]
            assert len(points) > 3
            assert all(0 <= x <= WIDTH and 0 <= y <= PLOT_HEIGHT for x, y in points)

    def test_no_shaded_area_is_empty(self, name: str) -> None:
        areas = ElementTree.fromstring(committed(name)).findall(f".//{SVG}rect[@class='shaded']")
        assert all(float(area.get("width", "0")) > 0 for area in areas)

    def test_the_page_shows_the_picture_with_a_text_for_whoever_cannot_see_it(
        self, name: str
    ) -> None:
        (text,) = re.findall(rf"!\[([^\]]+)\]\({name}\.svg\)", PAGE)
        assert len(text) > 100


class TestPages:
    """The numbers in the pages are those of the tables."""

    def test_the_numbers_of_the_jitter_simulation(self) -> None:
        none, no_jitter, full = rows("Jitter").values()
        assert one_line(
            f"100 clients need {full[2]} writes instead of {no_jitter[2]}, and {full[6]} seconds "
            f"instead of {no_jitter[6]}. Without backoff they are done first, after {none[6]} "
            f"seconds, but with {none[2]} writes."
        ) in one_line(PAGE)

    def test_the_numbers_of_the_retry_storm(self) -> None:
        _, attempts, breaker, budget, bulkhead = rows("Retry storm").values()
        text = one_line(PAGE)
        assert f"recovered in {attempts[4]} of {attempts[5]} runs" in text
        assert f"it gets {attempts[3]} requests per call" in text
        assert f"{breaker[1]} % of the calls that arrive between second 20 and 60 succeed" in text
        assert f"With the budget it is {budget[1]} %, with {budget[3]} requests per call" in text
        assert f"With the bulkhead (not drawn) it is {bulkhead[1]} %" in text
        assert (
            f"the service gets {attempts[3]} requests per call. A *retry budget* limits the "
            "retries of all calls together, and every `Retrier` has one. With it, the service gets "
            f"{budget[3]} requests per call and recovers."
        ) in one_line(README)

    def test_the_numbers_of_the_fleet(self) -> None:
        time_earns, grpc, give_back = rows("Fleet").values()
        text = one_line(PAGE)
        assert f"and {time_earns[2]} % of the calls succeed" in text
        assert f"{grpc[4]} % of its calls succeed" in text
        assert f"{give_back[4]} % of the other program's calls succeed" in text

    def test_the_numbers_of_the_rate_limit(self) -> None:
        none, retries, no_budget, at_600, at_591 = rows("Rate limit").values()
        text = one_line(PAGE)
        assert f"used up after {float(none[4]):.0f} seconds. Then {none[2]} calls fail." in text
        assert f"only {int(none[2]) - int(retries[2])} of them are retried successfully" in text
        assert no_budget[2] == at_591[1] == at_591[2] == "0"
        assert f"some take {no_budget[3]} seconds" in text
        assert f"the longest takes {at_591[3]} seconds" in text
        assert f"after {at_591[4]} seconds instead of {no_budget[4]}" in text
        assert f"At a pace of exactly 600 per minute, {at_600[1]} requests are rejected" in text
