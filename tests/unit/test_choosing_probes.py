"""Which conversations probe a classifier."""

from __future__ import annotations

import pytest

from service.errors import ConfigurationError
from service.training.probes import MAX_CHARACTERS, PROBES, choose_probes
from service.training.records import Record
from tests.support import talk


def record(id: str, characters: int, label: str = "yes") -> Record:
    return Record(talk("x" * characters, id=id), {"refund": label})


def chosen(*records: Record) -> list[str]:
    return [conversation.id for conversation in choose_probes(records)]


def test_no_more_are_chosen_than_a_start_can_afford() -> None:
    assert len(chosen(*(record(f"r{n}", 10) for n in range(PROBES + 1)))) == PROBES


def test_a_label_that_is_not_yet_shown_goes_first() -> None:
    assert "rare" in chosen(*(record(f"r{n}", 10) for n in range(PROBES)), record("rare", 20, "no"))


@pytest.mark.parametrize(
    ("characters", "is_chosen"),
    [(MAX_CHARACTERS - 1, True), (MAX_CHARACTERS, True), (MAX_CHARACTERS + 1, False)],
    ids=["a little shorter", "as long as allowed", "longer"],
)
def test_a_long_conversation_is_not_chosen_while_enough_are_short(characters: int, is_chosen: bool) -> None:
    others = [record(f"r{n}", 10) for n in range(PROBES)]
    assert ("long" in chosen(*others, record("long", characters, "no"))) is is_chosen


@pytest.mark.parametrize("short", range(PROBES))
def test_the_shortest_are_chosen_where_too_few_are_short(short: int) -> None:
    shorts = [record(f"short{n}", 10) for n in range(short)]
    longs = [record(f"long{n}", MAX_CHARACTERS + 1 + n) for n in range(PROBES)]
    longest_with_a_new_label = record("longest", 9 * MAX_CHARACTERS, "no")
    wanted = [each.conversation.id for each in [*shorts, *longs][:PROBES]]
    assert sorted(chosen(longest_with_a_new_label, *reversed(longs), *shorts)) == sorted(wanted)


def test_fewer_records_than_probes_are_all_chosen() -> None:
    assert chosen(record("one", 9 * MAX_CHARACTERS)) == ["one"]


def test_without_records_there_is_nothing_to_choose() -> None:
    with pytest.raises(ConfigurationError, match="no conversations to probe with"):
        choose_probes([])


def test_where_nothing_is_labelled_some_of_every_length_are_chosen() -> None:
    unlabelled = [Record(talk("x" * (10 + n), id=f"r{n}"), {}) for n in range(8)]
    assert chosen(*unlabelled) == ["r1", "r3", "r5", "r7"]
    assert chosen(*unlabelled[:2]) == ["r0", "r1"]
