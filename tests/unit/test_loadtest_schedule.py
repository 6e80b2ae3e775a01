"""The schedule of a load test: when calls are due and what they ask, the same for equal seeds."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from pathlib import Path

import pytest

from loadtest.conversations import Turns
from loadtest.profile import Length, Profile, ProfileError
from loadtest.schedule import MOST_TURNS, RECENT, Call, arrival_times, calls
from tests.traffic import SMALL, profile

NAMES = ("refund", "topic", "urgency", "fraud")
MANY_S = 5000.0
"""So long a run that shares and means come near what is wanted."""


def scheduled(wanted: Profile, rate: float = 1.0, seed: int = 1) -> list[Call]:
    return list(calls(wanted, rate, NAMES, seed))


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


MIXED = profile(arrivals="poisson", follow_ups=0.3, fan_out=0.5, steady_s=200.0, lengths=(*SMALL, Length(90, 2)))


def test_equal_seeds_give_equal_calls() -> None:
    assert scheduled(MIXED, seed=7) == scheduled(MIXED, seed=7)


def test_another_seed_gives_other_moments_and_other_conversations() -> None:
    one, other = scheduled(MIXED, seed=1), scheduled(MIXED, seed=2)
    assert not {call.at_s for call in one} & {call.at_s for call in other}
    assert not {str(call.turns) for call in one} & {str(call.turns) for call in other}


def test_no_two_calls_ask_about_the_same() -> None:
    asked = Counter(str(call.turns) for call in scheduled(MIXED))
    assert len(asked) > 100
    assert set(asked.values()) == {1}


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_calls_are_due_in_order_until_the_end_of_the_run(arrivals: str) -> None:
    times = [call.at_s for call in scheduled(profile(arrivals=arrivals, warm_up_s=30.0, steady_s=70.0), rate=5.0)]
    assert times == sorted(times)
    assert 0 <= times[0] < 30 < 95 < times[-1] < 100


@pytest.mark.parametrize("rate", [0.5, 4.0, 300.0])
def test_poisson_arrivals_have_the_wanted_mean_gap_and_its_spread(rate: float) -> None:
    times = list(arrival_times(profile(arrivals="poisson", steady_s=10_000 / rate), rate, seed=3))
    found = gaps(times)
    assert statistics.mean(found) == pytest.approx(1 / rate, rel=0.05)
    assert statistics.stdev(found) == pytest.approx(1 / rate, rel=0.05)  # exponential: as large as the mean
    assert len(set(found)) == len(found)


def test_poisson_arrivals_know_nothing_of_each_other() -> None:
    found = gaps(list(arrival_times(profile(arrivals="poisson", steady_s=MANY_S), 2.0, seed=3)))
    assert abs(statistics.correlation(found[:-1], found[1:])) < 0.05


def test_constant_arrivals_come_at_equal_distances() -> None:
    times = list(arrival_times(profile(arrivals="constant", warm_up_s=0.5, steady_s=0.5), 4.0, seed=1))
    assert times == [0.0, 0.25, 0.5, 0.75]


def traced(folder: Path, text: str, **changes: float) -> Profile:
    path = folder / "trace"
    path.write_text(text, encoding="utf-8")
    return profile(arrivals="trace", trace=str(path), **changes)


def test_a_trace_is_sped_up_to_the_wanted_rate_with_its_gaps_in_proportion(tmp_path: Path) -> None:
    wanted = traced(tmp_path, "100\n101\n105\n106\n", steady_s=1.0)  # 4 arrivals in 6 s, so a lap of 8 s
    assert list(arrival_times(wanted, 4.0, seed=1)) == pytest.approx([0, 0.125, 0.625, 0.75])


def test_a_trace_begins_anew_when_it_is_over(tmp_path: Path) -> None:
    wanted = traced(tmp_path, "0\n1\n5\n6\n", steady_s=2.0)
    times = list(arrival_times(wanted, 4.0, seed=1))
    assert times[4:] == pytest.approx([each + 1 for each in times[:4]])


def test_a_trace_in_any_order_is_sorted(tmp_path: Path) -> None:
    times = list(arrival_times(traced(tmp_path, "6 0 5 1"), 4.0, seed=1))
    assert times == sorted(times)


@pytest.mark.parametrize("rate", [0.5, 10.0])
def test_a_long_trace_has_the_wanted_rate(tmp_path: Path, rate: float) -> None:
    wanted = traced(tmp_path, "".join(f"{number**1.5}\n" for number in range(100)), steady_s=400 / rate)
    assert len(list(arrival_times(wanted, rate, seed=1))) == pytest.approx(400, abs=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("0\nsoon\n", "not a file of numbers", id="a word"),
        pytest.param("", "two different moments", id="empty"),
        pytest.param("3\n", "two different moments", id="one"),
        pytest.param("3\n3\n", "two different moments", id="two at once"),
        pytest.param("0\ninf\n", "two different moments", id="never"),
        pytest.param("0\nnan\n1\n", "two different moments", id="no number"),
    ],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        scheduled(traced(tmp_path, text))


def test_a_trace_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="nowhere"):
        scheduled(profile(arrivals="trace", trace=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_as_many_calls_as_wanted_ask_all_classifiers_and_the_others_one(share: float) -> None:
    found = Counter(len(call.classifiers) for call in scheduled(profile(fan_out=share, steady_s=MANY_S)))
    assert set(found) <= {0, 1}
    assert found[0] / found.total() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("skew", [0.0, 1.0, 2.0])
def test_single_classifiers_are_asked_by_zipfs_law(skew: float) -> None:
    found = Counter(call.classifiers[0] for call in scheduled(profile(fan_out=0.0, skew=skew, steady_s=MANY_S)))
    weights = [1 / place**skew for place in (1, 2, 3, 4)]
    shares = [found[name] / found.total() for name in NAMES]
    assert shares == pytest.approx([weight / sum(weights) for weight in weights], abs=0.03)


def test_a_follow_up_has_the_length_that_its_conversation_began_with() -> None:
    made = scheduled(MIXED)
    began = {call.turns[0]: call.length for call in made if not call.follow_up}
    assert {call.length for call in made if call.follow_up} == {length.tokens for length in MIXED.lengths}
    assert all(call.length == began[call.turns[0]] for call in made)


def test_lengths_come_as_often_as_they_weigh() -> None:
    wanted = profile(lengths=(Length(20, 3), Length(300, 1)), steady_s=MANY_S)
    long = sum(len(call.turns) > 2 for call in scheduled(wanted))
    assert long / MANY_S == pytest.approx(0.25, abs=0.03)


def test_without_follow_ups_every_conversation_is_new() -> None:
    assert not any(call.follow_up for call in scheduled(profile(follow_ups=0.0, steady_s=200.0)))


@pytest.mark.parametrize("share", [0.35, 0.8])
def test_as_many_calls_as_wanted_are_follow_ups(share: float) -> None:
    found = scheduled(profile(follow_ups=share, steady_s=MANY_S))
    assert sum(call.follow_up for call in found) / len(found) == pytest.approx(share, abs=0.03)


def test_a_follow_up_is_an_earlier_conversation_and_two_turns_more() -> None:
    earlier: list[Turns] = []
    for call in scheduled(profile(follow_ups=0.6, steady_s=500.0)):
        if call.follow_up:
            assert call.turns[:-2] in earlier
            assert [role for role, _ in call.turns[-2:]] == ["agent", "customer"]
        else:
            assert call.turns not in earlier
        earlier.append(call.turns)


def test_a_follow_up_goes_on_with_one_of_the_latest_conversations() -> None:
    open_: list[Turns] = []
    calls = scheduled(profile(follow_ups=0.3, steady_s=1000.0))
    assert any(call.follow_up for call in calls)
    for call in calls:
        if call.follow_up:
            open_.remove(call.turns[:-2])  # a conversation goes on in one way only
        open_ = [*open_, call.turns][-RECENT:]


def test_a_conversation_is_not_gone_on_with_for_ever() -> None:
    found = scheduled(profile(follow_ups=1.0, steady_s=500.0))
    longest = max(len(call.turns) for call in found)
    assert MOST_TURNS <= longest <= MOST_TURNS + 1
    assert sum(not call.follow_up for call in found) > 1
