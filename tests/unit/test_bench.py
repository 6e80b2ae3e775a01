"""The bench without an engine: who is asked when, what is compared, and the figures that are printed."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from loadtest import bench, resident
from loadtest.baselines.prompts import Task
from loadtest.baselines.stock_vllm import command, completion, probabilities
from loadtest.baselines.worker import openmp
from loadtest.comparison import Comparison, has_time_left, rounded, worst_difference
from loadtest.contestants import PEERS, Answer, Contestant
from loadtest.conversations import Turns
from loadtest.resident import OF_NO_FILE, resident_bytes, tree
from service.engine.hardware import Choice
from service.engine.launch import process_environment

QUIET = Console(quiet=True)


class Entrant:
    """Answers at once and says that it took the seconds of its list, the last of them ever after."""

    def __init__(self, title: str, seconds: Sequence[float], asked: list[str], answers: list[list[float]]) -> None:
        self._title, self._seconds, self._asked, self._answers = title, list(seconds), asked, answers

    async def ask(self, _: Turns) -> Answer:
        self._asked.append(self._title)
        return self._seconds.pop(0) if len(self._seconds) > 1 else self._seconds[0], self._answers


def entrant(title: str, seconds: float, asked: list[str], answers: list[list[float]] | None = None) -> Contestant:
    return Contestant(title, Entrant(title, [seconds], asked, answers or [[0.5, 0.5]]).ask, os.getpid())


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SETTLE_SECONDS", 0)


@pytest.fixture
def measured() -> Comparison:
    comparison = Comparison("ours", {"one": {100: [0.5]}, "ours": {100: [1.0, 3.0, 2.0]}, "peer": {100: [30.0, 10.0]}})
    comparison.resident_bytes["peer"] = 1_500_000_000
    return comparison


def options(tmp_path: Path, rounds: int = 3, budget: float = 100.0) -> argparse.Namespace:
    return argparse.Namespace(rounds=rounds, budget=budget, lengths=[100], output=tmp_path / "bench.json")


async def test_contestants_are_asked_in_turn_after_warming_up(tmp_path: Path) -> None:
    asked: list[str] = []
    entrants = [entrant("ours", 1.0, asked), entrant("peer", 2.0, asked)]
    await bench.measure(entrants, Comparison("ours"), options(tmp_path), QUIET)
    warm_ups = ["ours"] * bench.WARM_UPS + ["peer"] * bench.WARM_UPS
    assert asked == warm_ups + ["ours", "peer"] * 3


async def test_a_contestant_that_has_used_up_its_budget_is_left_out_of_further_rounds(tmp_path: Path) -> None:
    comparison = Comparison("ours")
    entrants = [entrant("ours", 1.0, []), entrant("slow", 60.0, [])]
    await bench.measure(entrants, comparison, options(tmp_path, rounds=4), QUIET)
    assert {title: len(comparison.taken(title, 100)) for title in ("ours", "slow")} == {"ours": 4, "slow": 2}


async def test_seconds_and_memory_are_written(tmp_path: Path) -> None:
    await bench.measure([entrant("ours", 1.0, [])], Comparison("ours"), options(tmp_path), QUIET)
    written = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert written["seconds"] == {"ours": {"100": [1.0, 1.0, 1.0]}}
    assert written["resident_bytes"]["ours"] > 1_000_000
    assert {"machine", "commit", "date", "versions"} <= set(written)


async def test_answers_unlike_those_of_peft_end_the_run() -> None:
    ours, peft = entrant("ours", 1.0, [], [[0.9, 0.1]]), entrant("PEFT", 1.0, [], [[0.8, 0.2]])
    with pytest.raises(SystemExit, match="nothing is measured"):
        await bench.agree(ours, {"peft": peft}, QUIET)


async def test_answers_of_a_peer_that_computes_something_else_may_differ() -> None:
    ours, stock = entrant("ours", 1.0, [], [[0.9, 0.1]] * 2), entrant("stock", 1.0, [], [[0.1, 0.9]] * 2)
    assert await bench.agree(ours, {"stock-vllm": stock}, QUIET) == 2


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        pytest.param("stock-vllm", [[0.9, 0.1], [0.3, 0.7]], id="stock vLLM, all classifiers"),
        pytest.param("merged", [[0.9, 0.1]], id="merged, the first classifier"),
    ],
)
async def test_answers_with_plain_copies_are_those_of_peft_with_them(name: str, answers: list[list[float]]) -> None:
    reference = entrant("PEFT on plain copies", 1.0, [], [[0.9, 0.1], [0.3, 0.7]])
    await bench.agree_on_plain_copies(reference, {name: entrant(name, 1.0, [], answers)}, QUIET)
    answers[-1] = [0.5, 0.5]
    with pytest.raises(SystemExit, match=f"{name} are not those of PEFT on plain copies; nothing is measured"):
        await bench.agree_on_plain_copies(reference, {name: entrant(name, 1.0, [], answers)}, QUIET)


def test_baselines_compute_on_the_cores_and_with_the_openmp_of_fantails_engine() -> None:
    cores = sorted(os.sched_getaffinity(0))
    ours = process_environment(Choice("float32", 32, 1 << 30, len(cores), tuple(cores), ()))
    assert openmp() == {name: ours[name] for name in ("OMP_NUM_THREADS", "KMP_AFFINITY", "LD_PRELOAD")}


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        pytest.param([], True, id="nothing yet"),
        pytest.param([4.0, 5.9], True, id="below"),
        pytest.param([4.0, 6.0], False, id="used up"),
        pytest.param([99.0], False, id="at the first"),
    ],
)
def test_time_is_left_below_the_budget(taken: list[float], expected: bool) -> None:
    assert has_time_left(taken, 10.0) is expected


def test_without_a_budget_there_is_one_round_all_the_same() -> None:
    assert has_time_left([], 0.0)


@pytest.mark.parametrize(
    ("contestant", "median", "measurements", "ratio"),
    [
        pytest.param("one", 0.5, 1, 0.25, id="faster"),
        pytest.param("ours", 2.0, 3, None, id="the reference itself"),
        pytest.param("peer", 20.0, 2, 10.0, id="slower"),
    ],
)
def test_ratios_are_of_medians_to_the_references(
    measured: Comparison, contestant: str, median: float, measurements: int, ratio: float | None
) -> None:
    cell = measured.cell(contestant, 100)
    assert cell is not None
    assert (cell.median, cell.measurements, cell.ratio) == (median, measurements, ratio)


def test_what_was_not_measured_has_no_figure(measured: Comparison) -> None:
    assert measured.cell("peer", 320) is None


def test_there_is_no_ratio_where_the_reference_was_not_measured(measured: Comparison) -> None:
    measured.add("peer", 320, 7.0)
    cell = measured.cell("peer", 320)
    assert cell is not None
    assert cell.ratio is None


def test_sixteen_of_a_contestant_hold_and_take_sixteen_times_as_much(measured: Comparison) -> None:
    many = measured.with_multiple("peer", 16, "sixteen peers")
    cell = many.cell("sixteen peers", 100)
    assert cell is not None
    assert (cell.median, cell.ratio) == (320.0, 160.0)
    assert many.resident_bytes["sixteen peers"] == 24_000_000_000


def test_what_is_computed_is_not_among_the_measured(measured: Comparison) -> None:
    measured.with_multiple("peer", 16, "sixteen peers")
    assert "sixteen peers" not in json.dumps(measured.to_json())


def test_the_table_has_a_row_for_each_contestant(measured: Comparison) -> None:
    measured.add("peer", 1000, 100.0)
    printed = io.StringIO()
    Console(width=120, file=printed).print(measured.table("a machine"))
    rows = [line.replace("│", " ").split() for line in printed.getvalue().splitlines()]
    assert ["peer", "1.50", "20.0", "(2)", "10.0", "×", "100", "(1)"] in rows
    assert ["one", "–", "0.500", "(1)", "0.250", "×", "–"] in rows


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (343.4, "343"), (5488.0, "5,488")]
)
def test_figures_are_printed_to_three_digits(value: float, text: str) -> None:
    assert rounded(value) == text


def test_the_worst_difference_is_over_all_classifiers_and_labels() -> None:
    assert worst_difference([[0.5, 0.5], [0.9, 0.1]], [[0.5, 0.5], [0.7, 0.3]]) == pytest.approx(0.2)


def test_answers_of_different_classifiers_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        worst_difference([[0.5, 0.5]], [[0.5, 0.5], [0.9, 0.1]])


@pytest.mark.parametrize(
    ("logprobs", "expected", "missing"),
    [
        pytest.param({"token_id:7": math.log(0.3), "token_id:9": math.log(0.1)}, [0.75, 0.25], 0, id="all labels"),
        pytest.param({"token_id:7": -0.1, "token_id:5": -3.0}, [1.0, 0.0], 1, id="a label is missing"),
        pytest.param({"token_id:5": -3.0}, [0.0, 0.0], 2, id="all are missing"),
    ],
)
def test_labels_are_weighed_among_themselves_and_missing_ones_counted(
    logprobs: dict[str, float], expected: list[float], missing: int
) -> None:
    found, absent = probabilities(logprobs, [7, 9])
    assert found == pytest.approx(expected)
    assert absent == missing


@pytest.fixture
def task(tmp_path: Path) -> Task:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 12, "alora_invocation_tokens": [1, 2]}', encoding="utf-8")
    return Task("refund", adapter, rank=12, tail=[1, 2, 3], labels=("yes", "no"), label_ids=[7, 9])


def test_a_completion_asks_for_one_token_and_the_labels_log_probabilities(task: Task) -> None:
    body = completion(task, [4, 5])
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("refund", [4, 5, 1, 2, 3], 1)
    assert (body["logprob_token_ids"], body["logprobs"]) == ([7, 9], 2)


def test_the_stock_server_gets_plain_copies_and_the_smallest_slots_that_hold_them(task: Task, tmp_path: Path) -> None:
    words = command(Path("base"), [task], 8000, 1 << 30, tmp_path / "copies")
    copy = tmp_path / "copies" / "refund"
    assert words[words.index("--max-lora-rank") + 1] == "16"
    assert words[words.index("--lora-modules") + 1 :] == [f"refund={copy}"]
    config = json.loads((copy / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["alora_invocation_tokens"] is None


def test_a_tree_is_a_process_and_all_that_descend_from_it() -> None:
    assert tree(10, {10: 1, 11: 10, 12: 11, 13: 1, 14: 13}) == {10, 11, 12}


def test_memory_of_a_child_counts() -> None:
    alone = resident_bytes(os.getpid())
    program = "held = b'x' * 50_000_000; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        assert resident_bytes(os.getpid()) - alone > 50_000_000
        child.stdin.write("\n")


def fake_process(folder: Path, pid: int, **files: str) -> None:
    (folder / str(pid)).mkdir()
    for name, text in ({"stat": f"{pid} (made up) S 1 2 3", "statm": "900 500 0"} | files).items():
        (folder / str(pid) / name).write_text(text, encoding="utf-8")


def test_a_page_that_processes_share_counts_by_parts_where_the_kernel_tells_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "PROC", tmp_path)
    kinds = "Pss_Dirty: 3 kB\nPss_Anon: 40 kB\nPss_File: 655 kB\nPss_Shmem: 5 kB\n"
    fake_process(tmp_path, 10, smaps_rollup=f"00-ff ---p [rollup]\nRss:   900 kB\nPss:   700 kB\n{kinds}")
    assert resident_bytes(10) == 700 * 1024
    assert resident_bytes(10, OF_NO_FILE) == 45 * 1024
    fake_process(tmp_path, 11, stat="11 (no) parts) S 10 2 3")
    assert resident_bytes(10) == 700 * 1024 + 500 * os.sysconf("SC_PAGE_SIZE")


def test_peers_are_told_apart_by_their_titles() -> None:
    assert len({peer.title for peer in PEERS.values()}) == len(PEERS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param([], list(PEERS), id="all"),
        pytest.param(["--only-ours"], [], id="none"),
        pytest.param(["--peers", "minilm", "peft"], ["minilm", "peft"], id="some"),
    ],
)
def test_peers_are_chosen(words: list[str], expected: list[str]) -> None:
    assert bench.parser().parse_args(words).peers == expected


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(SystemExit):
        bench.parser().parse_args(["--peers", "torchserve"])
