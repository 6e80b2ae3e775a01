"""What became of a run's calls: merged without loss, kept as JSON, and what each figure counts."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from loadtest.outcome import GOOD, STAGES, Outcome, merged, milliseconds, pooled, ratio, seconds
from tests.traffic import outcome

DIGITS = 1e-3
TEN_MINUTES_S = 600


def recorded(shares: int) -> list[Outcome]:
    """The same answers of a run, dealt to so many generators."""
    rng = random.Random(5)
    made = [Outcome(steady_s=10.0) for _ in range(shares)]
    for number in range(600):
        each = made[number % shares]
        length = rng.choice([100, 320, 1000])
        each.ended(length, rng.choice(["OK", "OK", "OK", "PARTLY", "RESOURCE_EXHAUSTED"]), number % 7 == 0)
        stages = {stage: rng.random() for stage in STAGES}
        each.answered(length, rng.expovariate(3), stages, rng.randrange(200), rng.randrange(400))
    return made


def taking(*latencies_s: float) -> Outcome:
    """A run of ten seconds whose calls took so long, one each."""
    run = Outcome(steady_s=10.0)
    for latency_s in latencies_s:
        run.add(outcome(latency_s, OK=1))
    return run


def as_json(value: Outcome) -> dict[str, Any]:
    """Through its text, which is strict JSON."""
    found: dict[str, Any] = json.loads(json.dumps(value.to_json(), allow_nan=False))
    return found


@pytest.mark.parametrize("shares", [2, 3, 7])
def test_what_several_generators_recorded_is_what_one_would_have_recorded(shares: int) -> None:
    (alone,) = recorded(1)
    assert as_json(merged(recorded(shares))) == as_json(alone)


def test_several_runs_pooled_are_one_that_lasted_as_long_as_all() -> None:
    first, second = outcome(0.1, steady_s=10.0, OK=10), outcome(0.3, steady_s=30.0, OK=20, UNAVAILABLE=10)
    pool = pooled([first, second])
    assert (pool.steady_s, pool.sent, pool.goodput, pool.offered_rate) == (40.0, 40, 0.75, 1.0)
    assert (seconds(pool.latency, 30), seconds(pool.latency, 40)) == pytest.approx((0.1, 0.3), rel=1e-3)
    assert (first.sent, first.latency.get_total_count()) == (10, 10)


def test_what_was_recorded_alone_stays_as_it_is() -> None:
    assert as_json(merged(recorded(1))) == as_json(recorded(1)[0])


def test_an_outcome_comes_back_from_json_whole() -> None:
    (before,) = recorded(1)
    assert as_json(Outcome.from_json(as_json(before))) == as_json(before)


@pytest.mark.parametrize("percentile", [0.0, 50.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("name", ["latency", *STAGES])
def test_a_histogram_comes_back_from_json_with_every_percentile(name: str, percentile: float) -> None:
    (before,) = recorded(1)
    after = Outcome.from_json(as_json(before))
    histograms = [each.latency if name == "latency" else each.stages[name] for each in (before, after)]
    assert seconds(histograms[0], percentile) == seconds(histograms[1], percentile)


def test_outcomes_are_merged_after_they_came_back_from_json() -> None:
    parts = [Outcome.from_json(as_json(part)) for part in recorded(3)]
    assert as_json(merged(parts)) == as_json(merged(recorded(3)))


@pytest.mark.parametrize("latency_s", [0.000_001, 0.0123, 1.0, 59.9])
def test_a_latency_is_kept_to_three_digits(latency_s: float) -> None:
    assert seconds(outcome(latency_s, OK=1).latency, 50) == pytest.approx(latency_s, rel=DIGITS)


@pytest.mark.parametrize(
    ("latency_s", "kept_s"), [(0.0, 1e-6), (-0.5, 1e-6), (TEN_MINUTES_S, TEN_MINUTES_S), (9000.0, TEN_MINUTES_S)]
)
def test_a_latency_beyond_the_histogram_is_kept_at_its_edge(latency_s: float, kept_s: float) -> None:
    assert seconds(outcome(latency_s, OK=1).latency, 50) == pytest.approx(kept_s, rel=DIGITS)


def test_percentiles_are_those_of_all_answers() -> None:
    run = taking(*(number / 1000 for number in range(1, 1001)))
    assert as_json(run)["latency_s"] == pytest.approx(
        {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}, rel=2 * DIGITS
    )


def test_goodput_is_the_whole_answers_a_second() -> None:
    found = outcome(OK=30, PARTLY=20, DEADLINE_EXCEEDED=15, RESOURCE_EXHAUSTED=25, UNAVAILABLE=10)
    assert (found.offered_rate, found.goodput) == (10.0, 3.0)


@pytest.mark.parametrize("status", ["PARTLY", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"])
def test_what_ended_otherwise_is_no_goodput(status: str) -> None:
    assert outcome(**{status: 10}).goodput == 0


def test_the_shed_share_is_of_all_calls() -> None:
    assert outcome(OK=30, PARTLY=20, RESOURCE_EXHAUSTED=25, UNAVAILABLE=25).shed_share == 0.25


def test_the_reused_share_is_of_all_tokens() -> None:
    assert outcome(OK=3).reused_share == 0.6


def test_a_run_without_calls_has_shares_of_nothing() -> None:
    empty = outcome()
    assert (empty.offered_rate, empty.goodput, empty.shed_share, empty.reused_share) == (0, 0, 0, 0)


def test_where_nothing_was_answered_there_is_no_latency() -> None:
    silent = outcome(UNAVAILABLE=3)
    assert math.isnan(seconds(silent.latency, 50))
    assert milliseconds(silent.latency, 50) == "–"
    assert as_json(silent)["latency_s"] == {}


def test_an_outcome_without_answers_comes_back_from_json() -> None:
    after = Outcome.from_json(as_json(outcome(UNAVAILABLE=3)))
    assert (after.sent, after.by_status, after.latency.get_total_count()) == (3, {"UNAVAILABLE": 3}, 0)


def test_a_latency_is_read_in_milliseconds() -> None:
    assert milliseconds(outcome(0.25, OK=100).latency, 99) == "250"


@pytest.mark.parametrize(("percentile", "enough"), [(50, 2), (90, 10), (95, 20), (99, 100), (99.9, 1000)])
def test_a_percentile_is_told_only_when_some_call_lies_beyond_it(percentile: float, enough: int) -> None:
    too_few, just_enough = outcome(0.25, OK=enough - 1), outcome(0.25, OK=enough)
    assert [milliseconds(each.latency, percentile) for each in (too_few, just_enough)] == ["–", "250"]
    assert f"p{percentile:g}" not in as_json(too_few)["latency_s"]
    assert f"p{percentile:g}" in as_json(just_enough)["latency_s"]


def test_a_ratio_is_that_of_the_same_percentile_of_both() -> None:
    unloaded, loaded = outcome(0.2, OK=100).latency, outcome(0.5, OK=100).latency
    assert ratio(loaded, unloaded, 99) == "2.50"


@pytest.mark.parametrize("calls", [(100, 99), (99, 100)], ids=["too few unloaded", "too few loaded"])
def test_there_is_no_ratio_without_both_percentiles(calls: tuple[int, int]) -> None:
    loaded, unloaded = (outcome(OK=each).latency for each in calls)
    assert ratio(loaded, unloaded, 99) == "–"
    assert ratio(loaded, unloaded, 50) == "1.00"


def test_there_is_no_ratio_of_a_run_to_itself() -> None:
    alone = outcome(OK=100).latency
    assert ratio(alone, alone, 99) == "–"


def test_statuses_that_never_occurred_count_nothing() -> None:
    found = outcome(UNAVAILABLE=1)
    assert found.by_status[GOOD] == 0
    assert as_json(found)["by_status"] == {"UNAVAILABLE": 1}


def test_classifications_of_partly_answered_calls_are_counted_beside_whole_calls() -> None:
    run = Outcome(steady_s=4.0)
    for classifications in (16, 14, 1):
        run.ended(100, GOOD)
        run.answered(100, 0.1, {}, 0, 0, classifications)
    run.add(Outcome.from_json(as_json(run)))
    assert run.classification_rate == 62 / 4.0


def test_calls_are_told_apart_by_the_length_of_their_conversation() -> None:
    run = merged([outcome(0.1, length=100, OK=3, RESOURCE_EXHAUSTED=1), outcome(0.7, length=1000, PARTLY=2, OK=1)])
    after = Outcome.from_json(as_json(run)).lengths
    assert {length: (each.sent, each.good) for length, each in after.items()} == {100: (4, 3), 1000: (3, 1)}
    assert {length: milliseconds(each.latency, 50) for length, each in after.items()} == {100: "100", 1000: "700"}


def test_calls_that_are_turned_away_have_a_length_too() -> None:
    found = outcome(length=1000, RESOURCE_EXHAUSTED=5).lengths[1000]
    assert (found.sent, found.good, found.latency.get_total_count()) == (5, 0, 0)


def test_the_lengths_of_pooled_runs_are_those_of_all_and_change_none_of_them() -> None:
    first, second = outcome(length=100, OK=2), outcome(length=100, OK=3)
    assert pooled([first, second]).lengths[100].sent == 5
    assert (first.lengths[100].sent, first.lengths[100].latency.get_total_count()) == (2, 2)


def test_tokens_are_read_at_the_rate_at_which_they_were_computed_for_answers() -> None:
    run = outcome(steady_s=4.0, OK=3, PARTLY=1, RESOURCE_EXHAUSTED=6)
    assert run.read_rate == 40 * 4 / 4.0
    assert as_json(run)["read_rate"] == run.read_rate
