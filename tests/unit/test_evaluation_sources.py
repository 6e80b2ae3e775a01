"""An evaluation's table by source, all systems beside each other."""

from __future__ import annotations

from service.evaluation.report import OURS, classifier_reports, html, source_means
from tests.unit.test_evaluation_report import FOUR, GOOD, predictions, reports


def test_a_source_has_the_means_of_every_system_over_the_classifiers_it_has_labels_of() -> None:
    both = predictions([0.9, 0.1, 0.9, 0.9], gold=[0, 1, 0, 1], sources=["a", "a", "b", "b"])
    only_a = predictions([0.9, 0.9], gold=[0, 1], sources=["a", "a"])
    found = source_means({OURS: {"refund": both, "topic": only_a}, "other": {"refund": both}})
    assert found["a"] == {
        "records": 4,
        OURS: {"classifiers": 2, "labels": 4, "accuracy": 0.75, "macro_f1": round((1 + 1 / 3) / 2, 4)},
        "other": {"classifiers": 1, "labels": 2, "accuracy": 1.0, "macro_f1": 1.0},
    }
    assert found["b"][OURS] == {"classifiers": 1, "labels": 2, "accuracy": 0.5, "macro_f1": 0.3333}


def test_a_source_with_one_label_only_has_no_macro_f1() -> None:
    found = source_means({OURS: {"refund": predictions([0.9, 0.9], gold=[0, 0])}})
    assert found["invented"][OURS] == {"classifiers": 0, "labels": 0, "accuracy": 1.0, "macro_f1": None}


def test_a_classifier_that_has_no_macro_f1_in_a_source_is_not_counted_among_those_of_its_mean() -> None:
    one_label = predictions([0.9, 0.9, 0.1], gold=[0, 0, 0])
    both = predictions([0.9, 0.1], gold=[0, 1])
    found = source_means({OURS: {"lookup": one_label, "refund": both}})["invented"]
    assert (found["records"], found[OURS]) == (
        5,
        {"classifiers": 1, "labels": 2, "accuracy": round((2 / 3 + 1) / 2, 4), "macro_f1": 1.0},
    )


def test_a_page_shows_sources_beside_each_other_when_there_are_several() -> None:
    both = {OURS: {"refund": predictions([0.9, 0.1, 0.9, 0.9], [0, 1, 0, 1], ["first", "first", "second", "second"])}}
    page = html(classifier_reports(both, FOUR), "title", {}, source_means(both))
    assert "By source" in page
    assert ">second<" in page
    assert "By source" not in html(reports(), "title", {}, source_means({OURS: {"refund": GOOD}}))
