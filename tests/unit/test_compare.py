"""Two revisions compared: what was mended, what was broken, and how likely that is by chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from service.cli.adapters import MAX_REGRESSION
from service.errors import ConfigurationError
from service.evaluation.compare import Comparison, compare, mcnemar
from service.evaluation.predictions import Predictions

TRUTH = "yynn"


def answers(chosen: str, gold: str = TRUTH, ids: str = "") -> Predictions:
    """A letter for each record: y or n; ids are letters too, a, b, c and so on when none are given."""
    size = len(chosen)
    probabilities = np.asarray([[0.9, 0.1] if each == "y" else [0.1, 0.9] for each in chosen]).reshape(size, 2)
    return Predictions(
        ("yes", "no"),
        "",
        tuple(ids or map(chr, range(ord("a"), ord("a") + size))),
        tuple(f"text of {id}" for id in ids or map(chr, range(ord("a"), ord("a") + size))),
        ("",) * size,
        np.asarray(["yn".index(each) for each in gold]),
        probabilities,
        probabilities,
        np.ones(size),
        np.zeros(size, dtype=np.bool_),
    )


def compared(old: Predictions, new: Predictions) -> Comparison:
    (found,) = compare({"refund": old}, {"refund": new})
    return found


def refusal(old: dict[str, Predictions], new: dict[str, Predictions]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        compare(old, new)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "mended", "broken"),
    [
        pytest.param("yynn", "yynn", "", "", id="both right"),
        pytest.param("nnyy", "nnyy", "", "", id="both wrong"),
        pytest.param("nynn", "yynn", "a", "", id="one mended"),
        pytest.param("yynn", "yyny", "", "d", id="one broken"),
        pytest.param("nnnn", "yyyy", "ab", "cd", id="two of each"),
    ],
)
def test_mended_and_broken_records_are_named(old: str, new: str, mended: str, broken: str) -> None:
    found = compared(answers(old), answers(new))
    assert (found.mended, found.broken) == (tuple(mended), tuple(broken))


def test_both_accuracies_are_given() -> None:
    found = compared(answers("nnnn"), answers("yynn"))
    assert (found.records, found.old_accuracy, found.new_accuracy) == (4, 0.5, 1.0)


def test_records_are_matched_by_id() -> None:
    reordered = answers("nnyy", gold="nnyy", ids="dcba")
    assert compared(answers("yynn"), reordered).broken == ()


def test_a_broken_record_is_named_when_the_order_differs() -> None:
    assert compared(answers("yynn"), answers("nnyn", gold="nnyy", ids="dcba")).broken == ("a",)


def test_less_confidence_in_the_same_answers_is_no_change() -> None:
    surer = replace(answers(TRUTH), probabilities=np.asarray([[0.51, 0.49]] * 2 + [[0.49, 0.51]] * 2))
    assert compared(answers(TRUTH), surer).regression == 0


def test_a_right_answer_that_is_withheld_now_is_broken() -> None:
    found = compared(answers("yynn"), replace(answers("yynn"), abstained=np.asarray([True, False, False, False])))
    assert (found.broken, found.regression, found.new_accuracy) == (("a",), 0.25, 0.75)


def test_a_wrong_answer_that_is_withheld_now_is_a_change_and_nothing_worse() -> None:
    found = compared(answers("nynn"), replace(answers("nynn"), abstained=np.asarray([True, False, False, False])))
    assert (found.changed, found.regression) == (("a",), 0)


def test_a_regression_at_the_bound_is_not_above_it() -> None:
    found = compared(answers("y" * 200, gold="y" * 200), answers("n" + "y" * 199, gold="y" * 200))
    assert found.regression == MAX_REGRESSION


def test_an_improvement_is_a_negative_regression() -> None:
    assert compared(answers("nnnn"), answers("yynn")).regression == -0.5


def test_classifiers_are_compared_by_name() -> None:
    found = compare(
        {"b": answers("yynn"), "a": answers("nynn")}, {"a": answers("yynn"), "b": answers("yyny"), "new": answers("y")}
    )
    assert [(each.classifier, each.mended, each.broken) for each in found] == [("a", ("a",), ()), ("b", (), ("d",))]


@pytest.mark.parametrize(
    ("new", "says"),
    [
        pytest.param(answers("yynn", ids="abcx"), "different records", id="another record"),
        pytest.param(answers("yyn", gold="yyn"), "different records", id="a record less"),
        pytest.param(answers("yynny", gold="yynny"), "different records", id="a record more"),
        pytest.param(replace(answers("yynn"), labels=("no", "yes")), "the labels differ", id="other labels"),
        pytest.param(answers("yynn", gold="yyny"), "labelled differently", id="labelled anew"),
        pytest.param(
            replace(answers("yynn"), texts=("text of a", "other", "text of c", "another")),
            "the texts of 2 records were changed between the two, 'b' for one",
            id="edited under the same ids",
        ),
    ],
)
def test_answers_to_something_else_are_refused(new: Predictions, says: str) -> None:
    found = refusal({"refund": answers("yynn")}, {"refund": new})
    assert found.startswith("refund: ")
    assert says in found


def test_a_classifier_that_no_longer_answers_is_refused() -> None:
    one = answers("yynn")
    assert refusal({"a": one, "b": one, "c": one}, {"b": one}) == "the new one does not answer for a, c"


@pytest.mark.parametrize(("old", "new"), [(["a"], ["b"]), (["a"], []), ([], ["b"]), ([], [])], ids=str)
def test_nothing_in_common_is_refused(old: list[str], new: list[str]) -> None:
    one = answers("yynn")
    assert "no classifier in common" in refusal(dict.fromkeys(old, one), dict.fromkeys(new, one))


@pytest.mark.parametrize("one", [0, 1, 2, 5, 30])
@pytest.mark.parametrize("other", [0, 1, 5, 6, 31])
def test_the_p_value_is_that_of_a_fair_coin(one: int, other: int) -> None:
    expected = binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected)


def test_the_p_value_of_very_many_changes_is_finite() -> None:
    assert 0 < mcnemar(1500, 1600) < 0.1


def test_the_p_value_is_that_of_the_changed_records() -> None:
    assert compared(answers("y" * 8, gold="n" * 8), answers("n" * 6 + "yy", gold="n" * 8)).p_value == 2 / 2**6
