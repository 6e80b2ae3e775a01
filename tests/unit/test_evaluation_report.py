"""An evaluation's report: slices, the worst mistakes, figures, and one page that needs nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest

from service.domain import Conversation, Role, Turn
from service.evaluation.measures import measure, reliability
from service.evaluation.predictions import Predictions
from service.evaluation.report import (
    LONG_TURNS,
    OURS,
    SHORT_TURNS,
    WORST,
    ClassifierReport,
    classifier_reports,
    html,
    slices,
    summary,
    worst,
)
from service.training.records import Record
from tests.predicting import FOUR, GOOD, HELLO, ONE_CLASS, POOR, predictions, talks
from tests.support import talk

LOUD = {"href", "src", "srcset", "data", "action", "xlink:href"}
"""Attributes from which a browser may load."""


def in_slice(name: str, *conversations: Conversation) -> list[bool]:
    answers = predictions([0.9] * len(conversations), [0] * len(conversations))
    return slices(answers, talks(*conversations))[name].tolist()


@pytest.mark.parametrize(
    ("turns", "name"),
    [
        pytest.param(1, "up to 2 turns", id="one turn"),
        pytest.param(SHORT_TURNS, "up to 2 turns", id="short"),
        pytest.param(SHORT_TURNS + 1, "3 to 10 turns", id="just not short"),
        pytest.param(LONG_TURNS, "3 to 10 turns", id="just not long"),
        pytest.param(LONG_TURNS + 1, "more than 10 turns", id="long"),
    ],
)
def test_a_record_is_in_the_one_slice_of_its_length(turns: int, name: str) -> None:
    found = slices(predictions([0.9], [0]), talks(talk(*["hello"] * turns)))
    assert [each for each, keep in found.items() if each.endswith(" turns") and keep.all()] == [name]


def test_records_are_sliced_by_who_spoke_last() -> None:
    system = Conversation("", (Turn(Role.CUSTOMER, "hello"), Turn(Role.SYSTEM, "closed")))
    said = [HELLO, talk("hello", "good day"), system]
    assert in_slice("customer spoke last", *said) == [True, False, False]
    assert in_slice("agent or system spoke last", *said) == [False, True, True]


def test_records_are_sliced_by_source() -> None:
    answers = predictions([0.9] * 3, [0] * 3, ["phone", "chat", "phone"])
    found = slices(answers, talks(*[HELLO] * 3))
    assert {name: keep.tolist() for name, keep in found.items() if name.startswith("source ")} == {
        "source chat": [False, True, False],
        "source phone": [True, False, True],
    }


def test_the_most_confident_mistakes_come_first() -> None:
    answers = predictions([0.6, 0.9, 0.99, 0.7], [1, 1, 0, 1])
    assert [each.id for each in worst(answers, talks(*[HELLO] * 4))] == ["1", "3", "0"]


def test_equally_confident_mistakes_keep_their_order() -> None:
    found = worst(predictions([0.8] * 3, [1] * 3), talks(*[HELLO] * 3))
    assert [each.id for each in found] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("wrong", "shown"), [(0, 0), (WORST - 1, WORST - 1), (WORST, WORST), (WORST + 1, WORST)], ids=str
)
def test_no_more_than_some_mistakes_are_shown(wrong: int, shown: int) -> None:
    answers = predictions([0.8] * (wrong + 1), [1] * wrong + [0])
    assert len(worst(answers, talks(*[HELLO] * (wrong + 1)))) == shown


def test_a_mistake_says_what_was_wanted_and_what_was_answered() -> None:
    (mistake,) = worst(predictions([0.8], [1]), talks(HELLO))
    assert (mistake.gold, mistake.label, mistake.confidence) == ("no", "yes", 0.8)
    assert mistake.conversation.turns == HELLO.turns


def reports(**systems: Mapping[str, Predictions]) -> list[ClassifierReport]:
    return classifier_reports({OURS: {"refund": GOOD}, **systems}, FOUR)


def test_every_system_that_answered_is_measured_ours_first() -> None:
    (report,) = classifier_reports({"other": {"refund": POOR}, OURS: {"refund": GOOD}, "none": {}}, FOUR)
    assert list(report.by_system.items()) == [(OURS, measure(GOOD)), ("other", measure(POOR))]


def test_slices_without_records_are_left_out() -> None:
    (report,) = reports()
    assert list(report.by_slice) == [
        "up to 2 turns",
        "3 to 10 turns",
        "customer spoke last",
        "agent or system spoke last",
        "source invented",
    ]


def test_a_slice_is_measured_on_its_records_alone() -> None:
    (report,) = reports()
    assert (report.by_slice["3 to 10 turns"].records, report.by_slice["3 to 10 turns"].accuracy) == (2, 0.5)


def test_a_summary_means_over_the_classifiers_that_a_system_answered() -> None:
    found = summary(classifier_reports({OURS: {"refund": GOOD, "topic": POOR}, "other": {"topic": POOR}}, FOUR))
    assert {system: means["accuracy"] for system, means in found["means"].items()} == {OURS: 0.5, "other": 0.25}


def test_a_system_that_answered_for_some_stands_beside_ours_over_the_same() -> None:
    reports = classifier_reports({OURS: {"refund": GOOD, "topic": POOR}, "other": {"topic": POOR}}, FOUR)
    means = summary(reports)["means"]
    assert {system: each["classifiers"] for system, each in means.items()} == {OURS: 2, "other": 1}
    assert means["other"]["ours"] == pytest.approx(measure(POOR).macro_f1, abs=1e-4)
    assert means[OURS]["ours"] == means[OURS]["macro_f1"] > means["other"]["ours"]


def test_a_summary_holds_the_reliability_diagram_before_and_after_calibration() -> None:
    answers = replace(GOOD, raw=GOOD.probabilities[::-1])
    (report,) = classifier_reports({OURS: {"refund": answers}}, FOUR)
    found = summary([report])["classifiers"]["refund"]["reliability"]
    for name, values in (("raw", answers.raw), ("calibrated", answers.probabilities)):
        bins = [asdict(each) for each in reliability(values, answers.gold)]
        assert [list(each.values()) for each in found[name]] == [
            pytest.approx(list(b.values()), abs=1e-4) for b in bins
        ]
        assert sum(each["share"] for each in found[name]) == pytest.approx(1)


def test_a_summary_names_the_worst_mistakes_and_says_nothing_of_what_was_said() -> None:
    (report,) = classifier_reports({OURS: {"topic": POOR}}, FOUR)
    found = summary([report])["classifiers"]["topic"]["mistakes"]
    assert [each["id"] for each in found] == [each.id for each in report.mistakes]
    assert all(each.keys() == {"id", "gold", "label", "confidence"} for each in found)
    assert all(each["gold"] != each["label"] for each in found)
    assert found


def test_a_mean_leaves_out_what_could_not_be_measured() -> None:
    found = summary(classifier_reports({OURS: {"refund": GOOD, "topic": ONE_CLASS}}, FOUR))
    assert found["means"][OURS]["auc"] == 1.0


def test_what_could_not_be_measured_is_null() -> None:
    found = summary(classifier_reports({OURS: {"refund": ONE_CLASS}}, FOUR))
    measures = found["classifiers"]["refund"]["by_system"][OURS]
    assert (measures["auc"], measures["macro_f1_interval"], found["means"][OURS]["auc"]) == (None, [None, None], None)


def test_a_summary_is_strict_json() -> None:
    found = summary(classifier_reports({OURS: {"refund": GOOD, "topic": ONE_CLASS}}, FOUR))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_summary_counts_who_was_taken_for_whom() -> None:
    assert summary(reports())["classifiers"]["refund"]["confusion"] == [[2, 0], [1, 1]]


class Page(HTMLParser):
    """What a browser would run and load, and the text it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in LOUD]

    def handle_data(self, data: str) -> None:
        self.shown += data


HOSTILE = "<script>alert('&')</script><img src=https://example.com/x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page() -> str:
    """Of two classifiers, one with a hostile mistake, and two systems; of the other only one label occurs."""
    said = FOUR | {"3": Record(talk(HOSTILE, id="3"), {})}
    found = classifier_reports({OURS: {"refund": GOOD, "topic": ONE_CLASS}, "other": {"refund": POOR}}, said)
    return html(found, "Evaluation of <b>", {"data": "a & b"})


def test_a_page_shows_conversations_as_they_were_written(page: str) -> None:
    assert HOSTILE in Page(page).shown


def test_a_page_runs_nothing_that_a_customer_wrote(page: str) -> None:
    assert not {"script", "img"} & set(Page(page).tags)


def test_a_page_shows_title_and_facts_as_they_are(page: str) -> None:
    shown = Page(page).shown
    assert "Evaluation of <b>" in shown
    assert "a & b" in shown


def test_a_page_loads_nothing(page: str) -> None:
    loads = Page(page).loads
    assert loads
    assert [each[:40] for each in loads if not each.startswith(("#", "data:image/"))] == []


def test_the_styles_of_a_page_load_nothing(page: str) -> None:
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "@import" not in page


def test_a_page_has_a_heading_for_every_classifier(page: str) -> None:
    assert re.findall(r'<h2 id="(\w+)">', page) == ["refund", "topic"]


def test_a_page_plots_an_overview_and_every_classifier(page: str) -> None:
    assert Page(page).tags.count("svg") == 3


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(("answered", "labelled"), id="confusion"),
        pytest.param(("confidence", "accuracy", "raw", "calibrated"), id="reliability before and after calibration"),
    ],
)
def test_a_page_plots_of_every_classifier(page: str, shown: Sequence[str]) -> None:
    overview, *plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert "macro-F1" in Page(overview).shown
    for plot in plots:
        assert set(shown) <= {each.strip() for each in Page(plot).shown.split("\n")}


@pytest.mark.parametrize("key", ["ECE raw", "ECE", "Brier raw", "Brier"])
def test_a_page_shows_the_means_before_and_after_calibration(page: str, key: str) -> None:
    overview = page[page.index("mean over classifiers") : page.index("</table>", page.index("mean over classifiers"))]
    assert f"<th>{key}</th>" in overview
    rows = re.findall(r"<tr>\s*<td>.*?</tr>", overview, re.DOTALL)
    assert {line.count("<td>") for line in rows} == {overview.count("</th>")}


def test_a_page_shows_every_slice(page: str) -> None:
    (report,) = reports()
    shown = Page(page).shown
    assert len(report.by_slice) > 3
    assert [part for part in report.by_slice if part not in shown] == []


def test_a_page_heads_a_mistake_with_what_was_wanted_and_what_was_answered(page: str) -> None:
    assert "3: labelled no, answered yes (0.600)" in Page(page).shown


def test_a_page_shows_what_could_not_be_measured_as_a_dash(page: str) -> None:
    assert "nan" not in Page(page).shown
    assert "– to –" in Page(page).shown


def test_the_same_evaluation_makes_the_same_page() -> None:
    assert html(reports(), "title", {}) == html(reports(), "title", {})
